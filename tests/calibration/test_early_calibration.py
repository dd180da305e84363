"""From labelled questions to a scorer with early stages: calibrated, saved, used, and not certified on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

from scipy.special import expit
from scripted import AnsweringEngine, confidence_scorer, with_early
from typer.testing import CliRunner

import guard
from guard import engines
from guard.calibration.early_fit import GrownAnswers, fit_early, savings
from guard.calibration.fresh import fresh_rows
from guard.cli import app
from guard.data.question_sets import read_sets
from guard.errors import CalibrationError, InputError, ScorerError
from guard.policy.certificate import CertificateError
from guard.records import Prompt
from guard.scoring.scorer import Scorer, load_scorer

POLICY = "version: 1\nname: m\nrules: [{accept: {below: 0.999}}, abstain]\nearly: {above: 0.9, then: abstain}\n"
RIGHT, WRONG = "Paris is right", "Lyon, surely"


def staged(count: int = 400, *, signal: float = 2.0, seed: int = 0) -> GrownAnswers:
    """Answers of 3 to 12 tokens, whose log-odds tell of the label, too surely by a factor of two."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(count) < 0.6
    tokens = rng.integers(3, 13, count)
    log_odds = 2.0 * signal * (np.where(wrong, 1.0, -1.0) + rng.normal(size=count))
    columns = {at: {"guard": np.where(tokens > at, log_odds, np.nan)} for at in (1, 4, 8)}
    return GrownAnswers(tokens, wrong, expit(log_odds), columns)  # type: ignore[arg-type]


# -- fitting -----------------------------------------------------------------------------------


def test_each_stage_is_calibrated_on_the_answers_that_are_longer() -> None:
    answers = staged(3000)
    early = fit_early(answers, data=[], max_tokens=16)
    assert [stage.tokens for stage in early.stages] == [1, 4, 8]
    assert [stage.answers for stage in early.stages] == [int((answers.tokens > at).sum()) for at in (1, 4, 8)]
    for stage in early.stages:
        assert stage.metrics["guard"]["ece"] < 0.05
        assert stage.metrics["guard"]["auroc"] == pytest.approx(0.92, abs=0.03)  # of two normals two deviations apart


def test_a_stage_that_few_answers_reach_is_left_out() -> None:
    assert [stage.tokens for stage in fit_early(staged(100), data=[], max_tokens=16).stages] == [1, 4]


@pytest.mark.parametrize("answers", [staged(50), staged(400, signal=0.0)], ids=["few", "no signal"])
def test_without_labels_or_signal_there_are_no_stages(answers: GrownAnswers) -> None:
    if len(answers) == 400:
        found = {at: {"guard": np.zeros(400)} for at in answers.so_far}
        answers = GrownAnswers(answers.tokens, answers.wrong, answers.whole, found)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="No early stage could be calibrated"):
        fit_early(answers, data=[], max_tokens=16)


def test_what_stopping_saves_is_counted_by_hand() -> None:
    # Of ten tokens each; the half that is wrong is sure to be, after two tokens.
    wrong = np.arange(200) % 2 == 0
    sure = np.where(wrong, 20.0, -20.0)
    answers = GrownAnswers(np.full(200, 10), wrong, np.where(wrong, 0.9, 0.1), {2: {"guard": sure}})
    for each in savings(answers, "guard"):
        assert (each.saved, each.stopped, each.right_stopped) == (0.4, 0.5, 0.0)
        assert (each.surer, each.surer_stopped) == (100, 0)


def test_a_right_answer_that_is_stopped_is_counted_as_lost() -> None:
    wrong = np.arange(400) >= 20  # a right answer in twenty, which no score tells from the others, ...
    sure = np.where(np.arange(400) % 2 == 0, 20.0, np.where(wrong, 20.0, -20.0))  # ... at least not every second one
    answers = GrownAnswers(np.full(400, 10), wrong, np.where(wrong, 0.9, 0.1), {2: {"guard": sure}})
    lowest = savings(answers, "guard")[0]
    assert (lowest.right_stopped, lowest.surer, lowest.surer_stopped) == (0.5, 20, 10)


# -- the whole way -----------------------------------------------------------------------------


