"""Platt scaling: log-odds of held-out answers -> calibrated log-odds."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from guard.errors import CalibrationError, missing_extra
from guard.records import Doubles
from guard.scoring.labels import Labels, are_graded
from guard.scoring.metrics import Ranked, auroc
from guard.scoring.scorer_file import Calibration

try:
    from scipy.optimize import minimize
    from scipy.special import expit
except ImportError as error:
    raise missing_extra("scikit-learn", "calibrate") from error

LogOdds: TypeAlias = Doubles

#: Prior standard deviation of the calibration's slope around 1 and of its intercept around 0.
CALIBRATION_SPREAD = 0.3


def log_losses(log_odds: LogOdds, wrong: Labels) -> NDArray[np.float64]:
    """Return the log loss of each answer."""
    if are_graded(wrong):
        return np.asarray(np.logaddexp(0.0, log_odds) - wrong * log_odds)
    return np.logaddexp(0.0, np.where(wrong, -log_odds, log_odds))


def platt_scaling(
    held_out: LogOdds, wrong: Labels, weights: Doubles | float = 1.0, *, spread: float = CALIBRATION_SPREAD
) -> Calibration:
    """Return Platt scaling: a logistic regression on held-out log-odds, with a prior around the identity.

    Args:
        held_out: log-odds, shape (n,).
        wrong: labels, shape (n,).
        weights: of the answers, shape (n,), or one for all.
        spread: of the prior, which keeps few answers, or a weak score, from moving it far.
    """

    def loss(moved: Doubles) -> tuple[float, Doubles]:
        scaled = (1.0 + moved[0]) * held_out + moved[1]
        slopes = weights * (expit(scaled) - wrong)
        value = (weights * log_losses(scaled, wrong)).sum() + moved @ moved / (2 * spread**2)
        return float(value), np.array([slopes @ held_out, slopes.sum()]) + moved / spread**2

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x + np.array([1.0, 0.0])
    if slope <= 0 or auroc(Ranked.from_scores(held_out, wrong))[0] <= 0.5:
        raise CalibrationError(
            "The score does not rank wrong answers above right ones on held-out answers",
            why="these features carry no signal here, or there are too few labels",
            fix="Give more labelled questions",
        )
    return Calibration(slope=float(slope), intercept=float(intercept))
