"""Fit the model of spans: a logistic regression on three logarithmic columns, calibrated on held-out answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from guard.calibration.platt import LogOdds, platt_scaling
from guard.errors import CalibrationError, missing_extra
from guard.records import Doubles
from guard.scoring.metrics import compute_metrics
from guard.scoring.provenance import DataSet
from guard.scoring.scorer_file import Linear, SpanModel, make_linear
from guard.scoring.span_scores import COLUMNS
from guard.scoring.spans import RULES

try:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
except ImportError as error:
    raise missing_extra("scikit-learn", "calibrate") from error

#: Fewest answers, labelled spans, and spans of each label, to fit anything.
MIN_ANSWERS, MIN_SPANS, MIN_CLASS = 10, 60, 10

FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class SpanExamples:
    """Labelled spans as arrays.

    Attributes:
        columns: shape (n, 3), see `guard.scoring.span_scores.COLUMNS`.
        wrong: shape (n,).
        answer: shape (n,), which answer each belongs to; spans of one answer are never on both sides of a split.
    """

    columns: Doubles
    wrong: NDArray[np.bool_]
    answer: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.wrong)

    def take(self, at: NDArray[np.intp]) -> SpanExamples:
        """Return some of the spans."""
        return SpanExamples(self.columns[at], self.wrong[at], self.answer[at])


def fit_span_model(examples: SpanExamples, *, data: Sequence[DataSet], max_tokens: int) -> SpanModel:
    """Fit and calibrate a model of spans; its metrics are of answers that were held out.

    Args:
        examples: labelled spans; all of them are used.
        data: where they come from, for the scorer file.
        max_tokens: token limit of the answers.

    Raises:
        CalibrationError: too few labels, or the columns carry no signal.
    """
    _check_enough(examples)
    held_out = np.empty(len(examples))
    for train, test in GroupKFold(FOLDS).split(examples.columns, examples.wrong, examples.answer):
        held_out[test] = _log_odds(_fit(examples.take(train)), examples.columns[test])
    calibration = platt_scaling(held_out, examples.wrong)
    held_out_p = 1.0 / (1.0 + np.exp(-calibration.log_odds(held_out)))
    return SpanModel(
        rules=RULES,
        linear=_fit(examples),
        calibration=calibration,
        answers=len(np.unique(examples.answer)),
        spans=len(examples),
        wrong=int(examples.wrong.sum()),
        max_tokens=max_tokens,
        data=list(data),
        metrics={**asdict(compute_metrics(held_out_p, examples.wrong)), **within_answers(held_out_p, examples)},
    )


def within_answers(scores: Doubles, examples: SpanExamples) -> dict[str, float | None]:
    """Return how well scores tell the wrong spans of an answer from the right ones of the same answer.

    Answers whose labelled spans are all right, or all wrong, say nothing and are left out.

    Returns:
        ``auroc_within``: share of the pairs of a wrong and a right span of one answer that are in order, ties half;
        ``top_1``: share of the answers whose highest score is a wrong span's; ``top_1_chance``: of a random pick. All
        are None where no answer has both kinds.

    Examples:
        >>> examples = SpanExamples(np.zeros((3, 3)), np.array([True, False, False]), np.array(["a"] * 3))
        >>> within_answers(np.array([0.9, 0.1, 0.95]), examples)
        {'auroc_within': 0.5, 'top_1': 0.0, 'top_1_chance': 0.3333333333333333}
    """
    members = [examples.answer == name for name in np.unique(examples.answer)]
    mixed = [
        (scores[at & examples.wrong], scores[at & ~examples.wrong])
        for at in members
        if (at & examples.wrong).any() and (at & ~examples.wrong).any()
    ]
    if not mixed:
        return {"auroc_within": None, "top_1": None, "top_1_chance": None}
    pairs = np.concatenate([(wrong[:, None] - right[None, :]).ravel() for wrong, right in mixed])
    return {
        "auroc_within": float(((pairs > 0) + 0.5 * (pairs == 0)).mean()),
        "top_1": float(np.mean([wrong.max() > right.max() for wrong, right in mixed])),
        "top_1_chance": float(np.mean([len(wrong) / (len(wrong) + len(right)) for wrong, right in mixed])),
    }


def _check_enough(examples: SpanExamples) -> None:
    wrong, answers = int(examples.wrong.sum()), len(np.unique(examples.answer))
    if answers < MIN_ANSWERS or len(examples) < MIN_SPANS or min(wrong, len(examples) - wrong) < MIN_CLASS:
        raise CalibrationError(
            "Too few labels to fit a model of spans",
            why=f"there are {len(examples)} labelled spans of {answers} answers, {wrong} of them wrong; it needs at "
            f"least {MIN_SPANS} of {MIN_ANSWERS} answers, {MIN_CLASS} right and {MIN_CLASS} wrong",
            fix="Give more questions with claims, or a mix of easier and harder ones",
        )


def _fit(examples: SpanExamples) -> Linear:
    mean, scale = examples.columns.mean(axis=0), np.maximum(examples.columns.std(axis=0), 1e-6)
    fitted = LogisticRegression().fit((examples.columns - mean) / scale, examples.wrong)
    return make_linear(np.arange(len(COLUMNS)), mean, scale, fitted.coef_[0], float(fitted.intercept_[0]))


def _log_odds(linear: Linear, columns: Doubles) -> LogOdds:
    scaled = (columns - np.array(linear.mean)) / np.array(linear.scale)
    log_odds: LogOdds = scaled @ np.array(linear.coefficients) + linear.intercept
    return log_odds
