"""Scores of an answer: the probabilities that one scorer gives, and the one that a policy decides on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from guard.errors import ScorerError

if TYPE_CHECKING:  # see `guard.records`
    import numpy as np
    from numpy.typing import NDArray

#: Names of scores: guard's own, the published method (ILIS) alone, and token log-probabilities alone.
ScoreName = Literal["guard", "ilis", "log-probabilities"]
#: What the score of a served model reads, in place of ``log-probabilities``: entropies are of the likeliest tokens.
SERVED = "log-probabilities (likeliest tokens)"
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)


@dataclass(frozen=True, slots=True)
class ScoreReading:
    """One calibrated probability that an answer is wrong.

    Attributes:
        p_wrong: from 0 (right) to 1 (wrong).
        reads: its inputs, such as ``log-probabilities`` or ``signature (last token)``.
    """

    p_wrong: float
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """How likely an answer is wrong, by each of a scorer's scores.

    Attributes:
        p_wrong: probability that the answer is wrong, from 0 (right) to 1 (wrong), by the score named in ``decides``.
        calibrated: False for a scorer forced onto another model, and for sampled answers, since calibration is greedy.
        seconds: time for features and scores, in seconds.
        ood_score: share of the calibration answers that are nearer to the calibration data, 0 to 1; None if unknown.
        scores: the probabilities that were computed, by name: the one that decides, and those that need nothing more
            of the layers, or all where they are wanted (see `guard.Guard`).
        decides: name of the score that the policy decides on.
        layer_map: shape (L, L), the last token's map that ``ilis`` read, in nats (see `guard.records.Signature`); None
            where it was not computed.
    """

    p_wrong: float
    calibrated: bool
    seconds: float
    ood_score: float | None = None
    scores: Mapping[ScoreName, ScoreReading] = field(default_factory=dict)
    decides: ScoreName = "guard"
    layer_map: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def deciding(self, name: ScoreName) -> Score:
        """Return the scores with another one deciding.

        A policy that names no score names ``guard``; of a served model, which shows no layers, that is its only score.

        Raises:
            ScorerError: the scorer does not give this score.
        """
        served = name == "guard" and any(SERVED in each.reads for each in self.scores.values())
        if served or name == self.decides:
            return self
        if name not in self.scores:
            raise ScorerError(f"The answer has no score '{name}'", why=f"computed: {', '.join(self.scores) or 'none'}")
        return replace(self, p_wrong=self.scores[name].p_wrong, decides=name)
