"""Sessions: rows in the database, found by the hash of the cookie's secret."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from guard.access.clock import Clock, stamp
from guard.access.records import Session
from guard.access.tokens import digest, make_token
from guard.access.users import find_user
from guard.review.database import Database
from guard.review.migrations.tables import ACCESS_SESSIONS, ACCESS_USERS

#: Longest lifetime of a session, and longest time without a request.
LIFE, IDLE = timedelta(days=7), timedelta(hours=12)
#: Shortest interval between two writes of the time of the last request.
_STEP = timedelta(minutes=1)


class Sessions:
    """The sessions of one database."""

    def __init__(self, connected: Database, clock: Clock) -> None:
        self._database = connected
        self._clock = clock

    def begin(self, login: str, *, instead_of: str | None = None) -> str:
        """Start a session and return its secret, which goes into the cookie and is not stored.

        Args:
            login: login name of the authenticated user.
            instead_of: the browser's previous secret. That session ends, which prevents session fixation.

        Raises:
            AccessError: there is no such user.
        """
        secret = make_token()
        now = self._clock()
        times = {"created_at": stamp(now), "seen_at": stamp(now), "ends_at": stamp(now, LIFE)}
        with self._database.write() as connection:
            user = find_user(connection, login)
            connection.execute(sa.delete(ACCESS_SESSIONS).where(ACCESS_SESSIONS.c.ends_at <= stamp(now)))
            if instead_of is not None:
                connection.execute(sa.delete(ACCESS_SESSIONS).where(ACCESS_SESSIONS.c.id == digest(instead_of)))
            connection.execute(sa.insert(ACCESS_SESSIONS).values(id=digest(secret), user_id=user.id, **times))
            connection.execute(sa.update(ACCESS_USERS).where(ACCESS_USERS.c.id == user.id).values(seen_at=stamp(now)))
        return secret

    def find(self, secret: str) -> Session | None:
        """Return the session of a cookie's secret with its current user, or None.

        A session ends seven days after the login, twelve hours after the last request, or when the user is disabled.
        Pass ``session.user.principal`` to `guard.access.may`.
        """
        now = self._clock()
        with self._database.read() as connection:
            row = connection.execute(sa.select(ACCESS_SESSIONS).where(ACCESS_SESSIONS.c.id == digest(secret))).first()
            if row is None or row.ends_at <= stamp(now) or row.seen_at <= stamp(now, -IDLE):
                return None
            user = find_user(connection, row.user_id)
        if user.disabled_at is not None:
            return None
        if row.seen_at <= stamp(now, -_STEP):
            self._seen(row.id, user.id, now)
        return Session(user, row.created_at, row.ends_at)

    def end(self, secret: str) -> None:
        """End a session, if it exists."""
        with self._database.write() as connection:
            connection.execute(sa.delete(ACCESS_SESSIONS).where(ACCESS_SESSIONS.c.id == digest(secret)))

    def _seen(self, session_id: str, user_id: str, now: datetime) -> None:
        with self._database.write() as connection:
            for table, key in ((ACCESS_SESSIONS, session_id), (ACCESS_USERS, user_id)):
                connection.execute(sa.update(table).where(table.c.id == key).values(seen_at=stamp(now)))
