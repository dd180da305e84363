"""Formats of times, numbers and names on the pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HOUR, _DAY = 3600, 86_400


@dataclass(frozen=True, slots=True)
class Due:
    """The due time of a case in words.

    Attributes:
        text: such as ``in 42 min`` or ``14 min late``.
        kind: ``late``, ``soon`` (within the hour) or empty.
        at: the time itself, ISO 8601.
    """

    text: str
    kind: str
    at: str


def duration(seconds: float) -> str:
    """Return a duration in at most two units.

    Examples:
        >>> [duration(seconds) for seconds in (40, 2520, 11880, 7200, 200000)]
        ['40 s', '42 min', '3 h 18 min', '2 h', '2 d']
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // 60} min"
    if whole >= 2 * _DAY:
        return f"{whole // _DAY} d"
    minutes = whole % _HOUR // 60
    return f"{whole // _HOUR} h {minutes:02d} min" if minutes else f"{whole // _HOUR} h"


def since(at: str, now: datetime) -> float:
    """Return the seconds from a stored time to now."""
    return (now - datetime.fromisoformat(at)).total_seconds()


def ago(at: str, now: datetime) -> str:
    """Return the age of a time, or its date after a day.

    Examples:
        >>> ago("2026-11-25T10:00:00+00:00", datetime(2026, 11, 25, 13, 18, tzinfo=UTC))
        '3 h 18 min ago'
    """
    seconds = since(at, now)
    return f"{duration(seconds)} ago" if seconds < _DAY else date(at, now)


def date(at: str, now: datetime) -> str:
    """Return a day such as ``12 Nov``, with the year after a year."""
    time = datetime.fromisoformat(at)
    year = f" {time.year}" if now - time > timedelta(days=365) else ""
    return f"{time.day} {_MONTHS[time.month - 1]}{year}"


def moment(at: str, now: datetime) -> str:
    """Return a time as ``13:47``, with the day if it is not today."""
    time = datetime.fromisoformat(at).astimezone(UTC)
    clock = f"{time:%H:%M}"
    return clock if time.date() == now.date() else f"{date(at, now)}, {clock}"


def due(at: str | None, now: datetime) -> Due | None:
    """Return the due time of a case in words; None if it has none."""
    if at is None:
        return None
    left = -since(at, now)
    if left <= 0:
        return Due(f"{duration(-left)} late", "late", at)
    return Due(f"in {duration(left)}", "soon" if left <= _HOUR else "", at)


def share(part: int, whole: int) -> str:
    """Return a percentage such as ``43 %``, below 10 with one decimal; ``-`` without a whole.

    Examples:
        >>> share(43, 100), share(1, 50), share(0, 0)
        ('43 %', '2.0 %', '-')
    """
    if not whole:
        return "-"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def initials(name: str) -> str:
    """Return the initials of a person, at most two letters.

    Examples:
        >>> initials("Mira Patel"), initials("mira")
        ('MP', 'M')
    """
    parts = [part for part in name.replace(".", " ").split() if part[0].isalnum()]
    return "".join(part[0] for part in (parts[:1] + parts[1:][-1:])).upper()
