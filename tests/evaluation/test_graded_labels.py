"""Labels between right and wrong: from a grader or a file through records and fits to measures, and where they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("lightgbm")

from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import LAYERS, AnsweringEngine, layers_of, scripted_model

import guard
from guard.calibration.fitting import Examples, fit_model, schema_for
from guard.data.answers import Answers, concatenate
from guard.data.labelling import is_wrong
from guard.data.questions import LabelledResponse, Question, Row
from guard.data.recording import Journal, Run, record_rows
from guard.errors import InputError
from guard.evaluation.measures import AUGRC, AUPRC_WRONG, AURC, AUROC, BRIER, ECE, HALF_PRR, PRR, coverage_at
from guard.evaluation.methods import methods_for
from guard.evaluation.predictions import LEAVE_ONE_OUT, predictions_from_json, predictions_to_json
from guard.evaluation.protocol import leave_one_dataset_out
from guard.records import Prompt
from guard.scoring.labels import are_graded
from guard.scoring.metrics import Ranked, compute_metrics

RUN = Run(model=scripted_model(), capture_point="mlp", system="", max_tokens=20)

#: Methods of each kind that are fitted in no time.
CHEAP = {"log-probabilities", "text only", "question category", "linear probe", "least token probability, unfitted"}
#: Scores with ties, and labels in tenths.
GRADED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10)), min_size=2, max_size=12).filter(
    lambda rows: 0 < sum(label for _, label in rows) < 10 * len(rows)
)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score / 5 for score, _ in rows]), np.array([label / 10 for _, label in rows])


# -- measures ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(GRADED)
def test_a_graded_answer_counts_as_its_shares_of_right_and_wrong_ones(rows: list[tuple[int, int]]) -> None:
    """As if each answer were there ten times, as often wrong as its label says."""
    p_wrong, graded = arrays(rows)
    ten = np.repeat(p_wrong, 10)
    wrong = np.concatenate([np.arange(10) < label for _, label in rows])
    for measure in (AUROC, AUPRC_WRONG, BRIER, coverage_at(0.25)):
        assert measure.value(p_wrong, graded) == pytest.approx(measure.value(ten, wrong)), measure.name
    assert compute_metrics(p_wrong, graded).auroc == pytest.approx(AUROC.value(ten, wrong))


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(11)), st.permutations(range(11)))
def test_rejection_by_a_graded_score_is_the_mean_label_of_the_kept(order: list[int], labels: list[int]) -> None:
    p_wrong, graded = np.array(order) / 10, np.array(labels) / 10
    kept = graded[np.argsort(p_wrong)]

    def area(values: np.ndarray, begin: int) -> float:
        return float(np.mean([values[:k].mean() for k in range(begin, 12)]))

    best = np.sort(graded)
    assert AURC.value(p_wrong, graded) == pytest.approx(area(kept, 1))
    for measure, begin in ((PRR, 1), (HALF_PRR, 6)):
        expected = (graded.mean() - area(kept, begin)) / (graded.mean() - area(best, begin))
        assert measure.value(p_wrong, graded) == pytest.approx(expected), measure.name
    assert AUGRC.value(p_wrong, graded) == pytest.approx(np.mean([kept[:k].sum() / 11 for k in range(1, 12)]))


def test_graded_labels_that_are_all_right_or_wrong_give_what_plain_ones_give() -> None:
    rng = np.random.default_rng(0)
    wrong, p_wrong = rng.random(200) < 0.3, rng.random(200).round(2)
    counts = rng.integers(0, 3, (4, 200)).astype(np.int32)
    for measure in (AUROC, AUPRC_WRONG, BRIER, ECE, PRR, HALF_PRR, AURC, AUGRC):
        plain, graded = (Ranked.from_scores(p_wrong, each, counts=counts) for each in (wrong, wrong.astype(float)))
        assert measure.function(graded) == pytest.approx(measure.function(plain)), measure.name


# -- fits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["guard", "ilis", "log-probabilities"])
def test_a_fit_learns_how_wrong_answers_are(score: str) -> None:
    """No answer is more wrong than right, so that labels cut at one half would teach nothing."""
    rng = np.random.default_rng(0)
    schema = schema_for(layers=LAYERS, temperatures=(1.0,))
    x = rng.normal(size=(400, schema.size)).astype(np.float32)
    at = schema.columns(("map",), ("last",))[3] if score == "ilis" else schema.columns(("logprob",))[0]
    truth = 0.25 + 0.2 * np.tanh(2 * x[:, at].astype(np.float64))
    examples = Examples(x, truth, np.array(["a"] * 400))
    fitted = fit_model(examples, schema, score=score)  # type: ignore[arg-type]
    from guard.scoring.scorer import Evaluator

    model = fitted.model
    evaluator = Evaluator(model.base, model.trees, model.probe)
    log_odds = np.array([evaluator.log_odds(row, np.zeros((3, LAYERS, 1))) for row in x.astype(np.float64)])
    p_wrong = 1 / (1 + np.exp(-model.calibration.log_odds(log_odds)))
    assert np.corrcoef(p_wrong, truth)[0, 1] > 0.8
    assert abs(p_wrong.mean() - truth.mean()) < 0.02


# -- from the grader to the report -------------------------------------------------------------


def how_right(question: Question, answer: str) -> float | bool:
    number = int(question.id)
    return True if number % 5 == 0 else (number % 7) / 7


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Four sets of answers whose log-probabilities tell how wrong they are."""
    rows: list[tuple[str, Row]] = [
        (name, Question(id=f"{number}", question=f"{name} {number}?", answers=("yes",)))
        for name in "abcd"
        for number in range(50)
    ]
    engine = AnsweringEngine(lambda prompt, number: ("yes", 0.4), model=RUN.model)
    engine.activations_at = layers_of
    with Journal(tmp_path_factory.mktemp("graded") / "j", RUN) as journal:
        list(record_rows(engine, rows, journal, run=RUN))
        hashes = {f"data.{name}.sha256": name * 64 for name in "abcd"}
        answers = Answers.from_journal(journal, rows, how_right, metadata=hashes)
    rng = np.random.default_rng(0)
    logprobs = -np.repeat(0.1 + answers.wrong + 0.2 * rng.random(len(answers)), answers.tokens).astype(np.float32)
    activations = rng.normal(size=answers.activations.shape).astype(np.float16)
    return Answers.whole(replace(answers.columns, logprobs=logprobs, activations=activations))


