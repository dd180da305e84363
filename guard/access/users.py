"""User accounts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.access.clock import Clock, stamp
from guard.access.oidc import OidcIdentity
from guard.access.passwords import check_password, hash_password, verify_password
from guard.access.records import Grant, Role, User, parse_grants
from guard.access.tokens import digest
from guard.errors import AccessError, InputError, did_you_mean
from guard.review.database import Database
from guard.review.migrations.tables import ACCESS_FAILURES, ACCESS_SESSIONS, ACCESS_USERS
from guard.review.records import storable_text

#: Number of wrong passwords that lock a name.
TRIES = 5
#: Duration of the lock; older failures do not count.
LOCKED = timedelta(minutes=15)

_LOGIN = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")


class Users:
    """The accounts of one database. Methods that change one raise `StoreError` if the database cannot be written."""

    def __init__(self, connected: Database, clock: Clock) -> None:
        self._database = connected
        self._clock = clock

    def add(self, login: str, *, name: str = "", grants: Sequence[Grant], password: str | None = None) -> User:
        """Make an account.

        Args:
            login: 1 to 64 letters, digits and ``. _ @ + -``; kept in lower case.
            name: display name; by default the login name.
            grants: at least one.
            password: at least 12 characters; None for users who sign in by a link or a proxy.

        Raises:
            AccessError: the login name is taken.
            InputError: the name, the roles or the password is invalid.
        """
        row = new_user_row(login, name, grants, password, stamp(self._clock()))
        with self._database.write() as connection:
            insert_user(connection, row)
            return find_user(connection, row["id"])

    def all(self) -> list[User]:
        """Return all accounts, by login name."""
        with self._database.read() as connection:
            return [to_user(row) for row in connection.execute(sa.select(ACCESS_USERS).order_by(ACCESS_USERS.c.id))]

    def get(self, login: str) -> User:
        """Return one account.

        Raises:
            AccessError: there is none.
        """
        with self._database.read() as connection:
            return find_user(connection, login)

    def exist(self) -> bool:
        """Return whether there is any account."""
        with self._database.read() as connection:
            return connection.scalar(sa.select(ACCESS_USERS.c.id).limit(1)) is not None

    def set_grants(self, login: str, grants: Sequence[Grant]) -> User:
        """Replace the roles of a user; sessions have them from the next request.

        Raises:
            AccessError: there is no such user, or no admin would be left.
        """
        texts = [str(grant) for grant in parse_grants(map(str, grants))]
        return self._change(login, {"grants": texts})

    def set_password(self, login: str, password: str) -> User:
        """Set a password, which ends the user's sessions.

        Raises:
            AccessError: there is no such user.
            InputError: the password is invalid.
        """
        check_password(password, login=login)
        return self._change(login, {"password_hash": hash_password(password)}, ends_sessions=True)

    def disable(self, login: str) -> User:
        """Disable an account and end its sessions; verdicts keep the name.

        Raises:
            AccessError: there is no such user, or no admin would be left.
        """
        return self._change(login, {"disabled_at": stamp(self._clock())}, ends_sessions=True)

    def enable(self, login: str) -> User:
        """Enable a disabled account.

        Raises:
            AccessError: there is no such user.
        """
        return self._change(login, {"disabled_at": None})

    def admit(self, identity: OidcIdentity) -> User:
        """Return the account of somebody who has signed in at a provider, with name and roles as it says now.

        The first time it is made. An account belongs to one person there for good: a name that somebody else has
        here already is not given to them.

        Raises:
            AccessError: the login name is another account's, the account is disabled, or no admin would be left.
            InputError: the login name cannot be used.
        """
        with self._database.write() as connection:
            mine = ACCESS_USERS.c.identity == storable_text(identity.subject)
            row = connection.execute(sa.select(ACCESS_USERS).where(mine).with_for_update()).first()
            if row is None:
                new = new_user_row(identity.login, identity.name[:80], identity.grants, None, stamp(self._clock()))
                insert_user(connection, {**new, "identity": storable_text(identity.subject)})
                return find_user(connection, new["id"])
            if row.disabled_at is not None:
                raise AccessError("This account is disabled", fix="Ask an admin")
            user, grants = to_user(row), [str(grant) for grant in identity.grants]
            connection.execute(sa.update(ACCESS_USERS).where(mine).values(grants=grants))
            if _is_admin(user) and not _any_admin(connection):
                raise AccessError("Your new roles would leave no admin", fix="Make another user an admin first")
            return find_user(connection, user.id)

    def check_login(self, login: str, password: str) -> User:
        """Return the user with this name and password.

        Five wrong passwords lock a name for fifteen minutes, whether or not the user exists.

        Raises:
            AccessError: name or password is wrong, the account is disabled, or the name is locked. The message is the
                same for an unknown name and a wrong password.
        """
        key = digest(login.strip().casefold())
        now = self._clock()
        with self._database.write() as connection:
            left = _count_try(self._database, connection, key, stamp(now), stamp(now, -LOCKED))
            row = _row(connection, login)
        if left < 0:
            raise AccessError("Too many wrong passwords", why="this name is locked", fix="Try again in 15 minutes")
        right = verify_password(password, row.password_hash if row is not None else None)
        if row is None or not right or row.disabled_at is not None:
            raise AccessError("Name or password is wrong", fix=_tries_left(left))
        with self._database.write() as connection:
            connection.execute(sa.delete(ACCESS_FAILURES).where(ACCESS_FAILURES.c.login == key))
        return to_user(row)

    def _change(self, login: str, values: dict[str, Any], *, ends_sessions: bool = False) -> User:
        with self._database.write() as connection:
            user = find_user(connection, login, for_update=True)
            connection.execute(sa.update(ACCESS_USERS).where(ACCESS_USERS.c.id == user.id).values(values))
            if ends_sessions:
                connection.execute(sa.delete(ACCESS_SESSIONS).where(ACCESS_SESSIONS.c.user_id == user.id))
            if _is_admin(user) and not _any_admin(connection):
                raise AccessError(
                    f"'{user.id}' is the last admin",
                    fix="Make another user an admin first: guard users role NAME admin",
                )
            return find_user(connection, user.id)


def new_user_row(
    login: str, name: str, grants: Sequence[Grant], password: str | None, created_at: str
) -> dict[str, Any]:
    """Return a checked row of ``access_users``; errors as for `Users.add`."""
    login = checked_login(login)
    if password is not None:
        check_password(password, login=login)
    name = name.strip() or login
    if len(name) > 80 or not name.isprintable():
        raise InputError("The name shown to others must be at most 80 printable characters")
    return {
        "id": login,
        "name": name,
        "grants": [str(grant) for grant in parse_grants(map(str, grants))],
        "password_hash": None if password is None else hash_password(password),
        "created_at": created_at,
    }


def checked_login(login: str) -> str:
    """Return a login name in lower case.

    Raises:
        InputError: the name has other characters, or is too long.

    Examples:
        >>> checked_login(" Mira.Patel ")
        'mira.patel'
    """
    name = login.strip().casefold()
    if not _LOGIN.fullmatch(name):
        raise InputError(
            f"'{login[:80]}' cannot be a login name",
            why="it has 1 to 64 of the characters a-z, 0-9 and . _ @ + - and begins with a letter or digit",
        )
    return name


def insert_user(connection: Connection, row: dict[str, Any]) -> None:
    """Insert an account.

    Raises:
        AccessError: the login name is taken.
    """
    if _row(connection, row["id"]) is not None:
        raise AccessError(f"There is a user '{row['id']}' already", fix="Choose another login name")
    connection.execute(sa.insert(ACCESS_USERS).values(row))


def find_user(connection: Connection, login: str, *, for_update: bool = False) -> User:
    """Return one account.

    Raises:
        AccessError: there is none.
    """
    if (row := _row(connection, login, for_update=for_update)) is not None:
        return to_user(row)
    known = connection.scalars(sa.select(ACCESS_USERS.c.id).order_by(ACCESS_USERS.c.id).limit(50)).all()
    raise AccessError(f"There is no user '{login[:80]}'", fix=did_you_mean(login, known) or "See: guard users list")


def to_user(row: sa.Row[Any]) -> User:
    """Return the record of a row of ``access_users``."""
    grants = tuple(map(Grant.parse, row.grants))
    has_password = row.password_hash is not None
    return User(row.id, row.name, grants, has_password, row.created_at, row.seen_at, row.disabled_at)


def _row(connection: Connection, login: str, *, for_update: bool = False) -> sa.Row[Any] | None:
    name = storable_text(login.strip().casefold())
    query = sa.select(ACCESS_USERS).where(ACCESS_USERS.c.id == name)
    return connection.execute(query.with_for_update() if for_update else query).first()


def _is_admin(user: User) -> bool:
    return user.disabled_at is None and any(grant.role is Role.ADMIN for grant in user.grants)


def _any_admin(connection: Connection) -> bool:
    return any(_is_admin(to_user(row)) for row in connection.execute(sa.select(ACCESS_USERS)))


def _count_try(database: Database, connection: Connection, key: str, now: str, oldest: str) -> int:
    """Count an attempt before checking the password, so concurrent attempts count; return the remaining number.

    A negative number means that this attempt is not allowed.
    """
    failures = ACCESS_FAILURES.c
    connection.execute(sa.delete(ACCESS_FAILURES).where(failures.at <= oldest))
    connection.execute(database.insert_new(ACCESS_FAILURES).values(login=key, tries=0, at=now))
    # The row is now locked by this transaction: other attempts wait.
    last = sa.case((failures.tries < TRIES, now), else_=failures.at)
    mine = sa.update(ACCESS_FAILURES).where(failures.login == key)
    connection.execute(mine.values(tries=failures.tries + 1, at=last))
    return TRIES - int(connection.scalars(sa.select(failures.tries).where(failures.login == key)).one())


def _tries_left(left: int) -> str:
    minutes = f"{LOCKED.seconds // 60} minutes"
    if left == 0:
        return f"This name is locked for {minutes}"
    return f"After {left} more {'try' if left == 1 else 'tries'} this name is locked for {minutes}"
