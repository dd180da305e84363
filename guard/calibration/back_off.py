"""Whether guard's own score backs off from the layers where an input is out of distribution.

The linear probe is what goes wrong on questions unlike those of the calibration (docs/evidence/ilis.md). Held-out data
sets decide, when a scorer is fitted, whether its log-odds are mixed with those of the log-probabilities there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from guard.calibration.fitting import Examples, FittedModel, find_folds, holds_out_sets
from guard.calibration.platt import log_losses
from guard.errors import CalibrationError
from guard.records import Doubles
from guard.scores import ScoreName
from guard.scoring.ood import fit_ood_in_parts
from guard.scoring.scorer_file import BackOff

#: The one back-off that is tried: more of them, selected on as few sets, did worse on others (docs/evidence/ilis.md).
CANDIDATE = BackOff(start=0.0, most=0.5)


def choose_back_off(
    examples: Examples, fitted: Mapping[ScoreName, FittedModel], *, without: Collection[str] = (), seed: int
) -> BackOff | None:
    """Return the back-off of guard's own score; None where it does not lower the loss on data sets that were held out.

    Args:
        examples: the answers that the models were fitted on.
        fitted: the model of each score; there is no back-off without a probe, or without log-probabilities.
        without: parts that guard's own score leaves out; without ``logprob`` it reads none of them.
        seed: of the folds, as for the models.
    """
    own, other = fitted.get("guard"), fitted.get("log-probabilities")
    if own is None or other is None or "logprob" in without:
        return None
    if own.model.probe is None or not holds_out_sets(examples):
        return None
    try:
        ood = held_out_ood_scores(examples, seed)
    except CalibrationError:  # too few answers for a detector
        return None
    mixed = CANDIDATE.mix(own.held_out, other.held_out, ood)
    before, after = (
        np.average(log_losses(each, examples.wrong), weights=examples.weights) for each in (own.held_out, mixed)
    )
    return CANDIDATE if after < before else None


def held_out_ood_scores(examples: Examples, seed: int) -> Doubles:
    """Return the ood_score of each answer by a detector of other folds, shape (n,).

    Raises:
        CalibrationError: there are too few answers.
    """
    assert examples.activations is not None
    found = np.empty(len(examples))
    for learn, out in find_folds(examples, seed):
        found[out] = fit_ood_in_parts(examples.activations[learn], seed=seed).ood_scores(examples.activations[out])
    return found
