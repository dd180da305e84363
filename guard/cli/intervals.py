"""Figures with intervals, as commands that compare policies print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guard.policy.bounds import Interval


def percent_interval(interval: Interval) -> str:
    """Return a share with its interval, as percentages."""
    share, low, high = interval
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def short_interval(interval: Interval) -> str:
    """Return a share with its interval, as whole percentages for narrow tables; only 0 is 0 % and only 1 is 100 %.

    Examples:
        >>> short_interval((0.0, 0.0, 0.0023)), short_interval((0.4, 0.264, 0.548))
        ('0% (0% to <1%)', '40% (26% to 55%)')
    """
    share, low, high = map(_whole_percent, interval)
    return f"{share} ({low} to {high})"


def _whole_percent(share: float) -> str:
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 < share < 1 else f"{share:.0%}"


def number_interval(interval: Interval) -> str:
    """Return a number with its interval."""
    return f"{interval[0]:,.1f} ({interval[1]:,.1f} to {interval[2]:,.1f})"


def minutes_a_day(minutes: float | None) -> str:
    """Return minutes of people's time, or that they are not known."""
    return "not known" if minutes is None else f"{minutes:,.0f}"
