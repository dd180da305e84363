"""A scorer on its model in another precision or engine: refused, forced, rebound, refitted.

    guard record --data set1.jsonl.gz --data set2.jsonl.gz --out records.parquet
    python benchmarks/rebound.py records.parquet --to model.Q8_0.gguf --data set1.jsonl.gz --data set2.jsonl.gz
    python benchmarks/rebound.py records.parquet --to smollm2 --engine transformers --dtype float32 --data ...

The records are the embedded model's answers. Of its questions that the shipped scorer was not fitted on, up to --limit
of each set are used. The other model reads the recorded answers, without labels, for the alignment of `guard rebind`,
and answers the same questions itself. On these answers there are the shipped scorer, forced onto the model; the same,
rebound; and guard's own score fitted on four fifths of the answers and applied to the rest, five times. For comparison:
the shipped scorer on the recorded answers of its own model. Intervals resample answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attacks import fresh_questions
from early import fitted_probabilities
from measuring import machine, versions
from numpy.typing import NDArray

from guard.calibration.alignment import align, aligned_model
from guard.calibration.fitting import Examples
from guard.calibration.same_weights import check_same_weights
from guard.data.answers import Answers
from guard.data.graders import grade
from guard.data.in_order import in_order
from guard.data.labelling import is_wrong
from guard.data.prompts import fitted_prompt
from guard.data.question_sets import read_sets
from guard.data.questions import Question, question_identity
from guard.engines import EMBEDDED, embedded_model, load_engine
from guard.engines.asked import RequestEngine
from guard.errors import CalibrationError, ScorerMismatchError
from guard.evaluation.bootstrap import Bootstrap, Estimate, bootstrap
from guard.evaluation.measures import AUROC, BRIER
from guard.evaluation.predictions import Predictions
from guard.evaluation.protocol import assign_folds
from guard.records import Doubles, Signals
from guard.runtime.base_models import fitted_limits
from guard.runtime.sources import find_capture_point
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.signature import FeatureSchema, SignatureObserver, feature_vector

GROUPS = ("logprob", "margin", "length")
FOLDS = 5
AS_IT_WAS, FORCED, REBOUND, REFITTED = "as it was", "forced", "rebound", "refitted"


@dataclass(frozen=True, slots=True, eq=False)
class OtherModel:
    """What another model read and answered.

    Attributes:
        name: precision and engine.
        refused: why the scorer does not fit as it is.
        read: signals of the recorded answers.
        own: signals of its own answers.
        wrong: shape (n,), of its own answers.
    """

    name: str
    refused: str
    read: list[Signals]
    own: list[Signals]
    wrong: NDArray[np.bool_]


def recorded_questions(records: Answers, questions: Sequence[Question], *, limit: int) -> dict[int, Question]:
    """Return up to some questions of each set, by the row of their recorded answer."""
    rows = {str(key): at for at, key in enumerate(records.key)}
    found: dict[int, Question] = {}
    for name in dict.fromkeys(row.id.split("/")[0] for row in questions):
        own = [row for row in questions if row.id.split("/")[0] == name and row.id in rows]
        found |= {rows[row.id]: row for row in own[:limit]}
    return found


def ask(engine: RequestEngine, scorer: Scorer, questions: Sequence[Question], texts: Sequence[str]) -> OtherModel:
    """Let a model read some answers, and answer."""
    try:
        scorer.for_model(engine.model, find_capture_point(engine))
        refused = ""
    except ScorerMismatchError as error:
        refused = str(error)
    read = in_order(lambda each, _: _signals(engine, scorer, *each)[1], zip(questions, texts, strict=True), at_once=8)
    signals = list(read)
    answered = [*in_order(lambda each, _: _signals(engine, scorer, each, None), questions, at_once=8)]
    wrong = [is_wrong(row, text, grade) for row, (text, _) in zip(questions, answered, strict=True)]
    name = f"{engine.model.quantization}, {engine.model.engine}"
    return OtherModel(name, refused, signals, [each for _, each in answered], np.array(wrong, np.bool_))


def _signals(engine: RequestEngine, scorer: Scorer, row: Question, answer: str | None) -> tuple[str, Signals]:
    """Return an answer and its signals; a given answer is read, not generated."""
    prompting, schema = scorer.artefact.prompting, scorer.artefact.feature_schema
    observer = SignatureObserver(temperatures=schema.temperatures, aggregates=schema.aggregates)
    limits, prompt = fitted_limits(prompting), fitted_prompt(row, prompting)
    found = engine.generate(prompt, limits=limits, observer=observer, completion=answer)
    return found.text, found.signals(observer.signature())


def rebound_scorer(scorer: Scorer, old: Sequence[Signals], new: Sequence[Signals]) -> Scorer:
    """Return the scorer for the new model's layers, as `guard rebind` aligns it."""
    alignment = align(old, new, scorer.artefact.feature_schema)
    scores = {name: aligned_model(model, alignment) for name, model in scorer.artefact.scores.items()}
    return Scorer(scorer.artefact.model_copy(update={"scores": scores}))


