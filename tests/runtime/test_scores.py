"""Three scores of one answer, and the one that a policy decides on, in guards, certificates, chains and agents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_agents import agent, ask, last
from langchain_core.messages import AIMessage
from langchain_fixtures import policy as chain_policy
from made_cases import make_escalation
from scripted import INTERCEPT, SLOPE, AnsweringEngine, confidence_scorer, scripted_model, tiny_artefact
from scripted_chat import ScriptedChat, said

from guard.certification.procedure import certify
from guard.certification.trials import TrialJournal, run_trials
from guard.data.questions import LabelledResponse, Question, Row
from guard.errors import CaptureError, ScorerError
from guard.langchain import guarded
from guard.langchain.attempts.model_calls import ModelCall, judge
from guard.langchain.chat.chat_guard import ChatGuard
from guard.langchain.metadata import read_score, with_metadata
from guard.policy.certificate import CertificateError
from guard.policy.explanation import explain
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds, trial_policy
from guard.policy.policy import Calls, Policy, load_policy, parse_policy
from guard.policy.yaml_source import InvalidPolicyError
from guard.records import Action, Prompt
from guard.review.records import to_repeat_row
from guard.runtime.call_state import CallState
from guard.runtime.guard import Guard
from guard.runtime.sources import Source
from guard.scores import SCORE_NAMES, Score, ScoreReading
from guard.scoring.scorer import Scorer, load_scorer, logistic, to_log_odds
from guard.scoring.scorer_file import Calibration, Linear, Model

#: By how much ILIS is surer that an answer is wrong than guard's own score, in log-odds.
SURER = 2.0


def surer(p_wrong: float) -> float:
    """What ILIS says where guard's own score says p_wrong."""
    return logistic(to_log_odds(p_wrong) + SURER)


def scorer() -> Scorer:
    """The scripted scorer with an ILIS that is surer of everything."""
    base = Linear(features=[0], mean=[0.0], scale=[1.0], coefficients=[SLOPE], intercept=INTERCEPT + SURER)
    ilis = Model(base=base, probe=None, trees=None, calibration=Calibration(slope=1.0, intercept=0.0))
    return Scorer(tiny_artefact(scripted_model(), ilis=ilis))


def policy(*lines: str) -> Policy:
    return parse_policy("\n".join(["version: 1", "name: test", *lines]))


RULES = "rules: [accept: {below: 0.5}, abstain: {text: No.}]"


def engine(p_wrong: float = 0.3) -> AnsweringEngine:
    return AnsweringEngine(lambda prompt, number: ("yes", p_wrong))


def guard(*lines: str, p_wrong: float = 0.3) -> Guard:
    return Guard(engine(p_wrong), scorer(), policy(*lines))


# -- one answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_an_outcome_has_every_score_and_the_policy_decides_on_one(name: str) -> None:
    outcome = guard(RULES, f"score: {name}").ask("Really?")
    assert {score: each.p_wrong for score, each in outcome.scores.items()} == pytest.approx(
        {"guard": 0.3, "ilis": surer(0.3), "log-probabilities": 0.3}, abs=1e-4
    )
    assert all(each.reads == ("log-probabilities",) for each in outcome.scores.values())
    assert outcome.p_wrong == outcome.scores[name].p_wrong == outcome.attempts[0].decision.p_wrong  # type: ignore[index]
    assert outcome.action is (Action.ABSTAIN if name == "ilis" else Action.ACCEPT)
    told = json.loads(outcome.to_json())
    assert told["attempts"][0]["decides"] == name
    assert told["scores"] == told["attempts"][0]["scores"]
    assert told["scores"]["ilis"]["p_wrong"] == pytest.approx(surer(0.3), abs=1e-4)


def test_a_given_answer_is_scored_by_the_policys_score() -> None:
    plain, ilis = (guard(RULES, *lines).score("Really?", "yes") for lines in ((), ("score: ilis",)))
    assert (plain.decides, ilis.decides) == ("guard", "ilis")
    assert ilis.p_wrong == plain.scores["ilis"].p_wrong == pytest.approx(logistic(to_log_odds(plain.p_wrong) + SURER))


def test_a_policy_that_names_no_score_decides_on_guards_own() -> None:
    assert policy(RULES).score == "guard"
    assert policy(RULES).sha256 == policy(RULES, "score: guard").sha256 != policy(RULES, "score: ilis").sha256


def test_an_unknown_score_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        InvalidPolicyError, match=r"must be 'guard', 'ilis' or 'log-probabilities'.*Did you mean 'ilis'"
    ):
        policy(RULES, "score: ilsi")


def test_a_scorer_without_the_score_is_refused_before_a_question_is_asked() -> None:
    with pytest.raises(
        ScorerError, match=r"decides on the score 'ilis', which the scorer of 'model' does not give"
    ) as told:
        Guard(engine(), confidence_scorer(), policy(RULES, "score: ilis"))
    assert "it gives guard, log-probabilities" in str(told.value)
    falling = policy("rules: [fallback: {below: 1.0, to: other}, abstain]", "score: ilis")
    with pytest.raises(ScorerError, match="the scorer of 'other' does not give"):
        Guard(engine(), scorer(), falling, fallbacks={"other": Source("other", engine(), confidence_scorer())})


