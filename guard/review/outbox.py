"""The outbox: messages that wait for their endpoints, written in the same transaction as the event itself.

The message about a verdict becomes due when the verdict is final, and is cancelled when the verdict is undone. A
message keeps its id on every attempt, so that receivers can drop duplicates.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit.notes import LogCheckpoint
from guard.errors import InputError
from guard.review.database import Database
from guard.review.migrations.tables import ENDPOINTS, OUTBOX, REPEATS, REVIEWS
from guard.review.records import UNDO_S, later

#: Events of endpoints by the event in the trail of a case.
EVENTS_OF_TRAIL = {
    "added": "case.created",
    "claimed": "case.claimed",
    "released": "case.released",
    "skipped": "case.skipped",
    "assigned": "case.assigned",
    "approved": "case.decided",
    "edited": "case.decided",
    "rejected": "case.decided",
    "undone": "case.undone",
    "late": "case.late",
}
#: Events of endpoints by what the audit log says of a certificate.
EVENTS_OF_CERTIFICATES = {"suspended": "certificate.suspended", "shifted": "certificate.shifted"}
#: The event of a new checkpoint of the audit log.
CHECKPOINT_EVENT = "log.checkpoint"
EVENTS: tuple[str, ...] = (
    *dict.fromkeys(EVENTS_OF_TRAIL.values()),
    *EVENTS_OF_CERTIFICATES.values(),
    CHECKPOINT_EVENT,
)

#: Seconds between attempts, about three days in total; after the last one, a message is a dead letter.
BACKOFF_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)

#: Largest random extension of a pause, as a share, so that attempts do not come in waves.
JITTER = 0.1

#: Seconds that a worker has for a batch; after that, others may take it.
LEASE_S = 120.0

#: Largest number of decision ids of identical cases in a message.
_MOST_IDS = 100


@dataclass(frozen=True, slots=True)
class Notification:
    """A message about an event for an endpoint.

    Attributes:
        id: the same on every attempt.
        endpoint: name of the endpoint.
        event: such as ``case.decided``.
        review_id: id of the case; None for a message about a certificate or a checkpoint.
        body: the message as JSON text.
        created_at: time of the event.
        attempts: number of attempts, including the current one.
        next_at: time of the next attempt, or None.
        delivered_at, dead_at, cancelled_at: how and when the message ended.
        last_error: error of the last attempt.
    """

    id: str
    endpoint: str
    event: str
    review_id: str | None
    body: str
    created_at: str
    attempts: int
    next_at: str | None
    delivered_at: str | None
    dead_at: str | None
    cancelled_at: str | None
    last_error: str | None


_COLUMNS = [OUTBOX.c[name] for name in Notification.__dataclass_fields__]


def notify(connection: Connection, review_id: str, trail: Mapping[str, str | None]) -> None:
    """Write a message about an event for every endpoint that subscribes to it.

    Args:
        connection: the connection whose transaction writes the event.
        review_id: id of the case.
        trail: the event in the trail.
    """
    event = EVENTS_OF_TRAIL.get(str(trail["what"]))
    if event is None:
        return
    at = str(trail["at"])
    due = later(at, UNDO_S) if event == "case.decided" else at
    for name, with_text in _subscribers(connection, event):
        body = _body(connection, review_id, event, trail, with_text=with_text)
        _add(connection, name, event, body, at=at, due=due, review_id=review_id)


def notify_of_certificate(
    connection: Connection, certificate: str, what: str, at: str, fields: Mapping[str, Any]
) -> None:
    """Write a message about a certificate for every endpoint that subscribes to it.

    Args:
        connection: the connection whose transaction writes the event.
        certificate: its digest.
        what: has happened, of `EVENTS_OF_CERTIFICATES`.
        at: time of the event.
        fields: what the audit log says.
    """
    _notify_all(connection, EVENTS_OF_CERTIFICATES[what], at, {"certificate": certificate, **fields})


def notify_of_checkpoint(
    connection: Connection, found: LogCheckpoint, note: str | None, *, now: Callable[[Connection], str]
) -> None:
    """Write a message with a checkpoint of the audit log for every endpoint that subscribes to it.

    Args:
        connection: the connection whose transaction writes the checkpoint.
        found: the checkpoint.
        note: the signed note; None if nobody signs it.
        now: returns the time.
    """
    data = {"size": found.size, "root": found.root.hex(), "signed": note is not None, "note": note or found.text()}
    _notify_all(connection, CHECKPOINT_EVENT, now(connection), data)


def _notify_all(connection: Connection, event: str, at: str, data: Mapping[str, Any]) -> None:
    """Write a message that is about no case."""
    body = json.dumps({"type": event, "timestamp": at, "data": data}, ensure_ascii=False)
    for name, _ in _subscribers(connection, event):
        _add(connection, name, event, body, at=at, due=at, review_id=None)


def _subscribers(connection: Connection, event: str) -> list[tuple[str, bool]]:
    """Return the endpoints that get an event, and whether they get texts."""
    query = sa.select(ENDPOINTS.c.name, ENDPOINTS.c.with_text, ENDPOINTS.c.events).where(ENDPOINTS.c.off_at.is_(None))
    rows = connection.execute(query).all()
    return [(row.name, bool(row.with_text)) for row in rows if not row.events or event in row.events]


def _add(
    connection: Connection, endpoint: str, event: str, body: str, *, at: str, due: str, review_id: str | None
) -> None:
    message = {"id": f"msg_{secrets.token_urlsafe(16)}", "endpoint": endpoint, "event": event, "review_id": review_id}
    connection.execute(sa.insert(OUTBOX).values(**message, body=body, created_at=at, next_at=due))


def _body(
    connection: Connection, review_id: str, event: str, trail: Mapping[str, str | None], *, with_text: bool
) -> str:
    """Return the body of a message: ids and states, and texts if the endpoint gets them."""
    case = connection.execute(sa.select(REVIEWS).where(REVIEWS.c.id == review_id)).one()
    data: dict[str, Any] = {
        "case": review_id,
        "decision_ids": [case.decision_id, *_repeats(connection, review_id)],
        "route": case.route,
        "policy": case.policy,
        "due": case.due_at,
    }
    if event == "case.decided":
        data |= {"verdict": trail["what"], "decided_at": trail["at"]}
    elif event in ("case.claimed", "case.assigned"):
        data |= {"by": trail["who"], "to": trail.get("whom")}
    elif event == "case.late":
        data |= {"late": case.late_action}
    if with_text:
        data |= {"question": case.question, "answer": case.answer, "note": trail.get("note")}
        data |= {"final_answer": trail.get("final_answer"), "reviewer": trail["who"]}
    return json.dumps({"type": event, "timestamp": trail["at"], "data": data}, ensure_ascii=False)


def _repeats(connection: Connection, review_id: str) -> Sequence[str]:
    query = sa.select(REPEATS.c.decision_id).where(REPEATS.c.review_id == review_id)
    return connection.scalars(query.order_by(REPEATS.c.created_at).limit(_MOST_IDS)).all()


def cancel_verdict(connection: Connection, review_id: str, at: str) -> None:
    """Cancel the messages about a verdict that is being undone.

    This locks their rows, so the time that decides whether undo is allowed must be read afterwards: if a worker has
    taken a message, the verdict is final.
    """
    waiting = (OUTBOX.c.review_id == review_id, OUTBOX.c.event == "case.decided", OUTBOX.c.next_at.is_not(None))
    connection.execute(sa.update(OUTBOX).where(*waiting).values(cancelled_at=at, next_at=None))


# -- the worker's side -------------------------------------------------------------------------


def lease(database: Database, callables: Collection[str], limit: int) -> list[Notification]:
    """Lease due messages to a worker; no other worker gets them for `LEASE_S` seconds.

    Args:
        database: the database of the store.
        callables: endpoints of kind ``python`` that this worker can call; the others are left to other workers.
        limit: largest number of messages.
    """
    with database.write() as connection:
        at = database.now(connection)
        mine = sa.or_(ENDPOINTS.c.kind != "python", ENDPOINTS.c.name.in_(callables))
        query = sa.select(OUTBOX.c.id).join(ENDPOINTS, ENDPOINTS.c.name == OUTBOX.c.endpoint)
        free = sa.or_(OUTBOX.c.lease_until.is_(None), OUTBOX.c.lease_until <= at)
        query = query.where(OUTBOX.c.next_at <= at, free, ENDPOINTS.c.off_at.is_(None), mine)
        query = query.order_by(OUTBOX.c.next_at).limit(limit).with_for_update(skip_locked=True, of=OUTBOX)
        ids = list(connection.scalars(query))
        taken = {"lease_until": later(at, LEASE_S), "attempts": OUTBOX.c.attempts + 1}
        connection.execute(sa.update(OUTBOX).where(OUTBOX.c.id.in_(ids)).values(taken))
        rows = connection.execute(sa.select(*_COLUMNS).where(OUTBOX.c.id.in_(ids)).order_by(OUTBOX.c.next_at))
        return [Notification(*row) for row in rows]


def finish(database: Database, message: Notification, error: str | None, *, gone: bool = False) -> None:
    """Record the result of an attempt.

    Args:
        database: the database of the store.
        message: a message from `lease`; if another worker has taken it since, nothing is written.
        error: the error, or None for a delivery.
        gone: whether to disable the endpoint.
    """
    with database.write() as connection:
        at = database.now(connection)
        same = (OUTBOX.c.id == message.id, OUTBOX.c.attempts == message.attempts, OUTBOX.c.next_at.is_not(None))
        connection.execute(sa.update(OUTBOX).where(*same).values(_ending(message.attempts, error, at, gone)))
        if gone:
            _switch_off(connection, message.endpoint, at, str(error))


def _ending(attempts: int, error: str | None, at: str, gone: bool) -> dict[str, Any]:
    ended = {"lease_until": None, "last_error": error}
    if error is None:
        return {**ended, "delivered_at": at, "next_at": None}
    pause = pause_after(attempts)
    if gone or pause is None:
        return {**ended, "dead_at": at, "next_at": None}
    return {**ended, "next_at": later(at, pause)}


def pause_after(attempts: int) -> float | None:
    """Return the seconds until the next try; None where there is none.

    Examples:
        >>> 5 <= pause_after(1) <= 5.5, pause_after(10)
        (True, None)
    """
    if attempts > len(BACKOFF_S):
        return None
    return BACKOFF_S[attempts - 1] * (1 + JITTER * random.random())


def _switch_off(connection: Connection, name: str, at: str, reason: str) -> None:
    on = (ENDPOINTS.c.name == name, ENDPOINTS.c.off_at.is_(None))
    connection.execute(sa.update(ENDPOINTS).where(*on).values(off_at=at, off_reason=reason))


# -- looking, and sending again ----------------------------------------------------------------


def messages(connection: Connection, *, endpoint: str | None, dead: bool, limit: int) -> list[Notification]:
    """Return messages, the newest first; see `guard.review.endpoints.Endpoints.messages`."""
    query = sa.select(*_COLUMNS)
    if endpoint is not None:
        query = query.where(OUTBOX.c.endpoint == endpoint)
    if dead:
        query = query.where(OUTBOX.c.dead_at.is_not(None))
    query = query.order_by(OUTBOX.c.created_at.desc(), OUTBOX.c.id).limit(limit)
    return [Notification(*row) for row in connection.execute(query)]


def replay(connection: Connection, at: str, names: Sequence[str], *, endpoint: str | None) -> int:
    """Make messages due again; see `guard.review.endpoints.Endpoints.replay`."""
    which = OUTBOX.c.id.in_(names) if names else OUTBOX.c.dead_at.is_not(None)
    known = set(connection.scalars(sa.select(OUTBOX.c.id).where(OUTBOX.c.id.in_(names))))
    if missing := [name for name in names if name not in known]:
        raise InputError(f"There is no message '{missing[0]}'", fix="See: guard webhooks list --messages")
    query = sa.update(OUTBOX).where(which, OUTBOX.c.cancelled_at.is_(None), OUTBOX.c.next_at.is_(None))
    if endpoint is not None:
        query = query.where(OUTBOX.c.endpoint == endpoint)
    again = {"next_at": at, "attempts": 0, "dead_at": None, "delivered_at": None, "lease_until": None}
    return int(connection.execute(query.values(again)).rowcount)
