"""Times in the database: ISO 8601 in UTC with a fixed length, so that they sort as text."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from guard.review.records import text_of_time

#: Returns the present time, aware of its zone.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


def stamp(time: datetime, later: timedelta = timedelta()) -> str:
    """Return a time, or one so much later, as it is kept.

    Examples:
        >>> stamp(datetime(2026, 1, 2, tzinfo=UTC), timedelta(hours=3))
        '2026-01-02T03:00:00.000000+00:00'
    """
    return text_of_time(time + later)
