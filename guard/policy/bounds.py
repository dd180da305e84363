"""Exact binomial bounds (Clopper and Pearson, 1934) on an error rate.

Written here, because reading a certificate must not need SciPy; a test compares the values with SciPy's.
"""

from __future__ import annotations

import math

#: Of every interval here, two-sided.
CONFIDENCE = 0.95

#: A share or a number, with the low and the high end of its interval.
Interval = tuple[float, float, float]


def passes(errors: int, accepted: int, risk: float, confidence: float) -> bool:
    """Return whether the errors are few enough to rule out an error rate above ``risk`` at this confidence."""
    return binomial_cdf(errors, accepted, risk) <= 1 - confidence


# -- bounds of a rate --------------------------------------------------------------------------


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """P(Bin(trials, rate) <= successes), to about 1e-9 relative; 1 where nothing was tried."""
    if successes >= trials:
        return 1.0
    if successes < 0:
        return 0.0
    if successes <= trials * rate:
        return _lower_tail(successes, trials, rate)
    return 1.0 - _lower_tail(trials - successes - 1, trials, 1.0 - rate)


def _lower_tail(successes: int, trials: int, rate: float) -> float:
    """Return the sum of terms that fall from the first on, since successes <= trials x rate."""
    log_term = (
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(rate)
        + (trials - successes) * math.log1p(-rate)
    )
    term = total = math.exp(log_term)
    odds = (1.0 - rate) / rate
    for count in range(successes, 0, -1):
        term *= count / (trials - count + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, total)


def least_accepted(errors: int, risk: float, confidence: float) -> int:
    """Return the smallest number of accepted answers that passes with this number of errors."""
    low, high = errors, errors + 1
    while not passes(errors, high, risk, confidence):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(errors, middle, risk, confidence) else (middle, high)
    return high


def upper_bound(errors: int, accepted: int, confidence: float) -> float:
    """Upper end of the one-sided Clopper-Pearson interval of a rate; 1 where nothing was accepted."""
    if errors >= accepted:
        return 1.0
    low, high = errors / accepted, 1.0
    for _ in range(60):  # halves the interval down to the precision of a float
        middle = (low + high) / 2
        low, high = (low, middle) if passes(errors, accepted, middle, confidence) else (middle, high)
    return high


def lower_bound(errors: int, accepted: int, confidence: float) -> float:
    """Lower end of the one-sided Clopper-Pearson interval of a rate; 0 where nothing was accepted."""
    return 1.0 - upper_bound(accepted - errors, accepted, confidence) if accepted else 0.0


def exact_share(sure: int, unknown: int, trials: int) -> Interval:
    """Return a share with its 95 % Clopper-Pearson interval; unknown cases widen it.

    Examples:
        >>> [round(each, 4) for each in exact_share(1, 0, 20)]
        [0.05, 0.0013, 0.2487]
    """
    level = (1 + CONFIDENCE) / 2
    return sure / trials, lower_bound(sure, trials, level), upper_bound(sure + unknown, trials, level)


def percent(share: float) -> str:
    """Return a share as people write it: ``5 %``, ``12.5 %``."""
    return f"{100 * share:.4g} %"
