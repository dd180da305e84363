"""Test by betting: wealth that cannot grow in expectation while a hypothesis holds, for any time of looking.

Wealth is spread over several bets and over several times of starting. Against a hypothesis that holds, it ever reaches
1 / level with a probability of at most that level (Ville, 1939; Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", arXiv:2010.09686). What is kept back for later starts is not lost while all is well, so a
change after a long quiet time is found too, if later than one at the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Share of the wealth that is bet from the first observation on; the rest starts later.
AT_ONCE = 0.5

#: Observations between two starts.
BETWEEN_STARTS = 20


@dataclass(slots=True)
class Wagers:
    """The wealth of several bets, 1 in all at the beginning.

    Attributes:
        wealth: of each bet, as if it had the whole.
        observations: so far.
        starts: later starts so far.

    Examples:
        >>> wagers = Wagers.begin(2)
        >>> wagers.observe([1.5, 3.0])
        >>> wagers.total
        1.625
    """

    wealth: list[float]
    observations: int = 0
    starts: int = 0

    @classmethod
    def begin(cls, bets: int) -> Wagers:
        """Return the wealth of a number of bets before the first observation."""
        return cls([AT_ONCE] * bets)

    def observe(self, factors: Sequence[float]) -> None:
        """Multiply the wealth of each bet by what the observation pays, above 0 and on average at most 1."""
        if self.observations and self.observations % BETWEEN_STARTS == 0:
            self.starts += 1
            share = (1 - AT_ONCE) / (self.starts * (self.starts + 1))
            self.wealth = [each + share for each in self.wealth]
        self.wealth = [each * factor for each, factor in zip(self.wealth, factors, strict=True)]
        self.observations += 1

    @property
    def total(self) -> float:
        """The wealth, with what has not started: an e-value, 1 / level or more with probability at most level."""
        return sum(self.wealth) / len(self.wealth) + (1 - AT_ONCE) / (self.starts + 1)
