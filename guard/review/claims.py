"""Claims: one person at a time works on a case, for as long as a lease lasts.

A claim is taken under the case's lock, so exactly one of several people gets the case. Expired claims stay in the
database and have no effect.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.errors import InputError, ReviewError
from guard.review.database import Database
from guard.review.migrations.tables import EVENTS, REVIEWS
from guard.review.queries import IS_PENDING, change, exactly, locked, record, standing_opinions
from guard.review.records import Review, ReviewStatus, later, storable_text

#: Default duration of a claim in seconds.
LEASE_S = 600.0

#: Longest duration of a claim in seconds, so that forgotten cases become free.
LONGEST_LEASE_S = 86_400.0

#: Column values of an unclaimed case.
FREE = dict.fromkeys(("claimed_by", "claimed_at", "claimed_until"))


def person(name: str) -> str:
    """Return a reviewer's name in the store's form.

    Raises:
        InputError: the name is empty, or is ``guard``.
    """
    kept = storable_text(name.strip()) or ""
    if not kept:
        raise InputError("A decision needs the reviewer's name", fix="Give one with --reviewer")
    if kept == "guard":
        raise InputError("'guard' cannot review", why="the audit trail uses this name for guard's own actions")
    return kept


def claim(database: Database, connection: Connection, name: str, who: str, lease_s: float) -> Review:
    """Claim a case, or extend a claim; see `guard.review.store.Store.claim`."""
    review = locked(connection, name)
    at = database.now(connection)
    check_free(connection, review, who, at)
    return _take(connection, review, who, at, lease_s)


def claim_next(
    database: Database, connection: Connection, who: str, route: str | None, lease_s: float
) -> Review | None:
    """Claim the next case for a person; see `guard.review.store.Store.claim_next`."""
    at = database.now(connection)
    for condition in (_held(who, at), _waiting(who, at), _late(who, at), _skipped_audits(who, at)):
        query = sa.select(REVIEWS.c.id).where(IS_PENDING, condition)
        if route is not None:
            query = query.where(REVIEWS.c.route == storable_text(route))
        query = query.order_by(REVIEWS.c.priority, REVIEWS.c.sort_key, REVIEWS.c.id).limit(1)
        name = connection.scalar(query.with_for_update(skip_locked=True))
        if name is not None:
            return _take(connection, exactly(connection, name), who, database.now(connection), lease_s)
    return None


def release(database: Database, connection: Connection, name: str, who: str, *, note: str | None, what: str) -> Review:
    """Release a case, with the event ``released`` or ``skipped``; see `guard.review.store.Store`."""
    review = locked(connection, name)
    at = database.now(connection)
    _check_pending(review)
    if what == "released" and review.holder(at) != who:
        raise ReviewError(f"You have not claimed review {review.id}", why=_whose(review, at))
    if review.holder(at) not in (None, who):
        raise _taken(review, at)
    record(connection, review.id, at=at, who=who, what=what, note=storable_text(note))
    change(connection, review.id, **FREE)
    return exactly(connection, review.id)


def assign(database: Database, connection: Connection, name: str, whom: str | None, who: str) -> Review:
    """Assign a case to a person, or to nobody; see `guard.review.store.Store.assign`."""
    review = locked(connection, name)
    at = database.now(connection)
    _check_pending(review)
    record(connection, review.id, at=at, who=who, what="assigned", whom=whom)
    change(connection, review.id, **FREE, assigned_to=whom)
    return exactly(connection, review.id)


def check_free(connection: Connection, review: Review, who: str, at: str) -> None:
    """Check that a person may work on a case now.

    Raises:
        ReviewError: the case is decided or held by another person, or this person has given an opinion on it.
    """
    _check_pending(review)
    if review.holder(at) not in (None, who):
        raise _taken(review, at)
    if review.assigned_to not in (None, who):
        raise ReviewError(
            f"Review {review.id} is assigned to {review.assigned_to}", fix="Ask a lead to assign it to you"
        )
    if who in standing_opinions(connection, review.id):
        raise ReviewError(
            f"{who} has given an opinion on review {review.id} already",
            why="a second opinion must come from another person",
            fix="Leave it to another person",
        )


def take(connection: Connection, review_id: str, who: str, at: str, lease_s: float) -> None:
    """Write the claim of a free case, with its event."""
    record(connection, review_id, at=at, who=who, what="claimed")
    change(connection, review_id, claimed_by=who, claimed_at=at, claimed_until=later(at, lease_s))


def _take(connection: Connection, review: Review, who: str, at: str, lease_s: float) -> Review:
    until = later(at, lease_s)
    if review.holder(at) != who:
        take(connection, review.id, who, at, lease_s)
    elif until > str(review.claimed_until):
        change(connection, review.id, claimed_until=until)
    return exactly(connection, review.id)


# -- what a person can take --------------------------------------------------------------------


def claimable(who: str, at: str) -> sa.ColumnElement[bool]:
    """Return the condition for open cases to offer a person: free or theirs, and neither skipped nor judged by them."""
    dealt_with = sa.exists().where(
        EVENTS.c.review_id == REVIEWS.c.id, EVENTS.c.who == who, EVENTS.c.what.in_(("opinion", "skipped"))
    )
    return sa.and_(_open_to(who, at), ~dealt_with)


def _open_to(who: str, at: str) -> sa.ColumnElement[bool]:
    free = sa.or_(REVIEWS.c.claimed_until.is_(None), REVIEWS.c.claimed_until <= at, REVIEWS.c.claimed_by == who)
    for_anybody = sa.or_(REVIEWS.c.assigned_to.is_(None), REVIEWS.c.assigned_to == who)
    return sa.and_(free, for_anybody)


def _skipped_audits(who: str, at: str) -> sa.ColumnElement[bool]:
    """Audit cases come back to whoever skipped them: a sample without the hard ones would say nothing."""
    opinion = sa.exists().where(EVENTS.c.review_id == REVIEWS.c.id, EVENTS.c.who == who, EVENTS.c.what == "opinion")
    return sa.and_(REVIEWS.c.kind == sa.literal_column("'audit'"), _open_to(who, at), ~opinion)


def _held(who: str, at: str) -> sa.ColumnElement[bool]:
    return sa.and_(REVIEWS.c.claimed_by == who, REVIEWS.c.claimed_until > at)


def _waiting(who: str, at: str) -> sa.ColumnElement[bool]:
    in_time = sa.or_(REVIEWS.c.due_at.is_(None), REVIEWS.c.due_at > at)
    return sa.and_(REVIEWS.c.late_at.is_(None), in_time, claimable(who, at))


def _late(who: str, at: str) -> sa.ColumnElement[bool]:
    """Nobody waits for these any more; their verdicts are labels."""
    return sa.and_(REVIEWS.c.due_at <= at, claimable(who, at))


# -- errors ------------------------------------------------------------------------------------


def _check_pending(review: Review) -> None:
    if review.status is not ReviewStatus.PENDING:
        raise decided_already(review)


def decided_already(review: Review) -> ReviewError:
    """Return the error for a case with a verdict."""
    return ReviewError(
        f"Review {review.id} is decided already",
        why=f"{review.status} by {review.reviewer} at {review.decided_at}",
        fix=f"See: guard review show {review.id}",
    )


def _taken(review: Review, at: str) -> ReviewError:
    return ReviewError(f"Review {review.id} is taken", why=_whose(review, at), fix="Take another: guard review next")


def _whose(review: Review, at: str) -> str:
    holder = review.holder(at)
    return f"{holder} has it until {review.claimed_until}" if holder else "nobody has it now"


def checked_lease(lease_s: float) -> float:
    """Return the duration of a claim in seconds.

    Raises:
        InputError: the duration is not above 0, or longer than a day.
    """
    if not 0 < lease_s <= LONGEST_LEASE_S:
        raise InputError(f"lease_s must be above 0 and at most {LONGEST_LEASE_S:g}, got {lease_s}")
    return float(lease_s)
