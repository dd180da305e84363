"""The result of one threshold over the answers of all test sets: the headline of a report.

A curve averaged over sets differs: it uses another threshold in each set. A user has one threshold for all questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.evaluation.bootstrap import Estimate
from guard.evaluation.measures import risk_curve
from guard.evaluation.predictions import HELD_OUT, LEAVE_ONE_OUT, WITHIN, Predictions
from guard.evaluation.result import COVERAGES, Curve, Pooled, PooledPoint
from guard.scoring.labels import Labels
from guard.scoring.metrics import ByEnding, Probabilities, Ranked, by_ending, coverage_at_risk

#: Candidate error rates of the headline; the smallest that accepts enough answers is used.
RISKS = (0.05, 0.1, 0.2, 0.3)
#: Number of resamples for the intervals.
DRAWS = 200


def pooled(predictions: Sequence[Predictions], own: str, *, seed: int) -> Pooled | None:
    """Return the result of guard's own method over all test sets; None if no protocol has its predictions.

    The protocol is leave-one-dataset-out if available, else within the sets, else held-out sets.

    Args:
        predictions: under all protocols.
        own: name of guard's own method.
        seed: seed of the resamples.
    """
    for setting in (LEAVE_ONE_OUT, WITHIN, HELD_OUT):
        cells = [each for each in predictions if each.setting == setting and own in each.p_wrong]
        if cells:
            return _pooled(setting, cells, own, seed)
    return None


def _pooled(setting: str, cells: Sequence[Predictions], own: str, seed: int) -> Pooled:
    p_wrong = np.concatenate([each.p_wrong[own] for each in cells])
    wrong = np.concatenate([each.wrong for each in cells])
    ranked = Ranked.from_scores(p_wrong, wrong, counts=_counts(cells, seed))
    return Pooled(
        setting=setting,
        sets=len(cells),
        answers=len(wrong),
        wrong=float(wrong.mean()),
        points=tuple(PooledPoint(risk, _coverage(p_wrong, wrong, ranked, risk)) for risk in RISKS),
        curve=_curve("this score", p_wrong, wrong),
        oracle=_curve("best possible", wrong.astype(np.float64), wrong),
        by_ending=_by_ending(cells, p_wrong, wrong),
    )


def _by_ending(cells: Sequence[Predictions], p_wrong: Probabilities, wrong: Labels) -> ByEnding | None:
    known = [each.truncated for each in cells if each.truncated is not None]
    return by_ending(p_wrong, wrong, np.concatenate(known)) if len(known) == len(cells) else None


def _counts(cells: Sequence[Predictions], seed: int) -> NDArray[np.int32]:
    """Return the count of each answer in each resample, shape (DRAWS, n): whole questions, within each test set."""
    rng, parts = np.random.default_rng(seed), []
    for cell in cells:
        _, group = np.unique(cell.group, return_inverse=True)
        questions = int(group.max()) + 1
        drawn = rng.multinomial(questions, np.full(questions, 1 / questions), size=DRAWS)
        parts.append(drawn[:, group])
    return np.concatenate(parts, axis=1).astype(np.int32)


def _coverage(p_wrong: Probabilities, wrong: Labels, ranked: Ranked, risk: float) -> Estimate:
    value = float(coverage_at_risk(Ranked.from_scores(p_wrong, wrong), risk=risk)[0])
    low, high = np.percentile(coverage_at_risk(ranked, risk=risk), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _curve(name: str, p_wrong: Probabilities, wrong: Labels) -> Curve:
    return Curve(name, tuple(round(float(each), 6) for each in risk_curve(p_wrong, wrong, np.array(COVERAGES))))
