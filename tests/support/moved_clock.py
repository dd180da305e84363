"""A review store's clock that stands still, but for microseconds, until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from guard.review.records import text_of_time
from guard.review.store import Store


class MovedClock:
    """Takes the place of the clock of stores.

    It begins after the times of `made_cases.make_escalation`.
    """

    def __init__(self, *stores: Store) -> None:
        self.time = datetime(2026, 1, 2, tzinfo=UTC)
        for store in stores:
            store._database.clock = lambda _: self.read()

    def __str__(self) -> str:
        return text_of_time(self.time)

    def read(self) -> datetime:
        """Return a time later than the last one, by a microsecond."""
        self.move(1e-6)
        return self.time

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.time += timedelta(seconds=seconds)