def test_a_score_that_is_missing_is_never_another_one() -> None:
    score = Score(0.1, True, 0.0, scores={"guard": ScoreReading(0.1, ())})
    with pytest.raises(ScorerError, match=r"no score 'ilis'.*computed: guard"):
        score.deciding("ilis")


def layered() -> Scorer:
    """The scripted scorer whose own score reads the layers, and whose ILIS reads the map of the last token."""
    artefact = confidence_scorer().artefact
    (at,) = [at for at, name in enumerate(artefact.feature_names) if name == "map.1.last.0>1"]
    base = Linear(features=[at], mean=[0.0], scale=[1.0], coefficients=[1.0], intercept=0.0)
    ilis = Model(base=base, probe=None, trees=None, calibration=Calibration(slope=1.0, intercept=0.0))
    return Scorer(artefact.model_copy(update={"scores": {**artefact.scores, "ilis": ilis}}))


@pytest.mark.parametrize(
    ("lines", "wanted", "computed"),
    [
        (("score: log-probabilities",), False, {"log-probabilities"}),
        ((), False, set(SCORE_NAMES)),
        (("score: ilis",), False, set(SCORE_NAMES)),
        (("score: log-probabilities",), True, set(SCORE_NAMES)),
        (("score: log-probabilities", "mode: shadow"), False, set(SCORE_NAMES)),
    ],
)
def test_only_the_score_that_decides_is_computed_and_those_that_need_no_more(
    lines: tuple[str, ...], wanted: bool, computed: set[str]
) -> None:
    asked, read = engine(), []
    layers_at = asked.activations_at
    asked.activations_at = lambda prompt, number: (read.append(number), layers_at(prompt, number))[1]
    outcome = Guard(asked, layered(), policy(RULES, *lines), all_scores=wanted).ask("Really?")
    assert set(outcome.scores) == computed
    assert bool(read) is (computed != {"log-probabilities"}), "no layer is read that no score needs"
    assert outcome.p_wrong is not None


def test_layers_that_fail_are_on_error_where_the_policy_reads_them_and_nothing_where_it_does_not() -> None:
    failing = engine(0.1)

    def fail(*_: object) -> Any:
        raise CaptureError("no layers today")

    failing.activations_at = fail
    rules = (RULES, "on_error: {abstain: {text: dunno}}")
    assert Guard(failing, layered(), policy(*rules)).ask("Really?").answer == "dunno"
    plain = Guard(failing, layered(), policy(*rules, "score: log-probabilities"))
    assert plain.ask("Really?").answer == "yes"
    assert plain.score("Really?", "yes").decides == "log-probabilities"


def test_a_guard_that_computes_one_score_is_a_fallback_for_a_policy_that_decides_on_another() -> None:
    other = Guard(engine(0.1), layered(), policy(RULES, "score: log-probabilities"))
    falling = policy("rules: [accept: {below: 0.2}, fallback: {below: 1.0, to: other}, abstain]")
    outcome = Guard(engine(0.9), layered(), falling, fallbacks={"other": other}).ask("Really?")
    assert outcome.action is Action.FALLBACK
    assert outcome.attempts[1].score is not None
    assert outcome.attempts[1].score.decides == "guard"


def test_a_review_keeps_every_score() -> None:
    (failed, attempt) = to_repeat_row(make_escalation())["attempts"]
    assert attempt["decides"] == "guard"
    assert attempt["scores"]["ilis"] == {"p_wrong": 0.5, "reads": ["signature (last token)"]}
    assert (failed["decides"], failed["scores"]) == (None, {})


# -- certificates ------------------------------------------------------------------------------

ASKED: list[tuple[str, Row]] = [
    ("set", Question(id=str(n), question=f"Question {n}?", answers=("yes",))) for n in range(4)
]
GIVEN: list[tuple[str, Row]] = [
    ("given", LabelledResponse(id=str(n), prompt=Prompt.raw(f"Question {n}?"), response="yes", wrong=False))
    for n in range(3)
]


@pytest.mark.parametrize("rows", [ASKED, GIVEN], ids=["asked", "given"])
def test_a_trial_run_keeps_the_score_that_the_policy_decides_on(rows: list[tuple[str, Row]]) -> None:
    kept = {}
    for name in ("guard", "ilis"):
        promising = policy("rules: [accept: {max_error_rate: 0.1, confidence: 0.9}, abstain]", f"score: {name}")
        trial = Guard(engine(), scorer(), trial_policy(promising))
        with TrialJournal(":memory:", trial.fingerprint(promising)) as journal:
            found = list(run_trials(trial, rows, journal, route=None))
        kept[name] = [row.attempts[0].p_wrong for row in found]  # type: ignore[union-attr]
    assert kept["ilis"] == pytest.approx([surer(p_wrong) for p_wrong in kept["guard"]])


