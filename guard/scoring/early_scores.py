"""Scores of an answer that is not complete, as probabilities that the complete answer will be wrong.

A scorer is fitted on complete answers. After a few tokens its scores rank answers already, but they are no
probabilities of how the answer ends: each stage (`guard.scoring.scorer_file.EarlyStage`) has a calibration for that.
"""

from __future__ import annotations

from dataclasses import replace

from guard.scores import Score
from guard.scoring.scorer import logistic, to_log_odds
from guard.scoring.scorer_file import Calibration, EarlyStage

#: A probability nearer to 0 or 1 counts as this near: its log-odds must be finite.
_NEAREST = 1e-12


def log_odds_so_far(p_wrong: float) -> float:
    """Return the log-odds that a stage calibrates.

    Examples:
        >>> log_odds_so_far(0.5), round(log_odds_so_far(1.0))
        (0.0, 28)
    """
    return to_log_odds(min(max(p_wrong, _NEAREST), 1.0 - _NEAREST))


def as_forecast(score: Score, stage: EarlyStage) -> Score | None:
    """Return the scores of an answer so far as probabilities that the complete answer will be wrong.

    Args:
        score: of the answer so far; those that the stage does not calibrate are left out.
        stage: of as many tokens.

    Returns:
        None where the stage has no calibration of the score that decides.

    Examples:
        >>> same = {"guard": Calibration(slope=1.0, intercept=0.0)}
        >>> stage = EarlyStage(tokens=4, calibrations=same, answers=80, wrong=40, metrics={})
        >>> round(as_forecast(Score(0.75, True, 0.0), stage).p_wrong, 6)
        0.75
        >>> as_forecast(Score(0.75, True, 0.0, decides="ilis"), stage) is None
        True
    """
    calibration = stage.calibrations.get(score.decides)
    if calibration is None:
        return None
    scores = {
        name: replace(each, p_wrong=_forecast(each.p_wrong, stage.calibrations[name]))
        for name, each in score.scores.items()
        if name in stage.calibrations
    }
    return replace(score, p_wrong=_forecast(score.p_wrong, calibration), scores=scores)


def _forecast(p_wrong: float, calibration: Calibration) -> float:
    return logistic(calibration.log_odds(log_odds_so_far(p_wrong)))
