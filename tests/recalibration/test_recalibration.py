"""From a store of reviewed cases to a scorer and a certificate: guards decide, people judge, labels are divided."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from documented_json import differences, documented
from moved_clock import MovedClock
from scripted import AnsweringEngine, confidence_scorer, layers_of, scripted_model
from typer.testing import CliRunner

import guard.engines
import guard.runtime.guard
from guard.cli import app
from guard.data.questions import LabelledResponse, question_identity, read_rows
from guard.errors import CalibrationError, InputError, ScorerError
from guard.policy.certificate import load_certificates
from guard.policy.guarantee import guarantees
from guard.policy.policy import load_policy, parse_policy
from guard.recalibration import divide, recalibrate
from guard.recalibration.dividing import JudgedAnswer
from guard.recalibration.procedure import RecalibrationResult
from guard.recalibration.taking import take_labels
from guard.records import Floats, Limits, Prompt
from guard.review.pages import CaseFilter
from guard.review.store import Store
from guard.runtime.guard import Guard
from guard.scoring.scorer import Scorer, load_scorer

POLICY = """version: 1
name: desk
certificate: certificate.json
audit: {rate: 0.5}
rules:
  - accept: {max_error_rate: 0.45, confidence: 0.6}
  - escalate: {to: [review]}
"""
#: The same before there is a certificate.
BEFORE = POLICY.replace("{max_error_rate: 0.45, confidence: 0.6}", "{below: 0.5}")

#: Some are asked twice, in other words for people but not for guard's divisions of questions.
QUESTIONS = [*(f"question {number}?" for number in range(400)), *(f"Question {number}" for number in range(100))]


def doubt(question: str) -> float:
    return float(np.random.default_rng([*question.encode()]).uniform(0.05, 0.95))


def is_wrong(question: str) -> bool:
    """Wrong answers are rare below a doubt of 0.5, and common above."""
    chance = 0.02 if doubt(question) < 0.5 else 0.85
    return bool(np.random.default_rng([9, *question.encode()]).random() < chance)


def script(prompt: Prompt, number: int) -> tuple[str, float]:
    return "yes", doubt(prompt.question.splitlines()[-1])


def layers(prompt: Prompt, number: int) -> Floats:
    return layers_of(prompt, 0)


@dataclass
class ReviewedDesk:
    """A store with verdicts, the files in use, and engines that count what they are asked."""

    folder: Path
    store: Store
    engines: list[AnsweringEngine]

    @property
    def asked(self) -> int:
        return sum(len(engine.asked) for engine in self.engines)

    def recalibrate(self, into: str = "new", **options: Any) -> RecalibrationResult:
        arguments = {"policy": self.folder / "desk.yaml", "scorer": self.folder / "scorer.json", "model": "made"}
        return recalibrate(self.store, into=self.folder / into, **{**arguments, **options})


def make_engine(name: str = "scripted") -> AnsweringEngine:
    engine = AnsweringEngine(script, model=scripted_model(name=name))
    engine.activations_at = layers
    return engine


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of decided cases, as a policy with audits and its reviewers leave it."""
    folder = tmp_path_factory.mktemp("desk")
    with Store.open(folder / "reviews.db") as store:
        with Guard(
            make_engine(), confidence_scorer(), parse_policy(BEFORE), store=store, audit_log=store.audit_log()
        ) as guarded:
            for question in QUESTIONS:
                guarded.ask(question, limits=Limits(max_tokens=8))
        clock = move_clock(store, days=0)
        decide_all(store)
        clock.move(60)
    confidence_scorer().save(folder / "scorer.json")
    (folder / "desk.yaml").write_text(POLICY)
    return folder


def move_clock(store: Store, *, days: float) -> MovedClock:
    """A clock of the store, since cases have the machine's time."""
    clock = MovedClock(store)
    clock.time = datetime.now(UTC) + timedelta(days=days)
    return clock


def decide_all(store: Store) -> None:
    while cases := store.page(CaseFilter(status="pending"), limit=1000).reviews:
        for case in cases:
            decide = store.reject if is_wrong(case.question) else store.approve
            decide(case.id, reviewer="ann")


