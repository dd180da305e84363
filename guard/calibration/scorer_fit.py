"""Fit a scorer to labelled records, bind it to their model, and test it on held-out questions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np

from guard.calibration.at_thresholds import AtThreshold, at_thresholds
from guard.calibration.back_off import choose_back_off
from guard.calibration.fitting import MIN_ANSWERS, Examples, FittedModel, fit_model, schema_for
from guard.calibration.splits import SPLIT_SHARES
from guard.checked import checked_seed
from guard.data.graders import Grader
from guard.data.labelling import find_weight, label_answer
from guard.data.questions import Row, split_questions
from guard.data.recording import Journal, Record, Run, to_float16
from guard.data.sqlite_journal import row_key
from guard.errors import CalibrationError, InputError, did_you_mean
from guard.records import Doubles
from guard.scores import SCORE_NAMES, ScoreName
from guard.scoring.answer_bounds import AnswerBounds
from guard.scoring.labels import Label, Labels, label_array, number_wrong
from guard.scoring.metrics import (
    BrierGain,
    ByEnding,
    Metrics,
    Probabilities,
    brier_gain,
    by_ending,
    compute_metrics,
)
from guard.scoring.ood import StoredOodDetector, fit_ood_in_parts
from guard.scoring.provenance import Binding, DataSet, Prompting
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import FORMAT, FORMAT_VERSION, Artefact, Schema
from guard.scoring.signature import FeatureSchema, feature_vector

#: Fewest answers, and fewest of each label, that the test split must have.
MIN_SPLIT, MIN_CLASS = 20, 5

#: Parts of guard's own score that can be left out: groups of features, and the linear probe of the layers.
_FEATURE_PARTS = ("logprob", "margin", "length", "norms", "map")
PARTS = (*_FEATURE_PARTS, "activations")


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A record, whether, or how, its answer is wrong, and how many answers it stands for."""

    record: Record
    wrong: Label
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class FittedScorer:
    """A fitted scorer with its metrics on held-out questions.

    Attributes:
        scorer: ready to save and use.
        metrics: metrics of each score on the test split.
        absent: reasons for missing scores, by name.
        brier_gain: the Brier score of log-probabilities alone minus that of guard's own score, with its interval; None
            where log-probabilities carry no signal.
        thresholds: the answers of the test split that thresholds on guard's own score would accept, with intervals.
        by_ending: guard's own score on the truncated and on the complete answers of the test split.
    """

    scorer: Scorer
    metrics: Mapping[ScoreName, Metrics]
    absent: Mapping[ScoreName, str]
    brier_gain: BrierGain | None
    thresholds: tuple[AtThreshold, ...]
    by_ending: ByEnding


def check_enough_rows(rows: Sequence[Row], *, seed: int) -> None:
    """Refuse too few rows for `fit_scorer`, before the model is asked.

    Raises:
        CalibrationError: a split has fewer rows than it needs answers.
    """
    sizes = {name: len(each) for name, each in split_questions(rows, seed=seed, shares=SPLIT_SHARES).items()}
    needed = {"fit": MIN_ANSWERS, "test": MIN_SPLIT}
    if any(sizes[name] < needed[name] for name in needed):
        raise CalibrationError(
            f"{len(rows)} questions are too few to fit and test a scorer",
            why=f"{sizes['fit']} of them are for fitting and {sizes['test']} for testing; the minimum is "
            f"{needed['fit']} and {needed['test']}, with {MIN_CLASS} right and {MIN_CLASS} wrong answers in each part",
            fix="Give at least 150 questions; a useful scorer needs several hundred",
        )


def check_parts(without: Sequence[str]) -> None:
    """Check the parts to leave out of guard's own score.

    Args:
        without: parts to leave out, of `PARTS`.

    Raises:
        InputError: a part is unknown, or no part is left.
    """
    for name in without:
        if name not in PARTS:
            raise InputError(f"The score has no part '{name}'", fix=did_you_mean(name, PARTS))
    if set(_FEATURE_PARTS) <= set(without):
        raise InputError("All feature groups are left out", fix=f"Keep one of {', '.join(_FEATURE_PARTS)}")


def fit_scorer(
    splits: Mapping[str, Sequence[Labelled]],
    *,
    run: Run,
    data: Sequence[DataSet],
    without: Sequence[str] = (),
    seed: int = 0,
) -> FittedScorer:
    """Fit, calibrate and test a scorer with all its scores.

    Args:
        splits: labelled records by split, named as in `SPLIT_SHARES`, disjoint by question.
        run: the run that made the records; the scorer is bound to its model.
        data: the data sets of the records, for the scorer file.
        without: parts of guard's own score to leave out, of `PARTS`.
        seed: seed of folds and trees.

    Raises:
        CalibrationError: a split has too few labels of one kind, or guard's own score carries no signal.
        InputError: a part is unknown.
    """
    checked_seed(seed)
    check_parts(without)
    schema = schema_for(layers=run.model.layers, temperatures=run.temperatures)
    examples = {
        name: _examples(records, schema, activations=name == "fit" and "activations" not in without)
        for name, records in splits.items()
    }
    _check_test(examples["test"].wrong)
    fitted, absent = fit_scores(examples["fit"], schema, without=without, seed=seed)
    models = {name: each.model for name, each in fitted.items()}
    detector = _ood_detector(splits["fit"], seed, layers=run.model.layers)
    back_off = choose_back_off(examples["fit"], fitted, without=without, seed=seed) if detector else None
    untested = Artefact(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        binding=Binding.from_model(run.model, run.capture_point),
        schema=Schema.from_schema(schema),
        feature_names=list(schema.names),
        prompting=Prompting(
            system=run.system,
            max_tokens=run.max_tokens,
            template_options=dict(run.template_options),
            completion=run.completion,
        ),
        data=list(data),
        split_sizes={name: len(each) for name, each in examples.items()},
        seed=seed,
        settings={name: dict(each.settings) for name, each in fitted.items()},
        versions=_versions(),
        metrics={},
        scores=models,
        ood_detector=detector,
        back_off=back_off,
        answer_bounds=_answer_bounds(splits["fit"]),
        signals="before-mask",
    )
    wrong, p_wrong = examples["test"].wrong, _p_wrong(Scorer(untested), splits["test"])
    metrics = {name: compute_metrics(each, wrong) for name, each in p_wrong.items()}
    artefact = untested.model_copy(update={"metrics": {name: asdict(each) for name, each in metrics.items()}})
    own, others = p_wrong[artefact.default_score], p_wrong.get("log-probabilities")
    gain = None if others is None or others is own else brier_gain(own, others, wrong)
    truncated = np.array([each.record.finish_reason == "length" for each in splits["test"]], np.bool_)
    ending = by_ending(own, wrong, truncated)
    return FittedScorer(Scorer(artefact), metrics, absent, gain, at_thresholds(own, wrong), ending)


