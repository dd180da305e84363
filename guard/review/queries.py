"""Reads reviews from the database by name or by condition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit.log import add_entry
from guard.errors import ReviewError, StoreError, did_you_mean
from guard.review.migrations.tables import EVENTS, REPEATS, REVIEWS
from guard.review.outbox import notify
from guard.review.records import VERDICT, Review, ReviewStatus, storable_text, to_review

#: Crockford's base 32: no letters that look like digits.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 6
_AS_TYPED = str.maketrans({"o": "0", "i": "1", "l": "1"})

#: Shortest prefix of an id that names a case: a shorter one could name another case by a typing error.
SHORTEST = 4

#: The condition for cases without a verdict, as a literal: partial indexes do not apply to bound parameters.
IS_PENDING = REVIEWS.c.status == sa.literal_column("'pending'")

#: Events that give a case a verdict or undo it.
_VERDICT_EVENTS = (*(status.value for status in ReviewStatus if status is not ReviewStatus.PENDING), "undone")

#: Events that are written to the audit log, too: cases, verdicts and their undo, but not claims.
_LOGGED = frozenset({"added", "opinion", "withdrawn", "late", *_VERDICT_EVENTS})
#: Columns of an event with texts of people; the audit log has hashes of them.
_TEXTS = ("final_answer", "note")
#: Columns of a case in its first log entry, and all columns that are read for it.
_FIELDS = ("route", "policy", "model", "p_wrong", "rule", "created_at")
_OF_THE_CASE = ("decision_id", "question", "prompt", "answer", *_FIELDS)

_VERDICTS = EVENTS.alias("verdicts")
_TRAIL = EVENTS.alias("trail")

#: The number of a review's latest event that is a verdict or an undo.
_NEWEST = (
    sa.select(sa.func.max(_TRAIL.c.number))
    .where(_TRAIL.c.review_id == REVIEWS.c.id, _TRAIL.c.what.in_(_VERDICT_EVENTS))
    .correlate(REVIEWS)
    .scalar_subquery()
)


def selected() -> sa.Select[Any]:
    """Return a query for reviews with the verdict in their trail and the number of their repeats."""
    repeats = sa.select(sa.func.count()).where(REPEATS.c.review_id == REVIEWS.c.id).scalar_subquery()
    trail = [_VERDICTS.c[kept].label(f"trail_{column}") for column, kept in VERDICT.items()]
    query = sa.select(REVIEWS, repeats.label("repeats"), *trail)
    return query.select_from(REVIEWS.outerjoin(_VERDICTS, _VERDICTS.c.number == _NEWEST))


def read_reviews(connection: Connection, query: sa.Select[Any]) -> list[Review]:
    """Return the reviews of a query made with `selected`.

    Raises:
        StoreError: a row is damaged.
    """
    try:
        return [to_review(row) for row in connection.execute(query)]
    except (KeyError, TypeError, ValueError, StopIteration) as error:  # a column has a form that `add` never writes
        raise StoreError("A review is damaged", why=str(error), fix="Restore the store from a backup") from error


def first(connection: Connection, condition: sa.ColumnElement[bool]) -> Review | None:
    """Return the review that matches a condition, or None."""
    return next(iter(read_reviews(connection, selected().where(condition).limit(1))), None)


def by_decision(connection: Connection, decision_id: str | None) -> Review | None:
    """Return the review of a guarded call: its own, or the identical one that counts it."""
    own = first(connection, REVIEWS.c.decision_id == decision_id)
    if own is not None:
        return own
    repeated = sa.select(REPEATS.c.review_id).where(REPEATS.c.decision_id == decision_id)
    return first(connection, REVIEWS.c.id == repeated.scalar_subquery())


def find(connection: Connection, name: str) -> Review:
    """Return a review by its id, a prefix of it, or a decision id.

    Raises:
        ReviewError: no review matches, or several do.
    """
    key = _typed(name)
    if (found := _named(connection, name)) is not None:
        return found
    near = _near(connection, key) if SHORTEST <= len(key) <= ID_LENGTH and set(key) <= set(ALPHABET) else []
    if len(near) == 1:
        return near[0]
    if near:
        several = ", ".join(review.id for review in near[:5]) + (", ..." if len(near) > 5 else "")
        raise ReviewError(f"'{name}' is a prefix of several ids", why=several, fix="Type more of it")
    raise _unknown(connection, name)


def _near(connection: Connection, key: str) -> list[Review]:
    """Return the first reviews whose id has a prefix, by a range query that uses the index."""
    lowest, highest = key.ljust(ID_LENGTH, ALPHABET[0]), key.ljust(ID_LENGTH, ALPHABET[-1])
    query = selected().where(REVIEWS.c.id.between(lowest, highest)).order_by(REVIEWS.c.id)
    return read_reviews(connection, query.limit(6))


def exactly(connection: Connection, name: str) -> Review:
    """Return a review by its whole id or a decision id. Decisions never go by a prefix, which could be a typing error.

    Raises:
        ReviewError: no review matches.
    """
    if (found := _named(connection, name)) is not None:
        return found
    raise _unknown(connection, name)


def locked(connection: Connection, name: str) -> Review:
    """Return the review, locked until the end of the transaction (on SQLite the whole database is locked).

    Raises:
        ReviewError: as for `exactly`.
    """
    review = exactly(connection, name)
    connection.execute(sa.select(REVIEWS.c.id).where(REVIEWS.c.id == review.id).with_for_update())
    return exactly(connection, review.id)


def _named(connection: Connection, name: str) -> Review | None:
    by_id = first(connection, REVIEWS.c.id == _typed(name))
    return by_id or by_decision(connection, storable_text(name.strip()))


def _typed(name: str) -> str:
    key = storable_text(name.strip().lower().translate(_AS_TYPED)) or ""
    if not key:
        raise ReviewError("A review's id must not be empty", fix="Run: guard review list")
    return key


def _unknown(connection: Connection, name: str) -> ReviewError:
    pending = sa.select(REVIEWS.c.id).where(IS_PENDING)
    ids = connection.scalars(pending.order_by(REVIEWS.c.created_at, REVIEWS.c.id).limit(20)).all()
    key = _typed(name)
    if any(known.startswith(key) for known in ids):
        return ReviewError(f"'{name}' is too short to name a review", fix="Type the whole id; see guard review list")
    hint = did_you_mean(key, ids) or "Run: guard review list --status all"
    return ReviewError(f"There is no review '{name}'", fix=hint)


def record(connection: Connection, review_id: str, **event: Any) -> None:
    """Add an event to a review's trail, and messages to the outbox.

    Args:
        connection: a connection in a write transaction.
        review_id: id of the review.
        event: columns of the event: ``at``, ``who``, ``what`` and the event's own ones.
    """
    connection.execute(sa.insert(EVENTS).values(review_id=review_id, **event))
    if event["what"] in _LOGGED:
        _log(connection, review_id, event)
    notify(connection, review_id, event)


def _log(connection: Connection, review_id: str, event: Mapping[str, Any]) -> None:
    """Add an event to the audit log: a new case, a verdict, or a due time that has passed."""
    query = sa.select(*(REVIEWS.c[name] for name in _OF_THE_CASE)).where(REVIEWS.c.id == review_id)
    case = connection.execute(query).one()._asdict()
    fields: dict[str, Any] = {"review_id": review_id, **{name: event[name] for name in event if name not in _TEXTS}}
    if event["what"] == "added":
        fields |= {name: case[name] for name in _FIELDS}
        texts = {**case, "prompt": json.dumps(case["prompt"], sort_keys=True)}
        texts = {name: texts[name] for name in ("question", "prompt", "answer")}
    else:
        texts = {name: event.get(name) for name in _TEXTS}
    add_entry(connection, "review", case["decision_id"], fields, texts=texts)


def change(connection: Connection, review_id: str, **values: object) -> None:
    """Set columns of a review; the database refuses changes that are not in the trail."""
    connection.execute(sa.update(REVIEWS).where(REVIEWS.c.id == review_id).values(values))


def standing_opinions(connection: Connection, review_id: str) -> dict[str, sa.Row[Any]]:
    """Return the events of the opinions on a case that were not withdrawn, by person, in order."""
    query = sa.select(EVENTS).where(EVENTS.c.review_id == review_id, EVENTS.c.what.in_(("opinion", "withdrawn")))
    standing: dict[str, sa.Row[Any]] = {}
    for row in connection.execute(query.order_by(EVENTS.c.number)):
        if row.what == "opinion":
            standing[row.who] = row
        else:
            del standing[row.who]
    return standing


def on_routes(routes: frozenset[str] | None) -> list[sa.ColumnElement[bool]]:
    """Return the conditions for cases on these routes; no condition for all routes."""
    if routes is None:
        return []
    return [REVIEWS.c.route.in_(sorted(str(storable_text(name)) for name in routes))]


def has_verdict() -> sa.ColumnElement[bool]:
    """Return the condition for cases with a verdict in the row or in the trail, which are compared."""
    return sa.or_(~IS_PENDING, sa.and_(_VERDICTS.c.what.is_not(None), _VERDICTS.c.what != "undone"))
