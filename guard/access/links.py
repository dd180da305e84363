"""One-time links: to make the first account, and to set a password."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.access.clock import Clock, stamp
from guard.access.passwords import check_password, hash_password
from guard.access.records import Grant, Role, User
from guard.access.tokens import digest, make_token
from guard.access.users import find_user, insert_user, new_user_row
from guard.errors import AccessError
from guard.review.database import Database
from guard.review.migrations.tables import ACCESS_LINKS, ACCESS_SESSIONS, ACCESS_USERS

#: Lifetimes of the first-run link and of password links.
FIRST_RUN, PASSWORD = timedelta(minutes=30), timedelta(days=3)

#: Roles of the first account: it administers and decides, so that one person alone can review.
FIRST_GRANTS = (Grant(Role.ADMIN), Grant(Role.LEAD))


class Links:
    """The one-time links of one database."""

    def __init__(self, connected: Database, clock: Clock) -> None:
        self._database = connected
        self._clock = clock

    def for_first_user(self) -> str:
        """Return the secret of a new link for the first account; earlier ones become invalid.

        Raises:
            AccessError: an account exists.
        """
        with self._database.write() as connection:
            _refuse_if_users(connection)
            connection.execute(sa.delete(ACCESS_LINKS).where(ACCESS_LINKS.c.user_id.is_(None)))
            return self._add(connection, None, FIRST_RUN)

    def for_password(self, login: str) -> str:
        """Return the secret of a new password link for a user; earlier ones become invalid.

        Raises:
            AccessError: there is no such user.
        """
        with self._database.write() as connection:
            user = find_user(connection, login)
            connection.execute(sa.delete(ACCESS_LINKS).where(ACCESS_LINKS.c.user_id == user.id))
            return self._add(connection, user.id, PASSWORD)

    def check(self, secret: str) -> str | None:
        """Return the user of a password link, or None for the link of the first account.

        Raises:
            AccessError: the link does not exist, was used, or has expired.
        """
        with self._database.read() as connection:
            return self._valid(connection, secret)

    def make_first_user(self, secret: str, login: str, *, name: str = "", password: str) -> User:
        """Use a link and make the first account, an admin and lead.

        Raises:
            AccessError: the link is invalid, or an account exists.
            InputError: the name or the password is invalid; the link stays valid.
        """
        row = new_user_row(login, name, FIRST_GRANTS, password, stamp(self._clock()))
        with self._database.write() as connection:
            if self._used_up(connection, secret) is not None:
                raise _not_valid()
            _refuse_if_users(connection)
            insert_user(connection, row)
            return find_user(connection, row["id"])

    def set_password(self, secret: str, password: str) -> User:
        """Use a link and set its user's password, which ends that user's sessions.

        Raises:
            AccessError: the link is invalid.
            InputError: the password is invalid; the link stays valid.
        """
        login = self.check(secret)
        check_password(password, login=login or "")
        hashed = hash_password(password)
        with self._database.write() as connection:
            login = self._used_up(connection, secret)
            if login is None:
                raise _not_valid()
            connection.execute(sa.update(ACCESS_USERS).where(ACCESS_USERS.c.id == login).values(password_hash=hashed))
            connection.execute(sa.delete(ACCESS_SESSIONS).where(ACCESS_SESSIONS.c.user_id == login))
            return find_user(connection, login)

    def _add(self, connection: Connection, user_id: str | None, life: timedelta) -> str:
        secret = make_token()
        row = {"id": digest(secret), "user_id": user_id, "ends_at": stamp(self._clock(), life)}
        connection.execute(sa.insert(ACCESS_LINKS).values(row))
        return secret

    def _valid(self, connection: Connection, secret: str) -> str | None:
        found: sa.Row[Any] | None = connection.execute(
            sa.select(ACCESS_LINKS).where(ACCESS_LINKS.c.id == digest(secret))
        ).first()
        if found is None or found.ends_at <= stamp(self._clock()):
            raise _not_valid()
        return None if found.user_id is None else str(found.user_id)

    def _used_up(self, connection: Connection, secret: str) -> str | None:
        """Delete a link; of two concurrent uses, one fails."""
        login = self._valid(connection, secret)
        gone = connection.execute(sa.delete(ACCESS_LINKS).where(ACCESS_LINKS.c.id == digest(secret)))
        if gone.rowcount != 1:
            raise _not_valid()
        return login


def _refuse_if_users(connection: Connection) -> None:
    if connection.scalar(sa.select(ACCESS_USERS.c.id).limit(1)) is not None:
        raise AccessError("An account exists already", fix="Sign in, or ask an admin for an account")


def _not_valid() -> AccessError:
    return AccessError("This link does not work", why="it was used, has expired, or was replaced by a newer one")