def test_the_published_method_alone_is_certified_and_decides_with_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`policies/ilis.yaml`, from labels to a decision; where guard's own score would accept more."""

    def script(prompt: Prompt, number: int) -> tuple[str, float]:
        doubtful = int(prompt.question.split()[-1].rstrip("?")) % 2
        return ("no", 0.4) if doubtful else ("yes", 0.03)

    monkeypatch.setattr("guard.runtime.guard.load_engine", lambda model, **options: AnsweringEngine(script))
    rows = [{"id": f"{at}", "question": f"Is it {at}?", "answers": ["yes"]} for at in range(300)]
    (tmp_path / "fresh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scorer().save(tmp_path / "scorer.json")
    made = certify(tmp_path / "fresh.jsonl", policy="ilis", scorer=tmp_path / "scorer.json", out=tmp_path / "c.json")
    assert made.certificate is not None
    assert made.certificate.threshold < surer(0.4)
    certified = Guard(
        AnsweringEngine(script),
        load_scorer(tmp_path / "scorer.json"),
        "ilis",
        certificate=tmp_path / "c.json",
        handlers={"review": lambda case: 1},
    )
    accepted, doubted = certified.ask("Is it 400?"), certified.ask("Is it 401?")
    assert accepted.action is Action.ACCEPT
    assert accepted.p_wrong == accepted.scores["ilis"].p_wrong == pytest.approx(surer(0.03), abs=1e-4)
    assert doubted.action is Action.ESCALATE


def test_a_certificate_of_another_score_does_not_hold() -> None:
    lines = "rules: [accept: {max_error_rate: 0.1, confidence: 0.9}, abstain]"
    own, other = policy(lines), policy(lines, "score: ilis")
    made = Guard(engine(), scorer(), trial_policy(own))
    there, here = made.fingerprint(own), made.fingerprint(other)
    assert there.differences(here) == ["the policy's score was guard, is ilis"]
    certified = apply_thresholds(other, {None: CertifiedThreshold(0.5, there.sha256)})
    with pytest.raises(CertificateError):  # bound to the other score: a certificate is asked for again
        Guard(engine(), scorer(), certified)


def test_the_built_in_policy_decides_on_the_published_method_alone() -> None:
    loaded = load_policy("ilis")
    assert loaded.score == "ilis"
    bound = Guard(engine(), scorer(), trial_policy(loaded)).fingerprint(loaded).sha256
    certified = apply_thresholds(loaded, {None: CertifiedThreshold(0.5, bound)})
    for p_wrong, action in ((0.05, Action.ACCEPT), (0.3, Action.ESCALATE)):
        asked = Guard(engine(p_wrong), scorer(), certified, handlers={"review": lambda case: 1}).ask("Really?")
        assert asked.action is action, "by ILIS, which is surer that it is wrong"
    assert explain(certified, surer(0.3))[0].holds is False


# -- chains and agents -------------------------------------------------------------------------


def with_ilis(message: AIMessage, p_wrong: Any) -> AIMessage:
    return with_metadata(message, scores={"ilis": {"p_wrong": p_wrong, "reads": ["signature (last token)"]}})


@pytest.mark.parametrize(
    ("ilis", "action"), [(0.1, Action.ACCEPT), (0.9, Action.ABSTAIN), (None, Action.ESCALATE), ("0.1", Action.ESCALATE)]
)
def test_a_chain_decides_on_the_policys_score_of_each_call(ilis: Any, action: Action) -> None:
    chosen = chain_policy("[accept: {below: 0.5}, abstain]", "score: ilis", "on_error: escalate")
    usual = ModelCall((), frozenset(), read_score(with_ilis(said("x", 0.9), 0.05)))
    calls = [usual, replace(usual, scored=read_score(with_ilis(said("y", 0.1), ilis)))]
    assert judge(CallState(chosen, None), calls, join=Calls()).decision.action is action


def test_an_agent_decides_on_the_policys_score() -> None:
    chosen = chain_policy("[accept: {below: 0.5}, abstain: {text: No.}]", "score: ilis")
    good, bad, none = with_ilis(said("Hello.", 0.9), 0.1), with_ilis(said("Hello.", 0.1), 0.9), said("Hello.", 0.1)
    shown = [last(ask(agent(ScriptedChat(script=[message]), chosen))).text for message in (good, bad, none)]
    assert shown[:2] == ["Hello.", "No."]
    assert shown[2] != "Hello.", "without that score the answer is not given"


@pytest.mark.parametrize("streaming", ["hold", "live"])
def test_a_guarded_chat_model_is_judged_by_the_policys_score(streaming: str) -> None:
    chosen = chain_policy("[accept: {below: 0.5}, abstain: {text: No.}]", "score: ilis", f"streaming: {streaming}")
    for p_wrong, text in ((0.05, "yes"), (0.3, "No.")):
        chain = guarded(ChatGuard(engine=engine(p_wrong), scorer=scorer()), policy=chosen)
        assert chain.invoke("Really?").text == text
    message = ChatGuard(engine=engine(), scorer=scorer()).invoke("Really?")
    content = message.response_metadata["guard"]
    assert content["scores"]["ilis"]["p_wrong"] == pytest.approx(surer(0.3), abs=1e-4)
    assert (content["decides"], content["signature"]) == ("guard", None), "no score reads a map"
