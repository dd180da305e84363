"""Endpoints: receivers of notifications, with their events and secrets."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.errors import InputError, did_you_mean
from guard.review import outbox
from guard.review.migrations.tables import ENDPOINTS
from guard.review.outbox import EVENTS, Notification
from guard.review.records import storable_text
from guard.review.sealing import seal, unseal

if TYPE_CHECKING:
    from guard.review.database import Database
    from guard.review.store import Store

#: A Standard Webhooks receiver, a Slack-compatible incoming webhook, a mail address, a function of the worker.
EndpointKind = Literal["webhook", "slack", "email", "python"]
KINDS: tuple[EndpointKind, ...] = get_args(EndpointKind)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of notifications.

    Attributes:
        name: name of the endpoint, and of the function of a ``python`` endpoint.
        kind: ``webhook``, ``slack``, ``email`` or ``python``.
        address: the address without secrets.
        events: events that are sent; empty for all.
        with_text: whether question, answers and note are sent; by default only ids and states.
        allow_private: whether the host may be a private address.
        created_at: when it was added.
        off_at, off_reason: when and why it was disabled; None while it is enabled.
    """

    name: str
    kind: EndpointKind
    address: str
    events: tuple[str, ...]
    with_text: bool
    allow_private: bool
    created_at: str
    off_at: str | None
    off_reason: str | None


class Endpoints:
    """The endpoints of a review store."""

    def __init__(self, store: Store) -> None:
        self._database: Database = store._database

    def add(
        self,
        name: str,
        target: str,
        *,
        kind: EndpointKind = "webhook",
        events: Sequence[str] = (),
        with_text: bool = False,
        allow_private: bool = False,
    ) -> str | None:
        """Add an endpoint, which gets all events from now on.

        Args:
            name: name of the endpoint.
            target: a URL or a mail address; for a ``python`` endpoint, a description.
            kind: see `EndpointKind`.
            events: events that are sent; by default all.
            with_text: whether texts of people and models are sent, too.
            allow_private: whether the host may be in a private network, such as 10.0.0.5 or localhost.

        Returns:
            the secret with which a ``webhook`` receiver verifies signatures, shown only once. None for other kinds.

        Raises:
            InputError: a value is invalid, or the name is taken.
        """
        _check(name, target, kind, events)
        secret = _new_secret() if kind == "webhook" else None
        sealed = seal({"target": target, "secrets": [secret]}) if kind in ("webhook", "slack") else None
        row = {
            "name": storable_text(name),
            "kind": kind,
            "address": _shown(target, kind),
            "sealed": sealed,
            "events": list(events),
            "with_text": int(with_text),
            "allow_private": int(allow_private),
        }
        with self._database.write() as connection:
            if _row(connection, name) is not None:
                raise InputError(f"There is an endpoint '{name}' already", fix="Give it another name")
            connection.execute(sa.insert(ENDPOINTS).values(**row, created_at=self._database.now(connection)))
        return secret

    def all(self) -> list[Endpoint]:
        """Return all endpoints by name."""
        with self._database.read() as connection:
            return [_endpoint(row) for row in connection.execute(sa.select(ENDPOINTS).order_by(ENDPOINTS.c.name))]

    def rotate(self, name: str) -> str:
        """Return a new secret of a webhook. Until the next rotation, messages are signed with it and the previous one.

        Raises:
            InputError: there is no such webhook.
        """
        with self._database.write() as connection:
            row = self._known(connection, name)
            if row.kind != "webhook":
                raise InputError(f"The endpoint '{name}' has no secret", why=f"it is of kind {row.kind}")
            kept, secret = unseal(row.sealed), _new_secret()
            sealed = seal({**kept, "secrets": [secret, kept["secrets"][0]]})
            connection.execute(sa.update(ENDPOINTS).where(ENDPOINTS.c.name == name).values(sealed=sealed))
        return secret

    def switch(self, name: str, *, on: bool) -> None:
        """Enable or disable an endpoint; its pending messages wait until it is enabled.

        Raises:
            InputError: there is no such endpoint.
        """
        with self._database.write() as connection:
            self._known(connection, name)
            off = {"off_at": self._database.now(connection), "off_reason": "switched off by hand"}
            values = {"off_at": None, "off_reason": None} if on else off
            connection.execute(sa.update(ENDPOINTS).where(ENDPOINTS.c.name == name).values(values))

    def messages(self, *, endpoint: str | None = None, dead: bool = False, limit: int = 50) -> list[Notification]:
        """Return messages, the newest first.

        Args:
            endpoint: only messages of this endpoint.
            dead: only dead letters.
            limit: largest number of messages.
        """
        with self._database.read() as connection:
            return outbox.messages(connection, endpoint=endpoint, dead=dead, limit=limit)

    def replay(self, *names: str, endpoint: str | None = None) -> int:
        """Send delivered or dead messages again, with the same ids; return their number.

        Args:
            names: ids of messages; by default all dead letters.
            endpoint: only messages of this endpoint.

        Raises:
            InputError: there is no such message or endpoint.
        """
        with self._database.write() as connection:
            if endpoint is not None:
                self._known(connection, endpoint)
            return outbox.replay(connection, self._database.now(connection), names, endpoint=endpoint)

    def secrets(self, name: str) -> dict[str, Any]:
        """Return the decrypted ``target`` and ``secrets`` of an endpoint, for the worker."""
        with self._database.read() as connection:
            return unseal(self._known(connection, name).sealed)

    def _known(self, connection: Connection, name: str) -> sa.Row[Any]:
        if (row := _row(connection, name)) is None:
            names = connection.scalars(sa.select(ENDPOINTS.c.name)).all()
            raise InputError(f"There is no endpoint '{name}'", fix=did_you_mean(name, names))
        return row


def _row(connection: Connection, name: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(ENDPOINTS).where(ENDPOINTS.c.name == storable_text(name))).one_or_none()


def _endpoint(row: sa.Row[Any]) -> Endpoint:
    values = {field: getattr(row, field) for field in Endpoint.__dataclass_fields__}
    values |= {"events": tuple(row.events)}
    values |= {"with_text": bool(row.with_text), "allow_private": bool(row.allow_private)}
    return Endpoint(**values)


def _check(name: str, target: str, kind: str, events: Sequence[str]) -> None:
    if not name.strip() or name != name.strip():
        raise InputError("An endpoint needs a name without spaces around it")
    if kind not in KINDS:
        raise InputError(f"There is no kind '{kind}'", fix=did_you_mean(kind, KINDS))
    for event in events:
        if event not in EVENTS:
            raise InputError(f"There is no event '{event}'", fix=did_you_mean(event, EVENTS))
    if kind in ("webhook", "slack"):
        _check_url(target)
    if kind == "email" and not _is_address(target):
        raise InputError(f"'{target}' is not a mail address", fix="Write name@example.org")


def _check_url(target: str) -> None:
    try:
        parts = urlsplit(target)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    if not right:
        raise InputError("The endpoint's URL cannot be read", fix="Write https://HOST/PATH")


def _is_address(target: str) -> bool:
    user, at, host = target.partition("@")
    return bool(user and at and host) and not any(c.isspace() or c in ",;<>" or not c.isprintable() for c in target)


def _shown(target: str, kind: str) -> str:
    """Return an address without its possibly secret parts: user, password, path and query."""
    if kind not in ("webhook", "slack"):
        return target
    parts = urlsplit(target)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}" + ("/..." if parts.path.strip("/") or parts.query else "")


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
