"""Programs' API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.access.clock import Clock, stamp
from guard.access.minutes import MinuteUse, add_tokens, take_request
from guard.access.records import ApiKey, Grant, KeyLimits, parse_grants
from guard.access.tokens import digest, key_prefix, make_key, same
from guard.checked import whole_number
from guard.errors import AccessError, InputError, did_you_mean
from guard.review.database import Database
from guard.review.migrations.tables import ACCESS_KEYS
from guard.review.records import storable_text

#: Shortest interval between two writes of the time of last use.
_STEP = timedelta(minutes=1)


class Keys:
    """The API keys of one database."""

    def __init__(self, connected: Database, clock: Clock) -> None:
        self._database = connected
        self._clock = clock

    def add(
        self,
        name: str,
        *,
        grants: Sequence[Grant],
        limits: KeyLimits | None = None,
        ends_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key.

        Args:
            name: for people; unique among keys that are not revoked.
            grants: at least one.
            limits: none by default.
            ends_at: expiry time; None for never.

        Returns:
            the key, and its secret, which is not stored.

        Raises:
            AccessError: the name is taken.
            InputError: the name or the roles are invalid, or the expiry time is past or has no time zone.
        """
        limits = limits or KeyLimits()
        prefix, secret = make_key()
        row = {
            "prefix": prefix,
            "secret_hash": digest(secret),
            "name": _checked_name(name),
            "grants": [str(grant) for grant in parse_grants(map(str, grants))],
            **{field: getattr(limits, field) for field in KeyLimits.__dataclass_fields__},
            "created_at": stamp(self._clock()),
            "ends_at": self._checked_end(ends_at),
        }
        with self._database.write() as connection:
            if _active(connection, row["name"]) is not None:
                raise AccessError(f"There is a key '{row['name']}' already", fix="Choose another name, or revoke it")
            connection.execute(sa.insert(ACCESS_KEYS).values(row))
            return self._to_key(_by_prefix(connection, prefix)), secret

    def all(self) -> list[ApiKey]:
        """Return all keys, including revoked ones, by name and age."""
        order = (ACCESS_KEYS.c.name, ACCESS_KEYS.c.created_at)
        with self._database.read() as connection:
            return [self._to_key(row) for row in connection.execute(sa.select(ACCESS_KEYS).order_by(*order))]

    def revoke(self, name: str) -> ApiKey:
        """Revoke a key with immediate effect.

        Args:
            name: the name, or the prefix of the secret (``grd_`` and eight characters).

        Raises:
            AccessError: there is no valid key of this name.
        """
        with self._database.write() as connection:
            row = _active(connection, name) or _active_by_prefix(connection, name)
            if row is None:
                working = sa.select(ACCESS_KEYS.c.name).where(ACCESS_KEYS.c.revoked_at.is_(None))
                hint = did_you_mean(name, connection.scalars(working.limit(50)).all())
                raise AccessError(f"There is no valid key '{name[:80]}'", fix=hint or "See: guard keys list")
            change = sa.update(ACCESS_KEYS).where(ACCESS_KEYS.c.prefix == row.prefix)
            connection.execute(change.values(revoked_at=stamp(self._clock())))
            return self._to_key(_by_prefix(connection, row.prefix))

    def find(self, secret: str) -> ApiKey | None:
        """Return the valid key of a secret, such as the one in ``Authorization: Bearer``, or None.

        The hash of the secret is compared in constant time, even if no key has its prefix. Revoked and expired keys
        are invalid. Pass ``key.principal`` to `guard.access.may`. `take` enforces the limits per minute, `charge`
        counts towards the monthly quota.
        """
        now = self._clock()
        with self._database.read() as connection:
            row = _by_prefix_or_none(connection, key_prefix(secret))
        if not same(secret, None if row is None else row.secret_hash) or row is None:
            return None
        if row.revoked_at is not None or (row.ends_at is not None and row.ends_at <= stamp(now)):
            return None
        if row.seen_at is None or row.seen_at <= stamp(now, -_STEP):
            with self._database.write() as connection:
                change = sa.update(ACCESS_KEYS).where(ACCESS_KEYS.c.prefix == row.prefix)
                connection.execute(change.values(seen_at=stamp(now)))
        return self._to_key(row)

    def take(self, prefix: str, limits: KeyLimits) -> MinuteUse:
        """Count a request towards a key's minute, unless one of its limits is reached. All servers count together.

        Tokens are known after an answer, so that requests at the same time may go past their limit together.

        Args:
            prefix: of the key, as in `ApiKey`.
            limits: of the key.
        """
        with self._database.write() as connection:
            return take_request(self._database, connection, prefix, limits)

    def charge(self, prefix: str, tokens: int) -> int:
        """Add tokens to the usage of a key in this calendar month (UTC); committed when this returns.

        They count towards its minute as well, where that has a limit.

        Check before a request that ``used_tokens`` is below ``limits.tokens_per_month``, and charge afterwards: one
        request may exceed the quota, and the next is refused.

        Args:
            prefix: prefix of the key, as in `ApiKey`.
            tokens: number of tokens, 0 or more.

        Returns:
            the usage of the key in this month.

        Raises:
            AccessError: there is no such key.
            InputError: ``tokens`` is negative or not a whole number.
        """
        whole_number("tokens", tokens, least=0)
        month = _month(self._clock())
        before = sa.case((ACCESS_KEYS.c.used_month == month, ACCESS_KEYS.c.used_tokens), else_=0)
        change = sa.update(ACCESS_KEYS).where(ACCESS_KEYS.c.prefix == prefix)
        with self._database.write() as connection:
            connection.execute(change.values(used_tokens=before + tokens, used_month=month))
            key = self._to_key(_by_prefix(connection, prefix))
            if key.limits.tokens_per_minute is not None:
                add_tokens(self._database, connection, prefix, tokens)
            return key.used_tokens

    def _checked_end(self, ends_at: datetime | None) -> str | None:
        if ends_at is None:
            return None
        if ends_at.tzinfo is None or ends_at <= self._clock():
            raise InputError(
                "The expiry time of a key must be in the future and have a time zone", why=f"got {ends_at.isoformat()}"
            )
        return stamp(ends_at)

    def _to_key(self, row: sa.Row[Any]) -> ApiKey:
        limits = KeyLimits(row.requests_per_minute, row.tokens_per_minute, row.tokens_per_month)
        used = row.used_tokens if row.used_month == _month(self._clock()) else 0
        grants = tuple(map(Grant.parse, row.grants))
        times = (row.created_at, row.seen_at, row.ends_at, row.revoked_at)
        return ApiKey(row.prefix, row.name, grants, limits, used, *times)


def _month(time: datetime) -> str:
    return stamp(time)[:7]


def _checked_name(name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= 80 or not name.isprintable():
        raise InputError("A key's name must have 1 to 80 printable characters", why=f"got {name[:80]!r}")
    return name


def _active(connection: Connection, name: str) -> sa.Row[Any] | None:
    same_name = ACCESS_KEYS.c.name == storable_text(name.strip())
    return connection.execute(sa.select(ACCESS_KEYS).where(same_name, ACCESS_KEYS.c.revoked_at.is_(None))).first()


def _active_by_prefix(connection: Connection, prefix: str) -> sa.Row[Any] | None:
    row = _by_prefix_or_none(connection, key_prefix(prefix.strip()))
    return row if row is not None and row.revoked_at is None else None


def _by_prefix_or_none(connection: Connection, prefix: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(ACCESS_KEYS).where(ACCESS_KEYS.c.prefix == prefix)).first()


def _by_prefix(connection: Connection, prefix: str) -> sa.Row[Any]:
    row = _by_prefix_or_none(connection, prefix)
    if row is None:
        raise AccessError(f"There is no key '{prefix[:80]}'", fix="See: guard keys list")
    return row