def fit_scores(
    examples: Examples, schema: FeatureSchema, *, without: Sequence[str], seed: int
) -> tuple[dict[ScoreName, FittedModel], dict[ScoreName, str]]:
    """Fit every score to the same answers.

    Returns:
        the fitted models, and the reasons for scores that could not be fitted.

    Raises:
        CalibrationError: guard's own score cannot be fitted.
    """
    if not schema.layers:
        return {"log-probabilities": fit_model(examples, schema, score="log-probabilities", seed=seed)}, {}
    fitted: dict[ScoreName, FittedModel] = {"guard": fit_model(examples, schema, without=without, seed=seed)}
    absent: dict[ScoreName, str] = {}
    for name in SCORE_NAMES[1:]:
        try:
            fitted[name] = fit_model(examples, schema, score=name, seed=seed)
        except CalibrationError as error:
            absent[name] = str(error)
    return fitted, absent


def split_labelled(
    rows: Sequence[tuple[str, Row]], journal: Journal, *, grade: Grader, seed: int
) -> dict[str, list[Labelled]]:
    """Label the journal's answers to these rows, and split them by question.

    Answers are graded here and not when they are recorded, so that a better grader needs no second run of the model.

    Args:
        rows: pairs of data set name and row; rows that are not in the journal are left out.
        journal: the model's answers.
        grade: returns whether an answer to a question is right, or how right.
        seed: seed of the split.

    Raises:
        InputError: the journal has an answer to another question under a row's key.
    """
    journal.check_questions(rows)
    by_row = {id(row): dataset for dataset, row in rows}
    splits = split_questions([row for _, row in rows], seed=seed, shares=SPLIT_SHARES)
    return {
        name: [
            Labelled(record, label_answer(row, record.answer, grade), find_weight(row))
            for row in members
            if isinstance(record := journal.record(row_key(by_row[id(row)], row)), Record)
        ]
        for name, members in splits.items()
    }


def _check_test(wrong: Labels) -> None:
    rarer = min(wrong.sum(), len(wrong) - wrong.sum())
    if len(wrong) < MIN_SPLIT or rarer < MIN_CLASS:
        raise CalibrationError(
            "Too few labels to test a scorer",
            why=f"the test split has {len(wrong)} answers, {number_wrong(wrong):g} of them wrong; "
            f"the minimum is {MIN_SPLIT} answers, {MIN_CLASS} right and {MIN_CLASS} wrong",
            fix="Give more questions, or a mix of easier and harder ones",
        )


def _examples(labelled: Sequence[Labelled], schema: FeatureSchema, *, activations: bool) -> Examples:
    signals = [each.record.signals for each in labelled]
    return Examples(
        x=np.array([feature_vector(each, schema) for each in signals], np.float32).reshape(len(signals), schema.size),
        wrong=label_array([each.wrong for each in labelled]),
        dataset=np.array([each.record.dataset for each in labelled], np.str_),
        # In half precision, as in journals, since there can be gigabytes.
        activations=np.stack([to_float16(each.signature.activations) for each in signals])
        if activations and signals
        else None,
        weights=_weights([each.weight for each in labelled]),
    )


def _weights(stood_for: Sequence[float]) -> Doubles | None:
    """Return how much each answer counts, 1 on average: a prior weighs as much as without weights."""
    if len(set(stood_for)) < 2:
        return None
    weights = np.array(stood_for, np.float64)
    return np.asarray(weights / weights.mean(), np.float64)


def _answer_bounds(labelled: Sequence[Labelled]) -> AnswerBounds:
    records = [each.record for each in labelled]
    return AnswerBounds.of([record.answer for record in records], [len(record.signals.logprobs) for record in records])


def _ood_detector(labelled: Sequence[Labelled], seed: int, *, layers: int) -> StoredOodDetector | None:
    if not layers:
        return None
    try:
        return fit_ood_in_parts([each.record.signals.signature.activations for each in labelled], seed=seed).stored()
    except CalibrationError:  # a score needs fewer answers than a detector
        return None


def _p_wrong(scorer: Scorer, labelled: Sequence[Labelled]) -> dict[ScoreName, Probabilities]:
    """Return p_wrong of each answer by each score."""
    found = [scorer.score(each.record.signals).scores for each in labelled]
    return {name: np.array([each[name].p_wrong for each in found]) for name in scorer.gives}


def _versions() -> dict[str, str]:
    packages = ("ilis-guard", "numpy", "lightgbm", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
