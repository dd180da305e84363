"""Detect without labels that inputs become less usual: a conformal test martingale on out-of-distribution scores.

Each score is ranked among all earlier ones, ties at random. While the kind of traffic stays the same, these ranks are
independent and uniform for any distribution of scores; bets on high ranks then win nothing. Vovk, Gammerman and
Shafer, "Algorithmic Learning in a Random World", chapter 8. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from guard.monitoring.wagers import Wagers

#: Number of equal steps from 0 to 1 in which scores are counted.
STEPS = 100

#: A bet of exponent e pays e p^(e-1) for a p-value p, so small ones bet on very unusual inputs.
EXPONENTS = (0.3, 0.5, 0.7, 0.85, 0.95)

#: Probability of ever giving the alarm while traffic stays of one kind.
FALSE_ALARMS = 0.01


@dataclass(slots=True)
class ShiftTest:
    """The state of the test, whose size does not grow with the number of scores.

    Attributes:
        counts: how many scores were seen in each step, shape (`STEPS`,).
        wagers: the wealth.
        alarm_at: the score, counted from 1, at which the alarm was given; None if it was not.

    Examples:
        >>> from random import Random
        >>> test, chance = ShiftTest(), Random(0)
        >>> for number in range(300):
        ...     test.observe(0.9 * chance.random(), tie=chance.random())
        >>> test.alarm_at is None
        True
        >>> for number in range(40):
        ...     test.observe(0.98, tie=0.5)
        >>> test.alarm_at is None
        False
    """

    counts: list[int] = field(default_factory=lambda: [0] * STEPS)
    wagers: Wagers = field(default_factory=lambda: Wagers.begin(len(EXPONENTS)))
    alarm_at: int | None = None

    def observe(self, ood_score: float, *, tie: float) -> None:
        """Rank a score among those before it, and bet.

        Args:
            ood_score: from 0 to 1.
            tie: uniform from 0 to 1 and independent of the score; places it among equal ones.
        """
        p_value = max(self.p_value(ood_score, tie=tie), 1e-12)
        self.counts[_step(ood_score)] += 1
        if self.alarm_at is not None:
            return
        self.wagers.observe([exponent * p_value ** (exponent - 1) for exponent in EXPONENTS])
        if self.wagers.total >= 1 / FALSE_ALARMS:
            self.alarm_at = self.observations

    def p_value(self, ood_score: float, *, tie: float) -> float:
        """Return the share of scores, this one among them, that are at least as high; arguments as for `observe`."""
        step = _step(ood_score)
        above, equal = sum(self.counts[step + 1 :]), self.counts[step]
        return (above + tie * (equal + 1)) / (self.observations + 1)

    @property
    def observations(self) -> int:
        """Scores so far."""
        return sum(self.counts)

    @property
    def e_value(self) -> float:
        """Evidence now that traffic has changed; 1 is none."""
        return self.wagers.total

    def to_plain(self) -> dict[str, Any]:
        """Return the state for `from_plain`, as JSON holds it."""
        wagers = self.wagers
        return {
            "counts": self.counts,
            "wealth": wagers.wealth,
            "observations": wagers.observations,
            "starts": wagers.starts,
            "alarm_at": self.alarm_at,
        }

    @classmethod
    def from_plain(cls, state: dict[str, Any]) -> ShiftTest:
        """Return the test in a state that `to_plain` gave."""
        wagers = Wagers(list(state["wealth"]), state["observations"], state["starts"])
        return cls(list(state["counts"]), wagers, state["alarm_at"])


def _step(ood_score: float) -> int:
    return min(STEPS - 1, int(ood_score * STEPS))