@contextmanager
def at_desk(folder: Path) -> Iterator[ReviewedDesk]:
    made: list[AnsweringEngine] = []

    def load(*_: object, **__: object) -> AnsweringEngine:
        made.append(make_engine())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, Store.open(folder / "reviews.db") as store:
        for module in (guard.engines, guard.runtime.guard):
            patch.setattr(module, "load_engine", load)
        move_clock(store, days=1)
        yield ReviewedDesk(folder, store, made)


@pytest.fixture
def a_day_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands open the store themselves; on the machine's clock, the last verdicts could still be undone."""
    opening = Store.open

    def opened(*arguments: Any, **options: Any) -> Store:
        store = opening(*arguments, **options)
        move_clock(store, days=1)
        return store

    monkeypatch.setattr(Store, "open", opened)


@pytest.fixture
def desk(reviewed: Path, tmp_path: Path) -> Iterator[ReviewedDesk]:
    shutil.copytree(reviewed, tmp_path / "desk")
    with at_desk(tmp_path / "desk") as opened:
        yield opened


@pytest.fixture(scope="module")
def done(reviewed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecalibrationResult]:
    """A folder in which a recalibration was made, and its result; tests only read it, or copy it."""
    folder = tmp_path_factory.mktemp("done") / "desk"
    shutil.copytree(reviewed, folder)
    with at_desk(folder) as opened:
        made = opened.recalibrate()
        assert opened.asked > 0
    return folder, made


@pytest.fixture
def again(done: tuple[Path, RecalibrationResult], tmp_path: Path) -> Iterator[ReviewedDesk]:
    """A copy of that folder."""
    shutil.copytree(done[0], tmp_path / "desk")
    with at_desk(tmp_path / "desk") as opened:
        yield opened


def test_verdicts_make_a_scorer_and_a_certificate_beside_those_in_use(
    reviewed: Path, done: tuple[Path, RecalibrationResult]
) -> None:
    folder, made = done
    assert made.is_certified
    assert made.certificate == folder / "new" / "certificate.json"
    certificate = load_certificates(made.certificate).by_route[None]
    assert certificate.fingerprint.own.scorer_sha256 == load_scorer(made.scorer).sha256
    assert made.calibration.fitted.metrics["guard"].auroc > 0.55
    with at_desk(folder) as opened:
        assert made.fitted_on + made.held_out + made.undrawn == len(list(opened.store.labelled()))
    assert (folder / "scorer.json").read_bytes() == (reviewed / "scorer.json").read_bytes()
    assert not (folder / "certificate.json").exists()
    assert not made.applied
    assert (folder / "new").stat().st_mode & 0o077 == 0, "it holds prompts and answers"


def test_no_question_fits_the_scorer_and_makes_the_certificate(done: tuple[Path, RecalibrationResult]) -> None:
    fit, held_out = (
        {question_identity(row) for path in (done[0] / "new").glob(name) for row in read_rows(path).rows}
        for name in ("reviewed-*.jsonl", "held-out-*.jsonl")
    )
    assert fit
    assert held_out
    assert not fit & held_out
    assert done[1].undrawn > 0, "an escalated answer to a held-out question that was not drawn"


def test_the_held_out_answers_are_as_the_traffic_although_the_verdicts_are_not(
    done: tuple[Path, RecalibrationResult],
) -> None:
    """Half of the accepted answers have a verdict and all of the escalated; in the sample both count the same."""
    folder, made = done
    with at_desk(folder) as opened:
        labels = list(opened.store.labelled())
    accepted = sum(doubt(question) < 0.5 for question in QUESTIONS) / len(QUESTIONS)
    assert sum(row["kind"] == "audit" for row in labels) / len(labels) < accepted - 0.1
    (change,) = made.changes
    share, low, high = change.present.coverage
    assert share == pytest.approx(accepted, abs=0.16), "four standard errors"
    assert low < share < high < low + 0.25
    assert not change.estimated
    assert change.answers_a_day == pytest.approx(len(QUESTIONS), rel=0.01), "all were asked within a day"
    assert change.present.escalations_a_day[0] == pytest.approx(len(QUESTIONS) * (1 - share), rel=0.01)


