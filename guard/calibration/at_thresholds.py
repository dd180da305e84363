"""What thresholds on a score would have accepted of labelled answers, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from guard.policy.bounds import Interval, exact_share
from guard.scoring.labels import Labels, number_wrong
from guard.scoring.metrics import Probabilities

#: Thresholds in the output of calibration.
_SHOWN_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What is accepted where p_wrong is below a threshold.

    Attributes:
        below: the threshold.
        accepted: how many answers.
        wrong: how many of them are wrong; the sum of graded labels.
        n: answers in all, at least one.

    Examples:
        >>> found = AtThreshold(0.2, accepted=20, wrong=1, n=50)
        >>> [round(each, 3) for each in found.coverage], [round(each, 3) for each in found.error_rate]
        ([0.4, 0.264, 0.548], [0.05, 0.001, 0.249])
    """

    below: float
    accepted: int
    wrong: int | float
    n: int

    @property
    def coverage(self) -> Interval:
        """Share of the answers that are accepted, with low and high of its 95 % Clopper-Pearson interval."""
        return exact_share(self.accepted, 0, self.n)

    @property
    def error_rate(self) -> Interval | None:
        """Share of wrong answers among the accepted, likewise; None where nothing is accepted.

        The interval holds for one threshold that was chosen without these labels. Of graded labels it runs from that
        of the next lower number of wrong answers to that of the next higher one.
        """
        if not self.accepted:
            return None
        least, most = math.floor(self.wrong), math.ceil(self.wrong)
        _, low, high = exact_share(least, most - least, self.accepted)
        return self.wrong / self.accepted, low, high


def at_thresholds(p_wrong: Probabilities, wrong: Labels) -> tuple[AtThreshold, ...]:
    """Return the same answers at some thresholds, strict to lax; arrays of shape (n,)."""
    return tuple(
        AtThreshold(below, int((p_wrong < below).sum()), number_wrong(wrong[p_wrong < below]), len(wrong))
        for below in _SHOWN_THRESHOLDS
    )