def test_graded_labels_are_kept_in_records_and_beside_plain_ones(graded: Answers, tmp_path: Path) -> None:
    assert are_graded(graded.wrong)
    assert graded.wrong[:3].tolist() == [0.0, pytest.approx(6 / 7), pytest.approx(5 / 7)]
    graded.write(tmp_path / "answers.parquet")
    read = Answers.read(tmp_path / "answers.parquet")
    assert np.array_equal(read.wrong, graded.wrong)
    plain = Answers.whole(replace(graded.columns, wrong=graded.wrong > 0.5, key=graded.key + "x"))
    plain.write(tmp_path / "plain.parquet")
    assert Answers.read(tmp_path / "plain.parquet").wrong.dtype == np.bool_
    assert concatenate([graded, plain]).wrong.tolist() == [*graded.wrong, *(graded.wrong > 0.5)]


def test_graded_answers_are_fitted_and_evaluated(graded: Answers, tmp_path: Path) -> None:
    some = [each for each in methods_for("all") if each.name in CHEAP]
    found = leave_one_dataset_out(graded, some, seed=0)
    for each in found:
        assert are_graded(each.wrong)
        assert AUROC.value(each.p_wrong["log-probabilities"], each.wrong) > 0.7
        assert each.p_wrong.keys() == CHEAP
    again = predictions_from_json(predictions_to_json(found))
    assert [each.wrong.tolist() for each in again] == [each.wrong.tolist() for each in found]
    graded.write(tmp_path / "answers.parquet")
    evaluated = guard.evaluate(
        tmp_path / "answers.parquet", out=tmp_path / "r.html", protocol=LEAVE_ONE_OUT, parts=False, draws=100
    )
    assert evaluated.models[0].pooled is not None
    assert evaluated.models[0].pooled.wrong == pytest.approx(graded.wrong.mean())
    result = guard.calibrate_records(tmp_path / "answers.parquet", out=tmp_path / "scorer.json")
    own = result.fitted.metrics["guard"]
    assert own.auroc > 0.7
    artefact = json.loads((tmp_path / "scorer.json").read_text())
    assert sum(each["wrong"] for each in artefact["data"]) == pytest.approx(graded.wrong.sum())


def test_where_wrong_answers_are_counted_graded_labels_are_refused(tmp_path: Path) -> None:
    response = LabelledResponse(id="r", prompt=Prompt.chat("What?"), response="Paris", wrong=0.25)
    with pytest.raises(InputError, match=r"Row 'r' has a graded label, 0.25 wrong.*wrong answers are counted"):
        is_wrong(response, "Paris", how_right)
    with pytest.raises(InputError, match=r"Row '1' has a graded label"):
        is_wrong(Question(id="1", question="What?", answers=("yes",)), "yes", how_right)
    file = tmp_path / "fresh.jsonl"
    file.write_text('{"id": "x", "prompt": "What?", "response": "Paris", "wrong": 0.5}\n')
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nname: sure\nrules:\n"
        "  - accept: {max_error_rate: 0.05, confidence: 0.9}\n  - abstain: {}\non_error: {abstain: {}}\n"
    )
    with pytest.raises(InputError, match=r"Row 'x' has a graded label, 0.5 wrong"):
        guard.certify(file, out=tmp_path / "c.json", policy=policy, model="no model is loaded")
