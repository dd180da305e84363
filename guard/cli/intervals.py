"""Figures with intervals, as commands that compare policies print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guard.replay.figures import Interval


def percent_interval(interval: Interval) -> str:
    """Return a share with its interval, as percentages."""
    share, low, high = interval
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def number_interval(interval: Interval) -> str:
    """Return a number with its interval."""
    return f"{interval[0]:,.1f} ({interval[1]:,.1f} to {interval[2]:,.1f})"


def minutes_a_day(minutes: float | None) -> str:
    """Return minutes of people's time, or that they are not known."""
    return "not known" if minutes is None else f"{minutes:,.0f}"
