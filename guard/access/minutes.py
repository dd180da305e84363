"""What an API key uses in a minute, in the database: all servers that share it count together.

A minute begins with a key's first request, by the database's own clock, and its row is locked while it is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.access.records import KeyLimits
from guard.review.database import Database
from guard.review.migrations.tables import ACCESS_MINUTES
from guard.review.records import text_of_time

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class MinuteUse:
    """What a key has used in its present minute.

    Attributes:
        requests, tokens: counted so far, by all servers.
        left_s: seconds until the next minute.
        reached: the limit that refuses the request, which is then not counted; None where it may go ahead.
    """

    requests: int
    tokens: int
    left_s: float
    reached: Literal["requests", "tokens"] | None = None


@dataclass(frozen=True, slots=True)
class _Minute:
    """A key's row, locked; a new one where the last is over."""

    prefix: str
    began: datetime
    now: datetime
    requests: int = 0
    tokens: int = 0

    def reached(self, limits: KeyLimits) -> Literal["requests", "tokens"] | None:
        used = {"requests": self.requests, "tokens": self.tokens}
        return next((what for what, limit in limits.of_a_minute.items() if used[what] >= limit), None)

    def save(self, connection: Connection) -> None:
        change = sa.update(ACCESS_MINUTES).where(ACCESS_MINUTES.c.prefix == self.prefix)
        values = {"began_at": text_of_time(self.began), "requests": self.requests, "tokens": self.tokens}
        connection.execute(change.values(values))


def take_request(database: Database, connection: Connection, prefix: str, limits: KeyLimits) -> MinuteUse:
    """Count a request of a key, unless a limit of its minute is reached.

    Args:
        database, connection: a transaction that writes.
        prefix: of the key.
        limits: of the key.
    """
    minute = _locked(database, connection, prefix)
    reached = minute.reached(limits)
    if reached is None:
        minute = replace(minute, requests=minute.requests + 1)
        minute.save(connection)
    left = (minute.began + _MINUTE - minute.now).total_seconds()
    return MinuteUse(minute.requests, minute.tokens, left, reached)


def add_tokens(database: Database, connection: Connection, prefix: str, tokens: int) -> None:
    """Add the tokens of an answer to a key's minute; arguments as for `take_request`."""
    minute = _locked(database, connection, prefix)
    replace(minute, tokens=minute.tokens + tokens).save(connection)


def _locked(database: Database, connection: Connection, prefix: str) -> _Minute:
    """Lock a key's row against other servers, and return it."""
    row = {"prefix": prefix, "began_at": database.now(connection), "requests": 0, "tokens": 0}
    connection.execute(database.insert_new(ACCESS_MINUTES).values(row))
    query = sa.select(ACCESS_MINUTES).where(ACCESS_MINUTES.c.prefix == prefix).with_for_update()
    found = connection.execute(query).one()
    now = database.clock(connection)  # taken behind the lock, so that no other server's time is later
    began = datetime.fromisoformat(found.began_at)
    if not timedelta() <= now - began < _MINUTE:  # a clock that was set back begins a new minute, too
        return _Minute(prefix, now, now)
    return _Minute(prefix, began, now, found.requests, found.tokens)
