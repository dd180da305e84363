"""From labelled spans to a scorer that scores them: fitted, tested on held-out answers, saved, used."""

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
pytest.importorskip("sentencex")

from scripted import AnsweringEngine, confidence_scorer
from span_rows import answer_lines, country_engine, country_rows, write_rows
from typer.testing import CliRunner

import guard
from guard import Limits, engines
from guard.calibration.span_fit import SpanExamples, fit_span_model, within_answers
from guard.cli import app
from guard.errors import CalibrationError, InputError, ScorerMismatchError
from guard.policy.policy import parse_policy
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.span_scores import p_wrong

POLICY = "version: 1\nname: m\nrules: [{accept: {below: 0.99}}, abstain]\nspans: {above: 0.5, then: mark}\n"


def examples(count: int = 300, *, seed: int = 0, signal: float = 2.0) -> SpanExamples:
    """Spans of answers of five, whose first column tells of the label."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(count) < 0.3
    columns = rng.normal(size=(count, 3)) + signal * wrong[:, None] * [1, 0, 0]
    return SpanExamples(columns, wrong, (np.arange(count) // 5).astype(np.str_))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[AnsweringEngine], None]:
    """Let every model be this engine."""

    def put(engine: AnsweringEngine) -> None:
        monkeypatch.setattr(engines, "load_engine", lambda model, **options: engine)

    return put


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    confidence_scorer().save(tmp_path / "scorer.json")
    rows = write_rows(tmp_path / "spans.jsonl", country_rows())
    return {"scorer": tmp_path / "scorer.json", "spans": rows, "out": tmp_path / "out.json"}


# -- fitting -----------------------------------------------------------------------------------


def test_probabilities_are_calibrated_on_answers_that_were_held_out() -> None:
    model = fit_span_model(examples(2000), data=[], max_tokens=100)
    fresh = examples(4000, seed=1)
    found = p_wrong(model, fresh.columns)
    assert model.metrics["auroc"] == pytest.approx(0.92, abs=0.03)  # of two normals two deviations apart
    assert found.mean() == pytest.approx(fresh.wrong.mean(), abs=0.03)
    high = found > 0.7
    assert fresh.wrong[high].mean() == pytest.approx(found[high].mean(), abs=0.05)


def test_columns_without_signal_are_refused() -> None:
    with pytest.raises(CalibrationError):
        fit_span_model(examples(400, signal=0.0), data=[], max_tokens=100)


@pytest.mark.parametrize("change", ["few", "right", "one answer"])
def test_too_few_labels_are_refused(change: str) -> None:
    found = examples(40 if change == "few" else 100)
    if change == "right":
        found = SpanExamples(found.columns, np.zeros(100, np.bool_), found.answer)
    if change == "one answer":
        found = SpanExamples(found.columns, found.wrong, np.full(100, "a"))
    with pytest.raises(CalibrationError, match="Too few labels to fit a model of spans"):
        fit_span_model(found, data=[], max_tokens=100)


def test_ranks_within_answers_are_counted_by_hand() -> None:
    found = SpanExamples(
        np.zeros((6, 3)), np.array([True, False, False, True, False, False]), np.array([*"aaabbc"], np.str_)
    )
    scores = np.array([0.5, 0.5, 0.9, 0.8, 0.1, 1.0])
    # Pairs: a has (.5, .5) half and (.5, .9) none, b has (.8, .1); of a the top span is right, of b wrong.
    assert within_answers(scores, found) == {"auroc_within": 0.5, "top_1": 0.5, "top_1_chance": pytest.approx(5 / 12)}
    alike = SpanExamples(np.zeros((2, 3)), np.array([True, True]), np.array(["a", "a"]))
    assert within_answers(np.zeros(2), alike)["auroc_within"] is None


# -- the whole way -----------------------------------------------------------------------------


def test_a_scorer_gets_a_model_of_spans_and_a_guard_uses_it(
    files: dict[str, Path], loads: Callable[[AnsweringEngine], None]
) -> None:
    loads(country_engine())
    found = guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"], system="Be exact.")
    saved, fitted = load_scorer(files["out"]), found.scorer.artefact.spans
    assert saved.artefact.spans == fitted
    assert fitted is not None
    assert (fitted.answers, fitted.spans, found.unlabelled) == (40, 120, 0)
    assert fitted.wrong == sum(wrong for number in range(40) for _, _, wrong, _ in answer_lines(number))
    assert fitted.metrics["auroc_within"] > 0.75
    kept = (each.artefact.model_dump()["scores"] for each in (saved, load_scorer(files["scorer"])))
    assert next(kept) == next(kept)
    answered = guard.Guard(country_engine(), saved, parse_policy(POLICY)).ask(
        "Facts about country 3:", limits=Limits(max_tokens=99)
    )
    assert answered.spans is not None
    unsure = [unsure for *_, unsure in answer_lines(3)]
    assert [span.p_wrong > 0.5 for span in answered.spans] == unsure


def test_given_answers_are_read_and_their_marks_are_labels(
    files: dict[str, Path], loads: Callable[[AnsweringEngine], None]
) -> None:
    engine = country_engine()
    loads(engine)
    texts = [f"Capital: Arl{number}\nFounded: {3000 + number}" for number in range(40)]
    rows = [
        {"question": "q", "response": text, "spans": [{"start": 0, "end": 3, "wrong": False}], "equations": False}
        for text in texts
    ]
    write_rows(files["spans"], rows)
    with pytest.raises(CalibrationError, match="40 labelled spans of 40 answers, 0 of them wrong"):
        guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"])
    assert engine.asked  # the model reads them


def test_responses_of_another_model_are_refused_before_anything_is_asked(
    files: dict[str, Path], loads: Callable[[AnsweringEngine], None], tmp_path: Path
) -> None:
    engine = country_engine()
    loads(engine)
    marked = {"response": "Oslo", "spans": [{"start": 0, "end": 4, "wrong": False}]}
    write_rows(files["spans"], [{"question": "q", **marked}, {"prompt": "q", "model": "other", **marked}])
    with pytest.raises(InputError, match=r"responses of another model: other.*this is scripted"):
        guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"])
    questions = [{"id": str(at), "question": f"What is {at}?", "answers": ["a"]} for at in range(200)]
    data = write_rows(tmp_path / "q.jsonl", questions)
    with pytest.raises(InputError, match="responses of another model: other"):
        guard.calibrate(data, spans=files["spans"], out=files["out"])
    assert not engine.asked


def interrupted(after: int) -> Callable[[guard.Progress], None]:
    """A progress callback that ends the run once some questions are done."""

    def progress(step: guard.Progress) -> None:
        if step.done == after:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_asks_nothing_twice_and_makes_the_same_file(
    files: dict[str, Path], loads: Callable[[AnsweringEngine], None], tmp_path: Path
) -> None:
    loads(first := country_engine())
    with pytest.raises(KeyboardInterrupt):
        guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"], progress=interrupted(15))
    assert len(first.asked) == 15
    loads(second := country_engine())
    made = guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"])
    assert len(second.asked) == 25
    loads(whole := country_engine())
    guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=tmp_path / "whole.json")
    assert len(whole.asked) == 40
    assert files["out"].read_bytes() == (tmp_path / "whole.json").read_bytes()
    rows = [{**row, "claims": row["claims"][:1]} for row in country_rows()]
    write_rows(files["spans"], rows)
    loads(again := country_engine())
    other = guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"])
    assert not again.asked, "other labels of the same questions need no answer"
    assert other.unlabelled > made.unlabelled


def test_a_journal_of_another_run_and_a_damaged_one_are_refused(
    files: dict[str, Path], loads: Callable[[AnsweringEngine], None], tmp_path: Path
) -> None:
    journal = tmp_path / "j"
    loads(country_engine())
    guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"], journal=journal)
    with pytest.raises(InputError, match=r"holds the answers of another run.*max_tokens"):
        guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"], journal=journal, max_tokens=9)
    for content in ("{}", "[", "5"):
        with contextlib.closing(sqlite3.connect(journal)) as db, db:
            db.execute("UPDATE kept SET content = ?", (content,))
        with pytest.raises(InputError, match="is damaged"):
            guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"], journal=journal)


def test_another_models_scorer_is_refused(files: dict[str, Path], loads: Callable[[AnsweringEngine], None]) -> None:
    from scripted import scripted_model

    loads(AnsweringEngine(lambda prompt, number: ("a", 0.1), model=scripted_model(weights_sha256="e" * 64)))
    with pytest.raises(ScorerMismatchError):
        guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"])


def test_base_models_are_refused(files: dict[str, Path]) -> None:
    artefact = confidence_scorer().artefact
    prompting = artefact.prompting.model_copy(update={"completion": True})
    Scorer(artefact.model_copy(update={"prompting": prompting})).save(files["scorer"])
    with pytest.raises(InputError, match="base model"):
        guard.calibrate_spans(files["spans"], scorer=files["scorer"], out=files["out"])


def test_the_command_adds_spans_and_the_shelf_shows_them(
    files: dict[str, Path], loads: Callable[[AnsweringEngine], None]
) -> None:
    loads(country_engine())
    run = CliRunner()
    asked = ["calibrate", "--spans", files["spans"], "--scorer", files["scorer"], "--out", files["out"]]
    found = run.invoke(app, [*map(str, asked), "--json"])
    assert found.exit_code == 0, found.output
    facts: dict[str, Any] = json.loads(found.stdout)
    assert (facts["spans"], facts["answers"], facts["unlabelled"]) == (120, 40, 0)
    assert "120 labelled spans of 40 answers" in run.invoke(app, [*map(str, asked)]).output
    shown = run.invoke(app, ["scorers", "check", str(files["out"])], env={"COLUMNS": "200"})
    assert "spans, on held-out answers: AUROC" in shown.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scorer", "SCORER"], "--spans FILE"),
        (["--scorer", "SCORER", "--spans", "SPANS", "--seed", "3"], "--seed does not go with --scorer"),
        (["--records", "SCORER", "--spans", "SPANS"], "--spans does not go with --records"),
        (["--spans", "SPANS"], "nothing to fit on"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options: list[str], says: str, files: dict[str, Path]) -> None:
    names = {"SCORER": str(files["scorer"]), "SPANS": str(files["spans"])}
    found = CliRunner().invoke(app, ["calibrate", "--out", str(files["out"]), *(names.get(o, o) for o in options)])
    assert found.exit_code != 0
    assert says in " ".join(str(found.exception or "").split()) or says in " ".join(found.output.split())
