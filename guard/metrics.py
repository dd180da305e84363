"""Metrics of a score against labels. Positive class: the answer is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

Probabilities = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good a score is on labelled answers.

    Attributes:
        n: answers.
        wrong: share of wrong answers, the base rate of AUPRC.
        auroc: chance that a wrong answer scores above a right one; higher is better, 0.5 is chance.
        auprc: average precision for wrong answers; higher is better, ``wrong`` is chance.
        brier: mean squared error of the probability; lower is better.
        ece: expected calibration error over 10 equally filled bins; lower is better.
    """

    n: int
    wrong: float
    auroc: float
    auprc: float
    brier: float
    ece: float


def metrics_of(p_wrong: Probabilities, wrong: Labels) -> Metrics:
    """All metrics of one score, from arrays of shape (n,).

    AUROC and AUPRC are nan where all answers are right or all are wrong.
    """
    both = 0 < wrong.sum() < len(wrong)
    return Metrics(
        n=len(wrong),
        wrong=float(wrong.mean()),
        auroc=float(roc_auc_score(wrong, p_wrong)) if both else float("nan"),
        auprc=float(average_precision_score(wrong, p_wrong)) if both else float("nan"),
        brier=float(brier_score_loss(wrong, p_wrong)),
        ece=expected_calibration_error(p_wrong, wrong),
    )


def expected_calibration_error(p_wrong: Probabilities, wrong: Labels, *, bins: int = 10) -> float:
    """Mean over bins of |mean probability - share wrong|, weighted by the bins' sizes.

    Bins hold equally many answers (adaptive binning, Nguyen and O'Connor 2015): with few answers,
    bins of equal width are mostly empty. Equal probabilities stay in one bin, so that the order of
    the answers does not matter. Lower is better.
    """
    ranked = np.sort(p_wrong)
    starts = np.array([group[0] for group in np.array_split(ranked, min(bins, len(ranked)))])
    bin_of = np.searchsorted(starts, p_wrong, side="right") - 1
    gaps = np.abs(np.bincount(bin_of, p_wrong - wrong, minlength=len(starts)))
    return float(gaps.sum() / len(p_wrong))