def test_what_would_change_is_what_the_new_files_decide(done: tuple[Path, RecalibrationResult]) -> None:
    folder, made = done
    (change,) = made.changes
    sample = [row for row in read_rows(folder / "new" / "held-out-0.jsonl").rows if isinstance(row, LabelledResponse)]
    with (
        at_desk(folder) as opened,
        Guard.load(
            "made",
            scorer=made.scorer,
            policy=folder / "desk.yaml",
            certificate=made.certificate,
            store=opened.store,
        ) as guarded,
    ):
        threshold = guarded.policy.plan().rules[0].below
        scores = [guarded.score(row.prompt, row.response).p_wrong for row in sample]
    accepted = [row for row, p_wrong in zip(sample, scores, strict=True) if p_wrong < threshold]
    assert change.sampled == len(sample)
    assert change.proposed.coverage[0] == len(accepted) / len(sample) > 0.2
    assert change.proposed.errors is not None
    share, low, high = change.proposed.errors
    assert share == sum(bool(row.wrong) for row in accepted) / len(accepted)
    assert low <= share < high


def test_with_apply_a_second_run_asks_nothing_and_the_policy_finds_the_same_files(
    reviewed: Path, again: ReviewedDesk
) -> None:
    files = {path.name: path.read_bytes() for path in (again.folder / "new").glob("*.json*")}
    made = again.recalibrate(apply=True)
    assert again.asked == 0
    assert {path.name: path.read_bytes() for path in (again.folder / "new").glob("*.json*")} == files
    assert made.applied
    assert (again.folder / "scorer.json").read_bytes() == files["scorer.json"]
    assert (again.folder / "certificate.json").read_bytes() == files["certificate.json"]
    before = again.folder / "new" / "before" / "scorer.json"
    assert before.read_bytes() == (reviewed / "scorer.json").read_bytes()
    with Guard.load("made", scorer=again.folder / "scorer.json", policy=again.folder / "desk.yaml", store=again.store):
        """The policy is accepted: its certificate fits the scorer in use."""
    events = [json.loads(entry.event) for entry in again.store.audit_log().entries()]
    switched = [event["subject"] for event in events if event.get("what") == "recalibrated"]
    assert switched == [load_scorer(made.scorer).sha256]


def test_a_guarantee_that_is_not_certifiable_switches_nothing(reviewed: Path, again: ReviewedDesk) -> None:
    strict = POLICY.replace("max_error_rate: 0.45, confidence: 0.6", "max_error_rate: 0.001, confidence: 0.99")
    (again.folder / "desk.yaml").write_text(strict)
    with pytest.raises(InputError, match="Nothing was switched"):
        again.recalibrate(apply=True)
    assert (again.folder / "scorer.json").read_bytes() == (reviewed / "scorer.json").read_bytes()
    assert not (again.folder / "certificate.json").exists()
    assert not (again.folder / "new" / "certificate.json").exists(), "that of the earlier guarantee is gone"


def test_verdicts_on_escalated_answers_alone_certify_nothing(desk: ReviewedDesk) -> None:
    """They say nothing about the answers that were accepted."""
    audits = [row["id"] for row in desk.store.labelled(kind="audit")]
    assert audits
    alone: dict[str, Any] = {"policy": parse_policy(POLICY.replace("name: desk", "name: other"))}
    with Store.open(desk.folder / "other.db") as other:
        with Guard(
            make_engine(),
            confidence_scorer(),
            parse_policy(BEFORE.replace("audit: {rate: 0.5}\n", "").replace("name: desk", "name: other")),
            store=other,
        ) as guarded:
            for number in range(120):
                guarded.ask(f"question {number}?", limits=Limits(max_tokens=8))
        decide_all(other)
        move_clock(other, days=1)
        with pytest.raises(InputError, match="no sample of the answers"):
            recalibrate(other, into=desk.folder / "alone", scorer=desk.folder / "scorer.json", model="made", **alone)


def test_policies_that_ask_again_are_refused_before_anything_is_asked(desk: ReviewedDesk) -> None:
    (desk.folder / "desk.yaml").write_text(
        POLICY.replace("rules:\n", "rules:\n").replace("  - escalate", "  - retry: {below: 0.6}\n  - escalate")
    )
    with pytest.raises(InputError, match="Verdicts certify nothing"):
        desk.recalibrate()
    assert desk.asked == 0


