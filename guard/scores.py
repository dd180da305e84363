"""Scores of an answer: the probabilities that one scorer gives, and the one that a policy decides on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
class Span:
    """A part of an answer, and how likely it is wrong.

    Attributes:
        start, end: its place in the answer's text: the first character, and the one after the last.
        text: a line, a list item without its mark, or a sentence.
        p_wrong: probability that what it says is wrong, from 0 to 1.
        claim: the new numbers, or else the new words, whose tokens were read; empty where all of its tokens were.
    """

    start: int
    end: int
    text: str
    p_wrong: float
    claim: tuple[str, ...] = ()


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
        spans: parts of the answer with a probability each; None where the scorer does not give them (see
            `guard.scoring.spans`), or the answer's text is not what its tokens wrote.
        unlike: why the answer is of another length or form than those of the calibration, in words, or None. Its
            ood_score is then 1.
    """

    p_wrong: float
    calibrated: bool
    seconds: float
    ood_score: float | None = None
    scores: Mapping[ScoreName, ScoreReading] = field(default_factory=dict)
    decides: ScoreName = "guard"
    layer_map: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    spans: tuple[Span, ...] | None = None
    unlike: str | None = None

    @property
    def p_any_wrong(self) -> float | None:
        """Probability that any span is wrong, as if they were independent (noisy-or); None without spans.

        Spans of one answer tend to be wrong together, so this is high for long answers: use it to rank them.
        """
        return None if self.spans is None else any_wrong(span.p_wrong for span in self.spans)

    @property
    def without_spans(self) -> Score:
        """The score without the spans, which quote the answer."""
        return replace(self, spans=None)

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


def any_wrong(probabilities: Iterable[float]) -> float:
    """Return the probability that any of some parts is wrong, as if they were independent (noisy-or).

    Examples:
        >>> any_wrong([0.5, 0.2])
        0.6
    """
    return 1.0 - math.prod(1.0 - each for each in probabilities)
