"""Fit the early stages: calibrate the scores of answers so far as probabilities of how the answers end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from guard.calibration.platt import LogOdds, platt_scaling
from guard.errors import CalibrationError, missing_extra
from guard.records import Doubles
from guard.scores import ScoreName
from guard.scoring.metrics import compute_metrics
from guard.scoring.provenance import DataSet
from guard.scoring.scorer_file import Calibration, EarlyModel, EarlyStage

try:
    from sklearn.model_selection import StratifiedKFold
except ImportError as error:
    raise missing_extra("scikit-learn", "calibrate") from error

#: Numbers of tokens at which an answer is looked at.
STAGES = (1, 2, 4, 8, 16, 32, 64, 128)
#: Fewest answers that are longer than a stage, and of each label among them.
MIN_ANSWERS, MIN_CLASS = 60, 10
#: Limits whose effect is shown.
LIMITS = (0.9, 0.95, 0.97, 0.99)
FOLDS = 5
#: Spread of the prior around the identity. Log-odds so far are of another question than the one that they are
#: calibrated to answer, so it is wide.
SPREAD = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class GrownAnswers:
    """Labelled answers, scored while they grew.

    Attributes:
        tokens: shape (n,), number of tokens of each complete answer.
        wrong: shape (n,).
        whole: p_wrong of the complete answers, shape (n,).
        so_far: by number of tokens and score: log-odds of the answers so far, shape (n,); nan where the answer is not
            longer, since at its last token there is nothing to stop, or could not be scored.
    """

    tokens: NDArray[np.intp]
    wrong: NDArray[np.bool_]
    whole: Doubles
    so_far: Mapping[int, Mapping[ScoreName, Doubles]]

    def __len__(self) -> int:
        return len(self.wrong)


@dataclass(frozen=True, slots=True)
class Saving:
    """What stopping above a limit does, by stages that have not seen the answers.

    Attributes:
        above: the limit.
        saved: share of all answer tokens that need not be generated.
        stopped: share of the answers that are stopped.
        right_stopped: share of the right answers that are.
        surer: right answers whose complete p_wrong is below one half.
        surer_stopped: number of these that are stopped.
    """

    above: float
    saved: float
    stopped: float
    right_stopped: float
    surer: int
    surer_stopped: int


def fit_early(answers: GrownAnswers, *, data: Sequence[DataSet], max_tokens: int) -> EarlyModel:
    """Calibrate each stage that enough answers reach; figures are of answers that were held out.

    Args:
        answers: labelled answers that the scorer was not fitted on.
        data: where they come from, for the scorer file.
        max_tokens: token limit of the answers.

    Raises:
        CalibrationError: no stage could be calibrated.
    """
    stages = [stage for tokens in answers.so_far if (stage := _stage(answers, tokens)) is not None]
    if not stages:
        wrong = int(answers.wrong.sum())
        raise CalibrationError(
            "No early stage could be calibrated",
            why=f"there are {len(answers)} answers, {wrong} of them wrong; a stage needs at least {MIN_ANSWERS} "
            f"longer ones, {MIN_CLASS} right and {MIN_CLASS} wrong, and scores that rank them",
            fix="Give more labelled questions that the scorer was not fitted on",
        )
    return EarlyModel(stages=stages, answers=len(answers), max_tokens=max_tokens, data=list(data))


def savings(answers: GrownAnswers, score: ScoreName) -> list[Saving]:
    """Return what stopping at the first stage above each of `LIMITS` saves and loses, on held-out answers."""
    forecasts = {}
    for tokens, scores in answers.so_far.items():
        log_odds = scores.get(score, np.full(len(answers), np.nan))
        at = np.flatnonzero(~np.isnan(log_odds))
        found = _held_out(log_odds[at], answers.wrong[at]) if _enough(answers.wrong[at]) else None
        if found is not None:
            forecasts[tokens] = np.full(len(answers), np.nan)
            forecasts[tokens][at] = found
    return [_saving(answers, forecasts, above) for above in LIMITS]


def _saving(answers: GrownAnswers, forecasts: Mapping[int, Doubles], above: float) -> Saving:
    read = answers.tokens.copy()
    for tokens in sorted(forecasts, reverse=True):
        read = np.where(np.nan_to_num(forecasts[tokens], nan=0.0) > above, tokens, read)
    stopped, right = read < answers.tokens, ~answers.wrong
    surer = right & (answers.whole < 0.5)
    return Saving(
        above=above,
        saved=float((answers.tokens - read).sum() / max(1, answers.tokens.sum())),
        stopped=float(stopped.mean()),
        right_stopped=float(stopped[right].mean()) if right.any() else 0.0,
        surer=int(surer.sum()),
        surer_stopped=int(stopped[surer].sum()),
    )


def _stage(answers: GrownAnswers, tokens: int) -> EarlyStage | None:
    """Return one stage; None if too few answers reach it, or no score ranks them there."""
    calibrations: dict[ScoreName, Calibration] = {}
    metrics: dict[str, Any] = {}
    reached = np.zeros(len(answers), np.bool_)
    for name, log_odds in answers.so_far[tokens].items():
        at = np.flatnonzero(~np.isnan(log_odds))
        wrong = answers.wrong[at]
        held_out = _held_out(log_odds[at], wrong) if _enough(wrong) else None
        if held_out is None:
            continue
        calibrations[name] = platt_scaling(log_odds[at], wrong, spread=SPREAD)
        metrics[name] = asdict(compute_metrics(held_out, wrong))
        reached[at] = True
    if not calibrations:
        return None
    wrong = answers.wrong[reached]
    return EarlyStage(
        tokens=tokens, calibrations=calibrations, answers=len(wrong), wrong=int(wrong.sum()), metrics=metrics
    )


def _enough(wrong: NDArray[np.bool_]) -> bool:
    few = min(int(wrong.sum()), int((~wrong).sum()))
    return len(wrong) >= MIN_ANSWERS and few >= MIN_CLASS


def _held_out(log_odds: LogOdds, wrong: NDArray[np.bool_]) -> Doubles | None:
    """Return probabilities by calibrations that have not seen the answer; None where the score does not rank them."""
    found = np.empty(len(wrong))
    try:
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(log_odds, wrong):
            found[test] = expit(platt_scaling(log_odds[train], wrong[train], spread=SPREAD).log_odds(log_odds[test]))
        platt_scaling(log_odds, wrong, spread=SPREAD)
    except CalibrationError:
        return None
    return found