def test_policies_that_stop_answers_early_are_refused_before_anything_is_asked(desk: ReviewedDesk) -> None:
    """The new scorer has no early stages, and nobody has judged where they would stop an answer."""
    for text in (POLICY, BEFORE):
        write_policy(desk, text + "early: {above: 0.97, then: escalate}\n")
        with pytest.raises(InputError, match="stops answers early"):
            desk.recalibrate()
    assert desk.asked == 0


def test_a_new_scorer_that_lacks_what_the_policy_decides_on_is_not_switched_to(
    reviewed: Path, desk: ReviewedDesk
) -> None:
    write_policy(desk, BEFORE + "spans: {above: 0.8, then: cut}\n")
    with pytest.raises(ScorerError, match="decides on spans"):
        desk.recalibrate(apply=True)
    assert (desk.folder / "scorer.json").read_bytes() == (reviewed / "scorer.json").read_bytes()


def test_verdicts_on_answers_of_another_model_are_refused(desk: ReviewedDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old labels alone could fit the scorer, and the verdicts would be counted although they are not used."""
    write_policy(desk, BEFORE)
    rows = [
        {"id": str(number), "prompt": each, "response": "yes", "label": int(is_wrong(each))}
        for number, each in enumerate(f"old {number}?" for number in range(200))
    ]
    old = desk.folder / "old.jsonl"
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for module in (guard.engines, guard.runtime.guard):
        monkeypatch.setattr(module, "load_engine", lambda *_, **__: make_engine(name="another"))
    with pytest.raises(InputError, match="answers of scripted, not of made"):
        desk.recalibrate(data=[old], apply=True)


def test_the_files_in_use_are_kept_however_often_they_are_replaced(again: ReviewedDesk) -> None:
    used, before = again.folder / "certificate.json", again.folder / "new" / "before"
    used.write_text("the first")
    again.recalibrate(apply=True)
    second = used.read_bytes()
    write_policy(again, POLICY.replace("confidence: 0.6", "confidence: 0.61"))
    again.recalibrate(apply=True)
    assert used.read_bytes() != second
    assert (before / "certificate.json").read_text() == "the first"
    assert second in [path.read_bytes() for path in before.glob("certificate-*.json")]


def test_questions_of_the_old_labels_are_in_no_certificate(desk: ReviewedDesk) -> None:
    rows = list(desk.store.labelled())[:150]
    old = desk.folder / "old.jsonl"
    old.write_text("".join(json.dumps({**row, "weight": 1}) + "\n" for row in rows))
    made = desk.recalibrate(data=[old])
    known = {question_identity(row) for row in read_rows(old).rows}
    assert made.known >= len(rows)
    held_out = {question_identity(row) for row in read_rows(desk.folder / "new" / "held-out-0.jsonl").rows}
    assert not known & held_out
    assert {each.name for each in made.calibration.fitted.scorer.artefact.data} >= {"old"}


def test_labels_that_were_taken_with_other_options_are_not_used(again: ReviewedDesk) -> None:
    with pytest.raises(InputError, match="taken with other options"):
        again.recalibrate(since="7d")


def test_a_policy_without_a_guarantee_gets_a_scorer_and_the_same_comparison(desk: ReviewedDesk) -> None:
    policy = write_policy(desk, BEFORE)
    assert not guarantees(policy)
    made = desk.recalibrate(apply=True)
    assert made.applied
    assert made.certificate is None
    (change,) = made.changes
    assert change.proposed.coverage[0] == pytest.approx(change.present.coverage[0], abs=0.25)


@pytest.mark.usefixtures("a_day_later")
def test_labels_that_are_not_used_are_not_counted_and_are_shown(desk: ReviewedDesk) -> None:
    write_policy(desk, BEFORE)
    old = desk.folder / "old.jsonl"
    row = {"prompt": "old?", "response": "yes", "label": 1}
    old.write_text("".join(json.dumps({**row, "id": name, "model": name}) + "\n" for name in ("another", "scripted")))
    arguments = ["recalibrate", "--policy", str(desk.folder / "desk.yaml"), "--into", str(desk.folder / "new")]
    arguments += ["--scorer", str(desk.folder / "scorer.json"), "--store", str(desk.folder / "reviews.db")]
    arguments += ["--model", "made", "--data", str(old), "--limit", "180"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert shown.startswith("180 new labels fit the scorer"), shown
    assert "left out 1 responses of another model, another" in shown


def write_policy(desk: ReviewedDesk, text: str) -> Any:
    (desk.folder / "desk.yaml").write_text(text)
    return load_policy(desk.folder / "desk.yaml")


def test_a_folder_in_which_the_new_files_would_replace_those_in_use_is_refused(
    reviewed: Path, desk: ReviewedDesk
) -> None:
    """Before, `--into .` wrote over the scorer in use, without --apply."""
    with pytest.raises(InputError, match=r"scorer\.json would take the place of"):
        desk.recalibrate(into=".")
    moved = desk.folder / "scorers"
    moved.mkdir()
    shutil.move(desk.folder / "scorer.json", moved / "mine.json")
    (desk.folder / "certificate.json").write_text("in use")
    with pytest.raises(InputError, match=r"certificate\.json would take the place of"):
        desk.recalibrate(into=".", scorer=moved / "mine.json")
    assert (desk.folder / "certificate.json").read_text() == "in use"
    assert (moved / "mine.json").read_bytes() == (reviewed / "scorer.json").read_bytes()


def test_a_scorer_that_has_changed_since_is_not_replaced(again: ReviewedDesk) -> None:
    """What the first run has shown was about the scorer of that time."""
    other = confidence_scorer().artefact.model_copy(update={"seed": 77})
    Scorer(other).save(again.folder / "scorer.json")
    content = (again.folder / "scorer.json").read_bytes()
    with pytest.raises(InputError, match="not the one for which"):
        again.recalibrate(apply=True)
    assert (again.folder / "scorer.json").read_bytes() == content


def test_switching_twice_is_switching_once(again: ReviewedDesk) -> None:
    again.recalibrate(apply=True)
    files = {path.name: path.read_bytes() for path in (again.folder / "new" / "before").iterdir()}
    entries = len(again.store.audit_log())
    assert again.recalibrate(apply=True).applied
    assert {path.name: path.read_bytes() for path in (again.folder / "new" / "before").iterdir()} == files
    assert len(again.store.audit_log()) == entries


def test_a_switch_that_was_interrupted_is_completed_by_the_next(again: ReviewedDesk) -> None:
    """Killed between the two files: the new scorer is in use, the certificate is not, and the policy is refused."""
    used = again.folder / "certificate.json"
    again.recalibrate(apply=True)
    certificate = used.read_bytes()
    used.unlink()
    assert again.recalibrate(apply=True).applied
    assert used.read_bytes() == certificate
    assert again.asked == 0


def test_nothing_is_switched_where_one_of_the_files_cannot_be_written(reviewed: Path, again: ReviewedDesk) -> None:
    with pytest.raises(InputError, match="Cannot write the certificate"):
        again.recalibrate(apply=True, certificate=again.folder / "missing" / "certificate.json")
    assert (again.folder / "scorer.json").read_bytes() == (reviewed / "scorer.json").read_bytes()


def test_a_store_without_verdicts_of_the_policy_says_so(desk: ReviewedDesk) -> None:
    write_policy(desk, BEFORE.replace("name: desk", "name: another"))
    with pytest.raises(InputError, match="no final verdicts on answers of the policy 'another'"):
        desk.recalibrate()
    assert not (desk.folder / "new" / "taken.json").exists()


def test_verdicts_on_other_routes_alone_are_refused(again: ReviewedDesk) -> None:
    labels = again.folder / "new" / "labels.jsonl"
    rows = [{**json.loads(line), "route": "clinic"} for line in labels.read_text().splitlines()]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_policy(again, BEFORE)
    with pytest.raises(InputError, match="they are on the route 'clinic'"):
        again.recalibrate()


def test_without_a_verdict_for_the_scorer_old_labels_are_needed(again: ReviewedDesk) -> None:
    """Audits all stand for the same number of answers, so a share of nearly all holds all of them out."""
    labels = again.folder / "new" / "labels.jsonl"
    rows = [row for line in labels.read_text().splitlines() if (row := json.loads(line))["kind"] == "audit"]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_policy(again, BEFORE)
    with pytest.raises(InputError, match="No verdict is left to fit the scorer"):
        again.recalibrate(share=1 - 1e-9)


@pytest.mark.parametrize("right", [True, False])
def test_verdicts_that_all_say_the_same_fit_nothing_and_switch_nothing(
    reviewed: Path, again: ReviewedDesk, right: bool
) -> None:
    labels = again.folder / "new" / "labels.jsonl"
    rows = [{**json.loads(line), "label": int(not right)} for line in labels.read_text().splitlines()]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CalibrationError, match="right and"):
        again.recalibrate(apply=True)
    assert (again.folder / "scorer.json").read_bytes() == (reviewed / "scorer.json").read_bytes()
    assert not (again.folder / "certificate.json").exists()


@pytest.mark.parametrize("content", ["{", '{"prompt": "a question without an answer"}\n', "[1]\n"])
def test_labels_that_were_damaged_are_refused(again: ReviewedDesk, content: str) -> None:
    (again.folder / "new" / "labels.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"labels\.jsonl"):
        again.recalibrate()


def test_an_edited_answer_is_the_label_of_the_models_own(desk: ReviewedDesk) -> None:
    """What a reviewer wrote in its place is no answer of the model; the later of two verdicts on an answer counts."""
    (desk.folder / "new").mkdir()
    strict = parse_policy(BEFORE.replace("below: 0.5", "below: 0.01"))
    for draft in ("right", "wrong"):
        with Guard(make_engine(), confidence_scorer(), strict, store=desk.store) as guarded:
            outcome = guarded.ask("a question that is edited", limits=Limits(max_tokens=8))
        desk.store.edit(outcome.decision_id, answer="Better.", draft=draft, reviewer="ann")
        move_clock(desk.store, days=2 if draft == "right" else 3)
    taking: dict[str, Any] = {"policy": "desk", "since": None, "labels_of": None, "scorer_sha256": "0" * 64}
    answers, traffic = take_labels(desk.store, desk.folder / "new", **taking)
    (edited,) = [each for each in answers if "edited" in str(each.content["prompt"])]
    assert (edited.row.response, edited.row.wrong, edited.content["better"]) == ("yes", True, "Better.")
    assert traffic.contradicted == 1


def test_the_shipped_scorer_cannot_be_replaced(desk: ReviewedDesk) -> None:
    with pytest.raises(InputError, match="no scorer file to replace"):
        desk.recalibrate(scorer=None, model="smollm2", apply=True)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_shares_out_of_range_are_refused(desk: ReviewedDesk, share: float) -> None:
    with pytest.raises(InputError, match="share must be"):
        desk.recalibrate(share=share)


def test_an_answer_that_stands_for_two_is_held_out_twice_as_often() -> None:
    """No keys and ids are drawn here: a quarter of the questions with weight 1, half of those with weight 2."""
    rows = [
        LabelledResponse(str(number), Prompt.chat(f"Question {number}?"), "yes", False, weight=1.0 + number % 2)
        for number in range(4000)
    ]
    (held_out,) = divide([JudgedAnswer({"route": None}, row) for row in rows], share=0.5).held_out.values()
    counts = Counter(each.row.weight for each in held_out)
    assert counts[1.0] == pytest.approx(500, abs=100)
    assert counts[2.0] == pytest.approx(1000, abs=100)


def test_a_draw_does_not_depend_on_other_answers(desk: ReviewedDesk) -> None:
    (desk.folder / "new").mkdir()
    taking: dict[str, Any] = {"policy": "desk", "since": None, "labels_of": None, "scorer_sha256": "0" * 64}
    answers, _ = take_labels(desk.store, desk.folder / "new", **taking)
    whole, part = divide(answers), divide(answers[::2])
    among = {each.row.id for each in answers[::2]}
    drawn = {each.row.id for each in whole.held_out[None]} & among
    assert {each.row.id for each in part.held_out[None]} == drawn


@pytest.mark.usefixtures("a_day_later")
def test_the_command_shows_what_changes_and_what_is_in_use(again: ReviewedDesk) -> None:
    arguments = ["recalibrate", "--policy", str(again.folder / "desk.yaml"), "--into", str(again.folder / "new")]
    arguments += ["--scorer", str(again.folder / "scorer.json"), "--store", str(again.folder / "reviews.db")]
    arguments += ["--model", "made"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "Nothing in use has changed" in shown.output
    assert "recalibrated" in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--apply", "--json"], catch_exceptions=False).stdout)
    assert differences(found, documented("guard recalibrate --json")) == []
    assert found["certified"]
    assert found["applied"]
    assert found["changes"][0]["proposed"]["coverage"][0] > 0
