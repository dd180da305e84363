"""Test a guaranteed error rate on labels that arrive one by one; the result can be read at any time.

The hypothesis is that at most a share ``risk`` of the accepted answers is wrong; a random sample of them has labels.
Not in `guard.certification`, since production never imports the laboratory. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from guard.errors import InputError
from guard.monitoring.wagers import Wagers

#: Shares of the wealth that the bets put at stake; the best is about (rate - risk) / (1 - risk) for the true rate.
STAKES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True, slots=True)
class RiskEvidence:
    """Evidence of labels against a guarantee.

    Attributes:
        labels: number of answers in the test.
        wrong: number of these that are wrong.
        e_value: evidence against the guarantee now; 1 is none.
        largest: the largest evidence so far.
        broken_at: the label, counted from 1, at which the guarantee was found broken; None if it is not.
    """

    labels: int
    wrong: int
    e_value: float
    largest: float
    broken_at: int | None

    @property
    def broken(self) -> bool:
        """Whether the guarantee was found broken."""
        return self.broken_at is not None


def risk_evidence(wrong: Iterable[bool], *, risk: float, false_alarms: float) -> RiskEvidence:
    """Test a guarantee on labels in the order in which the answers were drawn.

    A label that is not known yet counts as right. That never adds evidence, so labels may come in any order.

    Args:
        wrong: whether each answer of the sample is wrong.
        risk: guaranteed share of wrong answers, above 0 and below 1.
        false_alarms: probability of ever finding a guarantee broken that holds, above 0 and below 1.

    Raises:
        InputError: a share is out of range.

    Examples:
        >>> risk_evidence([False] * 200, risk=0.05, false_alarms=0.05).broken
        False
        >>> risk_evidence([True, False, False] * 10, risk=0.05, false_alarms=0.05).broken_at
        10
    """
    labels = [*map(bool, wrong)]
    path = [1.0, *evidence_path(labels, risk=risk, false_alarms=false_alarms)]
    broken_at = len(path) - 1 if path[-1] >= 1 / false_alarms else None
    return RiskEvidence(len(labels), sum(labels), path[-1], max(path), broken_at)


def evidence_path(wrong: Iterable[bool], *, risk: float, false_alarms: float) -> Iterator[float]:
    """Yield the evidence after each label, up to the one at which the guarantee is found broken: it stays broken.

    Args:
        wrong, risk, false_alarms: as for `risk_evidence`.

    Raises:
        InputError: a share is out of range.

    Examples:
        >>> [round(each, 2) for each in evidence_path([False, True], risk=0.05, false_alarms=0.05)]
        [0.89, 1.88]
    """
    for name, share in (("risk", risk), ("false_alarms", false_alarms)):
        if not 0.0 < share < 1.0:
            raise InputError(f"{name} is a share above 0 and below 1, got {share}")
    pays = {True: [1 + stake * (1 / risk - 1) for stake in STAKES], False: [1 - stake for stake in STAKES]}
    wagers = Wagers.begin(len(STAKES))
    for is_wrong in wrong:
        wagers.observe(pays[bool(is_wrong)])
        yield wagers.total
        if wagers.total >= 1 / false_alarms:
            return