def refitted(other: OtherModel, questions: Sequence[Question]) -> dict[str, Doubles]:
    """Return probabilities of guard's own score, fitted on the other model's own answers to other questions.

    Nothing is returned where guard refuses to fit a part of them.
    """
    schema = FeatureSchema(layers=other.own[0].signature.activations.shape[1], groups=GROUPS)
    examples = Examples(
        np.array([feature_vector(each, schema) for each in other.own], np.float32),
        other.wrong,
        np.array([row.id.split("/")[0] for row in questions]),
        np.stack([each.signature.activations for each in other.own]),
    )
    group = np.array([question_identity(row) for row in questions])
    fold, found = assign_folds(group, other.wrong, folds=FOLDS, seed=0), np.empty(len(questions))
    for number in range(FOLDS):
        learn, out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        try:
            found[out] = fitted_probabilities(examples, schema, learn, out)
        except CalibrationError as error:
            print(f"not refitted: {error}")
            return {}
    return {f"{REFITTED}: guard": found}


# -- what comes of it --------------------------------------------------------------------------


def p_wrong(scorer: Scorer, signals: Sequence[Signals], label: str) -> dict[str, Doubles]:
    """Return the probabilities of each of a scorer's scores, by what was done to it and the score's name."""
    scores = [scorer.score(each).scores for each in signals]
    return {f"{label}: {name}": np.array([each[name].p_wrong for each in scores]) for name in scorer.gives}


def judged(wrong: NDArray[np.bool_], scores: Mapping[str, Doubles]) -> dict[str, Any]:
    """Return AUROC and Brier score of each score, and the gain in both over the forced one, with 95 % intervals."""
    cell = Predictions("rebound", "", "all", wrong, np.arange(len(wrong)), scores, {})
    found = bootstrap([cell], [AUROC, BRIER])
    return {name: _figures(found, name, f"{FORCED}: {name.partition(': ')[2]}") for name in scores}


def _figures(found: Bootstrap, name: str, forced: str) -> dict[str, Any]:
    figures = {measure.name: _rounded(found.mean(name, measure.name)[0]) for measure in (AUROC, BRIER)}
    if forced in found.methods and forced != name:
        gains = {measure.name: found.gain(name, forced, measure.name).estimate for measure in (AUROC, BRIER)}
        figures |= {f"gain in {measure}": _rounded(each) for measure, each in gains.items()}
    return figures


def _rounded(estimate: Estimate) -> list[float | None]:
    return [None if each is None else round(each, 4) for each in (estimate.value, estimate.low, estimate.high)]


def report(scorer: Scorer, old: Sequence[Signals], wrong: NDArray[np.bool_], other: OtherModel, rows: Any) -> Any:
    """Return all figures of one move."""
    moved = rebound_scorer(scorer, old, other.read)
    scores = {**p_wrong(scorer, other.own, FORCED), **p_wrong(moved, other.own, REBOUND), **refitted(other, rows)}
    was = p_wrong(scorer, old, AS_IT_WAS)
    read, aligned = (p_wrong(each, other.read, "")[": guard"] for each in (scorer, moved))
    before = was[f"{AS_IT_WAS}: guard"]
    return {
        "answers": len(wrong),
        "to": other.name,
        "refused": other.refused,
        "wrong": [float(wrong.mean()), float(other.wrong.mean())],
        "difference": [float(np.abs(each - before).mean()) for each in (read, aligned)],
        "scores": {**judged(wrong, was), **judged(other.wrong, scores)},
    }


def show(found: Mapping[str, Any]) -> None:
    """Print a table."""
    was, now = found["wrong"]
    print(f"to {found['to']}: {found['answers']} answers, {was:.0%} wrong before, {now:.0%} on the new model")
    print(f"as it is: {found['refused'] or 'not refused'}")
    forced, moved = found["difference"]
    print(f"p_wrong of the same answers, mean difference: {forced:.3f} forced, {moved:.3f} rebound")
    print("| score | AUROC | Brier | gain in AUROC over forced | in Brier |\n| --- | --- | --- | --- | --- |")
    for name, each in found["scores"].items():
        cells = [each["AUROC"], each["Brier"], each.get("gain in AUROC"), each.get("gain in Brier")]
        texts = ["" if cell is None else "{:.3f} ({:.3f} to {:.3f})".format(*cell) for cell in cells]
        print(f"| {name} | " + " | ".join(texts) + " |")


def main() -> None:
    """Ask, align, fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--to", required=True, help="the same weights in another precision, or the same file")
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--dtype", help="of transformers")
    parser.add_argument("--data", action="append", required=True, help="a question set of the records; repeatable")
    parser.add_argument("--limit", type=int, default=25, help="questions of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    records, scorer = Answers.read(asked.records), load_scorer(shipped_scorer())
    fresh = fresh_questions(read_sets(asked.data), scorer, limit=len(records))
    questions = recorded_questions(records, fresh, limit=asked.limit)
    at = np.array(list(questions), np.intp)
    to = embedded_model() if asked.to == EMBEDDED else Path(asked.to)
    structure = check_same_weights(embedded_model(), to)
    options = {"threads": asked.threads} if asked.engine == "llama.cpp" else {"dtype": asked.dtype or "float32"}
    with load_engine(to, engine=asked.engine, **options) as engine:
        other = ask(engine, scorer, list(questions.values()), [str(records.answer[row]) for row in at])
    old = [records.signals(row) for row in at]
    found = report(scorer, old, records.wrong[at].astype(np.bool_), other, list(questions.values()))
    show(found)
    if asked.out:
        about = {"machine": machine(), "versions": versions(), "limit": asked.limit, "structure": structure}
        asked.out.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
