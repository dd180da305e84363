"""Recorded calls decided again end as real calls under the other policy would, and the figures add up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from moved_clock import MovedClock
from scripted import AnsweringEngine, confidence_scorer
from typer.testing import CliRunner

from guard.cli import app
from guard.errors import InputError, PolicyError
from guard.policy.policy import Policy, parse_policy
from guard.records import Limits, Outcome
from guard.replay.comparison import read_minutes, replay
from guard.replay.deciding import Replayed, as_recorded, replay_call
from guard.replay.documents import compare_documents
from guard.replay.figures import FEWEST_VERDICTS, compute_figures, expected_errors
from guard.replay.picture import picture
from guard.replay.recorded import RecordedAttempt, RecordedCall, RecordedVerdict, read_calls
from guard.review.store import Store
from guard.runtime.guard import Guard

#: Scores of the questions, by their number.
SCORES = [0.02, 0.08, 0.15, 0.22, 0.3, 0.37, 0.45, 0.55, 0.66, 0.78, 0.9, 0.97]


def policy(rules: str, rest: str = "") -> Policy:
    return parse_policy(f"version: 1\nname: made\nrules: {rules}\n{rest}")


OLD = policy("[accept: {below: 0.25}, retry: {below: 0.5, times: 1}, escalate: {to: [review]}]", "audit: {rate: 1}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


def guarded(chosen: Policy, store: Store | None = None, *, logged: bool = True) -> Guard:
    """A guard whose model scores a question by its number; a second answer is scored a tenth of that."""
    asked: dict[str, int] = {}

    def script(prompt: object, number: int) -> tuple[str, float]:
        text = str(getattr(prompt, "question", ""))
        asked[text] = asked.get(text, 0) + 1
        p_wrong = SCORES[int(text.split()[-1])]
        return f"answer {asked[text]}", p_wrong / 10 if asked[text] > 1 else p_wrong

    log = store.audit_log() if store and logged else None
    return Guard(
        AnsweringEngine(script), confidence_scorer(), chosen, store=store, audit_log=log, handlers={"desk": _take}
    )


def _take(case: object) -> None:
    """Take a case."""


def ask_all(guard: Guard) -> list[Outcome]:
    return [guard.ask(f"question {number}", limits=Limits(max_tokens=40)) for number in range(len(SCORES))]


def calls_of(store: Store) -> list[RecordedCall]:
    return read_calls(store.audit_log(), since="2000")


ENDINGS = {"accept": "accept", "fallback": "text", "escalate": "escalate", "abstain": "abstain"}


@pytest.mark.parametrize(
    "other",
    [
        policy("[accept: {below: 0.1}, escalate: {below: 0.6, to: [desk]}, abstain]"),
        policy("[accept: {below: 0.4}, fallback: {below: 0.7, text: Look it up.}, abstain]"),
        policy("[accept: {below: 0.25}, retry: {below: 0.5, times: 1}, abstain]"),
        policy("[accept: {below: 0.2}, retry: {below: 0.5, times: 1}, abstain]", "budget: {attempts: 2}"),
        policy("[abstain]"),
    ],
)
def test_a_call_ends_as_a_real_one_would(store: Store, other: Policy) -> None:
    ask_all(guarded(OLD, store))
    real = ask_all(guarded(other, logged=False))
    replayed = [replay_call(other, call) for call in calls_of(store)]
    known = [(each.ending, ENDINGS[outcome.action.value]) for each, outcome in zip(replayed, real, strict=True)]
    assert [pair for pair in known if pair[0] not in ("unknown", pair[1])] == []
    assert sum(ending == "unknown" for ending, _ in known) <= 1
    scores = [(each.p_wrong, outcome.p_wrong) for each, outcome in zip(replayed, real, strict=True)]
    known_scores = [pair for pair, (ending, _) in zip(scores, known, strict=True) if ending != "unknown"]
    assert all(replayed == pytest.approx(real) for replayed, real in known_scores)


def test_the_policy_that_decided_changes_nothing(store: Store) -> None:
    ask_all(guarded(OLD, store))
    found = replay(store, OLD)
    assert found.changed == {}
    assert found.present.endings == found.proposed.endings
    assert found.present.endings == {"accept": 7, "text": 0, "escalate": 5, "abstain": 0, "unknown": 0}
    assert found.proposed.reviews_a_day == pytest.approx((5 + 7) / 7), "five escalations and seven audits in a week"


def test_the_lines_of_both_policies_are_compared_with_those_of_the_latest_call(store: Store) -> None:
    ask_all(guarded(policy("[abstain]"), store))
    ask_all(guarded(OLD, store))
    assert replay(store, OLD).lines == ()
    lines = replay(store, policy("[accept: {below: 0.2}, escalate: {to: [desk]}]", "audit: {rate: 1}")).lines
    assert lines is not None
    assert [f"{line.sign} {line.text.strip()}" for line in lines] == [
        "= version: 1",
        "= name: made",
        "= rules:",
        "- - accept: {below: 0.25}",
        "- - retry: {below: 0.5}",
        "- - escalate",
        "+ - accept: {below: 0.2}",
        "+ - escalate: {to: [desk]}",
        "= audit: {rate: 1.0, within: 7d}",
    ]


def test_long_policies_are_shown_where_they_differ() -> None:
    old = "\n".join(f"line {number}" for number in range(40))
    lines = compare_documents(old, old.replace("line 20", "line x"))
    assert "".join(line.sign for line in lines) == ".===-+===."
    assert [line.text for line in lines if line.sign in "-+"] == ["line 20", "line x"]
    twice = compare_documents(old, old.replace("line 2\n", "").replace("line 30", "line y"))
    assert "".join(line.sign for line in twice) == "==-===.===-+===."
    assert compare_documents(old, old) == ()


def test_every_attempt_is_recorded_without_its_text(store: Store) -> None:
    ask_all(guarded(OLD, store))
    retried = calls_of(store)[4]
    assert [attempt.scores["guard"] for attempt in retried.attempts] == pytest.approx([0.3, 0.03], abs=1e-4)
    assert "answer" not in "".join(entry.event for entry in store.audit_log().entries()).replace('"answer":', "")


def call(*attempts: RecordedAttempt, action: str = "accept", name: str = "1", route: str | None = None) -> RecordedCall:
    return RecordedCall(name, "2026-01-01", route, "old", action, attempts)


def scored(p_wrong: float, source: str = "model", **more: object) -> RecordedAttempt:
    return RecordedAttempt(source, {"guard": p_wrong}, **more)  # type: ignore[arg-type]


STOPPED = scored(0.9, defects=("stopped",))
EARLY = "early: {above: 0.8, then: escalate}"
RETRYING = policy("[accept: {below: 0.2}, retry: {below: 0.9, times: 2}, abstain]")


@pytest.mark.parametrize(
    ("chosen", "made", "ending", "attempt"),
    [
        (RETRYING, call(scored(0.1), scored(0.5)), "accept", 0),
        (RETRYING, call(scored(0.5), scored(0.1)), "accept", 1),
        (RETRYING, call(scored(0.5)), "unknown", 0),
        (RETRYING, call(scored(0.5), scored(0.5, "bigger")), "unknown", 0),
        (RETRYING, call(scored(0.95)), "abstain", 0),
        (RETRYING, call(STOPPED), "unknown", 0),
        (policy("[accept: {below: 0.99}, abstain]", EARLY), call(STOPPED), "escalate", 0),
        (policy("[accept: {below: 0.99}, abstain]", EARLY.replace("0.8", "0.95")), call(STOPPED), "unknown", 0),
        (policy("[accept: {below: 0.99}, abstain]", EARLY), call(scored(0.9)), "accept", 0),
        (
            policy("[accept: {below: 0.2}, fallback: {to: bigger, below: 0.9}, abstain]"),
            call(scored(0.5)),
            "unknown",
            0,
        ),
        (
            policy("[accept: {below: 0.2}, fallback: {to: bigger, below: 0.9}, abstain]"),
            call(scored(0.5), scored(0.1, "bigger")),
            "accept",
            1,
        ),
        (policy("[accept]"), call(RecordedAttempt("model", {}, failed=True)), "abstain", 0),
        (policy("[accept]", "on_error: accept"), call(RecordedAttempt("model", {}, failed=True)), "accept", 0),
        (policy("[accept]"), call(scored(0.1, defects=("empty",))), "abstain", 0),
        (policy("[accept]"), call(scored(0.1, ood_score=None)), "accept", 0),
        (policy("[accept]", "out_of_distribution: {above: 0.9, then: abstain}"), call(scored(0.1)), "unknown", 0),
        (
            policy("[accept]", "out_of_distribution: {above: 0.9, then: abstain}"),
            call(scored(0.1, ood_score=0.95)),
            "abstain",
            0,
        ),
        (policy("[accept]", "score: ilis"), call(scored(0.1)), "unknown", 0),
        (
            policy("[fallback: {to: books, below: 1}, abstain]"),
            call(scored(0.5), RecordedAttempt("books", {})),
            "accept",
            1,
        ),
    ],
)
def test_what_was_not_recorded_is_not_known(chosen: Policy, made: RecordedCall, ending: str, attempt: int) -> None:
    found = replay_call(chosen, made)
    assert (found.ending, found.attempt) == (ending, attempt)


def test_a_call_on_a_route_that_the_policy_lacks_is_an_error() -> None:
    with pytest.raises(PolicyError, match="has no route 'clinic'"):
        replay_call(policy("[accept]"), call(scored(0.1), route="clinic"))


# -- figures -----------------------------------------------------------------------------------


def accepted(number: int, p_wrong: float, action: str = "accept") -> Replayed:
    return Replayed(call(scored(p_wrong), action=action, name=str(number)), "accept", 0, p_wrong)


def test_errors_are_those_of_the_scores_without_verdicts() -> None:
    found = expected_errors([accepted(number, 0.1) for number in range(100)], {})
    assert (found.by_verdicts, found.verdicts) == (None, 0)
    assert found.by_scores is not None
    middle, low, high = found.by_scores
    assert (middle, low, high) == pytest.approx((10.0, 10 - 1.96 * 3, 10 + 1.96 * 3))
    assert expected_errors([*[accepted(1, 0.1)], Replayed(call(scored(0.1)), "accept", 0, None)], {}).by_scores is None


def test_verdicts_of_accepted_and_of_escalated_answers_are_not_mixed() -> None:
    """Escalated answers are wrong more often; counting them among the accepted would blame the policy for them."""
    answers = [accepted(number, 0.1) for number in range(400)]
    answers += [accepted(number, 0.5, "escalate") for number in range(400, 500)]
    audits = {str(number): RecordedVerdict(number % 20 == 0, "audit") for number in range(100)}
    decided = {str(number): RecordedVerdict(number % 2 == 0, "escalation") for number in range(400, 500)}
    found = expected_errors(answers, {**audits, **decided})
    assert found.verdicts == 200
    assert found.by_verdicts is not None
    assert found.by_verdicts[0] == pytest.approx(400 * 5 / 100 + 50)
    assert found.by_verdicts[1] < 70 < found.by_verdicts[2]
    few = dict(list(audits.items())[: FEWEST_VERDICTS - 1])
    assert expected_errors(answers[:400], few).by_verdicts is None


def test_a_verdict_about_another_answer_of_the_call_does_not_count() -> None:
    """The policy would have accepted the first answer; people spoke of the second."""
    made = [call(scored(0.1), scored(0.2), name=str(number)) for number in range(40)]
    first = [Replayed(each, "accept", 0, 0.1) for each in made]
    verdicts = {str(number): RecordedVerdict(True, "audit") for number in range(40)}
    assert expected_errors(first, verdicts).by_verdicts is None


def test_what_would_ask_again_widens_the_interval() -> None:
    made = [accepted(number, 0.1) for number in range(50)]
    unknown = [Replayed(call(scored(0.5), name=f"u{number}"), "unknown", 0, 0.5) for number in range(50)]
    sure = compute_figures(
        "a", [*made, *([as_recorded(call(scored(0.9), action="abstain"))] * 50)], {}, days=1, minutes=2.0
    )
    open_ = compute_figures("a", [*made, *unknown], {}, days=1, minutes=None)
    assert sure.coverage[0] == open_.coverage[0] == 0.5
    assert sure.coverage[2] < 0.61
    assert open_.coverage[2] == 1.0
    assert (sure.minutes_a_day, open_.minutes_a_day) == (0.0, None)


# -- the command -------------------------------------------------------------------------------


def test_verdicts_and_time_come_from_the_store(store: Store) -> None:
    clock = MovedClock(store)
    for _ in range(6):
        ask_all(guarded(OLD, store))
    assert read_minutes(store) is None
    for case in store.reviews(kind="audit", limit=200):
        store.claim(case.id, reviewer="ann")
        clock.move(120)
        (store.reject if case.question.endswith(" 0") else store.approve)(case.id, reviewer="ann")
    clock.move(20)
    assert read_minutes(store) == pytest.approx(2.0, abs=0.01)
    stricter = policy("[accept: {below: 0.1}, escalate: {to: [review]}]")
    found = replay(store, stricter, since="2025-12-01T00:00:00+00:00")
    assert found.present.errors.verdicts == 42
    assert found.present.errors.by_verdicts is not None
    assert found.present.errors.by_verdicts[0] == pytest.approx(6)
    assert found.proposed.errors.by_verdicts is None, "twelve verdicts are too few"
    assert found.proposed.minutes_a_day == pytest.approx(2 * found.proposed.reviews_a_day, rel=0.01)
    assert found.changed == {"accept": {"escalate": 30}}


def test_a_route_and_a_time_narrow_it(store: Store) -> None:
    chosen = policy("[accept]", "routes: {clinic: {rules: [abstain]}}")
    guard = guarded(chosen, store)
    ask_all(guard)
    guard.ask("question 1", route="clinic")
    assert replay(store, chosen, route="clinic").present.calls == 1
    assert replay(store, chosen).present.calls == len(SCORES) + 1
    with pytest.raises(InputError, match="the audit log has no decision since"):
        replay(store, chosen, since="2999-01-01T00:00:00+00:00")
    for wrong in ("soon", "7", "2026-01-01"):
        with pytest.raises(InputError, match="is no time to replay from"):
            replay(store, chosen, since=wrong)


def test_entries_before_the_time_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_all(guarded(OLD, store))
    times = [entry.number for entry in store.audit_log().entries() if '"kind":"decision"' in entry.event]
    middle = json.loads(next(store.audit_log().entries(times[6])).event)["at"]
    found = read_calls(store.audit_log(), since=middle)
    assert [each.at >= middle for each in found] == [True] * len(found)
    assert len(found) >= len(times) - 6


def test_of_a_long_log_the_newest_entries_are_read(store: Store) -> None:
    ask_all(guarded(OLD, store))
    whole = replay(store, OLD)
    assert not whole.cut
    assert not replay(store, OLD, newest=10_000).cut
    some = replay(store, OLD, newest=6)
    assert some.cut
    assert some.since > whole.since
    assert 0 < some.present.calls < whole.present.calls
    assert some.days < whole.days


def test_the_command_prints_a_table_and_draws_a_picture(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    ask_all(guarded(OLD, store))
    file, drawing = tmp_path / "new.yaml", tmp_path / "replay.svg"
    file.write_text("{version: 1, name: 'stricter <x>', rules: [accept: {below: 0.1}, escalate: {to: [review]}]}")
    arguments = ["replay", "--policy", str(file), "--store", store.place, "--svg", str(drawing)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "accepted 58.3% (27.7% to 84.8%) 16.7% (2.1% to 48.4%)" in words
    assert "5 that ended in accept would end in escalate" in words
    assert "Wrong answers are expected from the scores alone" in words
    assert "+ - accept: {below: 0.1}" in words[words.index("Change of the policy: version: 1 - name: made") :]
    root = ElementTree.fromstring(drawing.read_text(encoding="utf-8"))
    says = " ".join(text for each in root.iter() if (text := (each.text or "").strip()))
    assert "12 calls of the last 7 days" in says
    assert "stricter <x>" in says
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert found == json.loads(json.dumps(asdict(replay(store, parse_policy(file.read_text()))))) | {
        "since": found["since"],
        "days": found["days"],
    }


def test_a_picture_without_scores_says_so(store: Store) -> None:
    made = call(RecordedAttempt("model", {}, failed=True))
    figures = compute_figures("p", [Replayed(made, "accept", 0, None)], {}, days=1, minutes=None)
    ask_all(guarded(OLD, store))
    from dataclasses import replace

    drawn = picture(replace(replay(store, OLD), present=figures, proposed=figures))
    assert drawn.count("not known") >= 2