def script(prompt: Prompt, number: int) -> tuple[str, float]:
    """Surely right, or likely wrong: of the questions with an odd number, nine in ten."""
    at = int(prompt.question.split()[-1].rstrip("?"))
    sure = at % 2 == 0
    return (RIGHT if sure != (at % 10 == 3 or at % 10 == 4) else WRONG, 0.1 if sure else 0.9)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(engines, "load_engine", lambda model, **options: AnsweringEngine(script))
    confidence_scorer().save(tmp_path / "scorer.json")
    rows = [{"id": str(at), "question": f"What is {at}?", "answers": [RIGHT]} for at in range(160)]
    (tmp_path / "fresh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return {name: tmp_path / f"{name}.json" for name in ("scorer", "out")} | {"data": tmp_path / "fresh.jsonl"}


def test_a_scorer_gets_stages_and_a_guard_stops_by_them(files: dict[str, Path]) -> None:
    found = guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"])
    early = load_scorer(files["out"]).artefact.early
    assert early == found.scorer.artefact.early
    assert early is not None
    assert (early.answers, [stage.tokens for stage in early.stages], found.left_out) == (160, [1, 2, 4, 8], ())
    assert early.stages[0].calibrations.keys() == {"guard", "log-probabilities"}
    assert early.data[0].wrong == sum(script(Prompt.raw(f"What is {at}?"), 0)[0] == WRONG for at in range(160))
    rules = guard.parse_policy(POLICY.replace("0.9,", "0.7,"))
    made = guard.Guard(AnsweringEngine(script), load_scorer(files["out"]), rules)
    assert made.ask("What is 1?").attempts[0].finish_reason == "early"
    assert made.ask("What is 2?").answer == RIGHT


def test_the_same_labels_give_the_same_file(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interrupted_run_asks_nothing_twice_and_makes_the_same_file(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[AnsweringEngine] = []

    def load(model: str, **options: Any) -> AnsweringEngine:
        asked.append(AnsweringEngine(script))
        return asked[-1]

    def stop(step: guard.Progress) -> None:
        if step.done == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(engines, "load_engine", load)
    with pytest.raises(KeyboardInterrupt):
        guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"], progress=stop)
    guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"])
    guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=tmp_path / "whole.json")
    first, second, whole = (len(engine.asked) for engine in asked)
    assert (second, whole) == (120, 160)
    assert first >= 40
    assert files["out"].read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_journal_of_another_scorer_and_a_damaged_one_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    journal = tmp_path / "j"
    guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"], journal=journal)
    other = tmp_path / "other.json"
    Scorer(confidence_scorer().artefact.model_copy(update={"seed": 7})).save(other)
    with pytest.raises(InputError, match=r"holds the answers of another run.*scorer"):
        guard.calibrate_early(str(files["data"]), scorer=other, out=files["out"], journal=journal)
    for content in ("{}", "[", "5", '{"text": "", "tokens": 1, "whole": 0.5, "stages": []}'):
        with contextlib.closing(sqlite3.connect(journal)) as db, db:
            db.execute("UPDATE kept SET content = ?", (content,))
        with pytest.raises(InputError, match="is damaged"):
            guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"], journal=journal)


def test_nothing_is_certified_on_the_questions_of_the_stages(files: dict[str, Path]) -> None:
    found = guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"])
    sources = read_sets(str(files["data"]))
    assert fresh_rows(sources, found.scorer) == (
        [],
        ["all questions of fresh, on which the scorer's early stages were fitted"],
    )
    assert len(fresh_rows(sources, load_scorer(files["scorer"]))[0]) == 160


def test_a_policy_that_stops_early_is_certified_as_a_whole_and_runs_with_its_certificate(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.runtime.guard.load_engine", lambda model, **options: AnsweringEngine(script))
    guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"])
    rows = [{"id": str(at), "question": f"What is {at}?", "answers": [RIGHT]} for at in range(1000, 1400)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = "rules: [{accept: {max_error_rate: 0.35, confidence: 0.9}}, abstain]"
    stopping = guard.parse_policy(f"version: 1\nname: m\n{rules}\nearly: {{above: 0.7, then: abstain}}\n")
    asking = {"scorer": files["out"], "out": tmp_path / "certificate.json"}
    found = guard.certify(str(tmp_path / "other.jsonl"), policy=stopping, **asking)
    assert found.certificate is not None
    made = guard.Guard(
        AnsweringEngine(script), load_scorer(files["out"]), stopping, certificate=tmp_path / "certificate.json"
    )
    assert made.ask("What is 1001?").attempts[0].finish_reason == "early"
    assert made.ask("What is 1002?").answer == RIGHT
    other = guard.parse_policy(f"version: 1\nname: m\n{rules}\nearly: {{above: 0.8, then: abstain}}\n")
    with pytest.raises(CertificateError, match="early"):
        guard.Guard(
            AnsweringEngine(script), load_scorer(files["out"]), other, certificate=tmp_path / "certificate.json"
        )


def test_stages_can_be_fitted_again(files: dict[str, Path], tmp_path: Path) -> None:
    guard.calibrate_early(str(files["data"]), scorer=files["scorer"], out=files["out"])
    again = guard.calibrate_early(str(files["data"]), scorer=files["out"], out=tmp_path / "again.json")
    assert again.scorer.sha256 == load_scorer(files["out"]).sha256


def test_given_responses_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text(json.dumps({"id": "a", "prompt": "Why?", "response": "So.", "wrong": True}) + "\n")
    with pytest.raises(InputError, match="is a given response, and early stages"):
        guard.calibrate_early(str(given), scorer=files["scorer"], out=files["out"])


# -- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda early: early["stages"].reverse(),
        lambda early: early["stages"][0].update(tokens=early["stages"][1]["tokens"]),
        lambda early: early["stages"][0]["calibrations"].update(ilis={"slope": 1.0, "intercept": 0.0}),
        lambda early: early["stages"][0]["calibrations"]["guard"].update(slope=-1.0),
        lambda early: early["stages"].clear(),
    ],
    ids=["order", "twice", "other score", "slope", "none"],
)
def test_stages_that_make_no_sense_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with_early(confidence_scorer()).save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    change(content["early"])
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ScorerError):
        load_scorer(tmp_path / "s.json")


def test_a_scorer_without_stages_does_not_speak_of_them(tmp_path: Path) -> None:
    confidence_scorer().save(tmp_path / "s.json")
    assert "early" not in json.loads((tmp_path / "s.json").read_text())


# -- the command -------------------------------------------------------------------------------


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def test_the_command_shows_stages_and_savings(files: dict[str, Path]) -> None:
    found = run("--early", "--scorer", files["scorer"], "--data", files["data"], "--out", files["out"])
    assert found.exit_code == 0, found.output
    said = " ".join(found.stdout.split())
    assert "after 1 token, on held-out answers: AUROC" in said
    assert "after 4 tokens, on held-out answers: AUROC" in said
    assert "tokens saved" in said
    as_json = run("--early", "--scorer", files["scorer"], "--data", files["data"], "--out", files["out"], "--json")
    content = json.loads(as_json.stdout)
    assert [stage["tokens"] for stage in content["stages"]] == [1, 2, 4, 8]
    assert [each["above"] for each in content["savings"]] == [0.9, 0.95, 0.97, 0.99]
    shown = CliRunner().invoke(app, ["scorers", "check", str(files["out"]), "--json"])
    assert json.loads(shown.stdout)["early"]["stages"] == content["stages"]


def test_the_command_names_what_it_left_out(files: dict[str, Path]) -> None:
    rows = files["data"].read_text()
    files["data"].write_text(rows + json.dumps({"id": "again", "question": "what is 7?", "answers": [RIGHT]}) + "\n")
    found = run("--early", "--scorer", files["scorer"], "--data", files["data"], "--out", files["out"])
    assert "left out 1 repeated questions: repeats are not fresh evidence" in " ".join(found.stdout.split())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "--early needs a scorer and fresh questions"),
        (("--scorer", "s.json"), "--early needs a scorer and fresh questions"),
        (("--scorer", "s.json", "--data", "d.jsonl", "--tau", "2"), "--tau does not go with --early"),
        (("--scorer", "s.json", "--data", "d.jsonl", "--spans", "x.jsonl"), "--spans does not go with --early"),
    ],
)
def test_options_that_mean_nothing_beside_it_are_refused(tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    found = run("--early", "--out", tmp_path / "o.json", *more)
    assert isinstance(found.exception, InputError)
    assert words in str(found.exception)
