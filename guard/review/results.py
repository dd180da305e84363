"""What the caller of an escalated case gets: a person's answer, or what the policy says once the case is late.

Whether a case is late for its caller follows from two times that never change: a verdict counts if it was given before
the due time. Both are read under the case's lock, so that no answer leaves that somebody is undoing at that moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.errors import ReviewError
from guard.review.database import Database
from guard.review.migrations.tables import REPEATS, REVIEWS
from guard.review.queries import IS_PENDING, change, exactly, first, locked, record
from guard.review.records import UNDO_S, Review, ReviewStatus, later, to_repeat
from guard.review_terms import LateAction

#: Seconds between two looks at a case that somebody waits for, at first and at most.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0

#: Cases that one call of `mark_late` takes at most.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class ReviewResult:
    """What became of an escalated case, for its caller.

    Attributes:
        decision_id: the guarded call.
        review_id: the case that people decide; that of an identical earlier case where there was one.
        state: ``waiting``, ``decided`` (by a person, in time and past undoing), or ``late``.
        answer: what the person lets stand, or the policy's text once it is late; None while waiting, and where
            there is no answer.
        verdict: ``approved``, ``edited`` or ``rejected``; None unless decided.
        late: what the policy does in place of a person; None unless late.
        reviewer, note: whose verdict it is, and what they noted; None unless decided.
        decided_at: when the verdict was given; ISO 8601, UTC, as all times here.
        due_at: when the case is late; None where it may wait forever.
        ready_at: while waiting, when a verdict that was given becomes final; else None.
    """

    decision_id: str
    review_id: str
    state: Literal["waiting", "decided", "late"]
    answer: str | None = None
    verdict: ReviewStatus | None = None
    late: LateAction | None = None
    reviewer: str | None = None
    note: str | None = None
    decided_at: str | None = None
    due_at: str | None = None
    ready_at: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the caller has waited long enough."""
        return self.state != "waiting"


def result_of(review: Review, decision_id: str, due_at: str | None, late: LateAction | None, at: str) -> ReviewResult:
    """Return what a caller gets of a case at a time.

    Args:
        review: the case.
        decision_id: the caller's.
        due_at: the caller's due time, which differs from the case's where the two are identical cases.
        late: what the caller gets after it.
        at: the time.
    """
    known = {"decision_id": decision_id, "review_id": review.id, "due_at": due_at}
    in_time = review.decided_at is not None and (due_at is None or review.decided_at < due_at)
    if in_time and str(review.final_at) <= at:
        return ReviewResult(
            **known,  # type: ignore[arg-type]
            state="decided",
            answer=review.final_answer,
            verdict=review.status,
            reviewer=review.reviewer,
            note=review.note,
            decided_at=review.decided_at,
        )
    if not in_time and due_at is not None and due_at <= at:
        late = late or LateAction()
        return ReviewResult(**known, state="late", answer=late.text, late=late)  # type: ignore[arg-type]
    return ReviewResult(**known, state="waiting", ready_at=review.final_at if in_time else None)  # type: ignore[arg-type]


def read_result(database: Database, name: str) -> ReviewResult:
    """Return what became of a case; see `guard.review.store.Store.result`."""
    with database.read() as connection:
        review = exactly(connection, name)
        if review.kind == "audit":
            raise ReviewError(
                f"Review {review.id} checks an answer that was accepted",
                why="its caller has the answer, and waits for nothing",
                fix="Read the verdict with guard review show, or Store.review",
            )
        result = _result(database, connection, name, review)
    if not result.is_ready or database.read_only:
        return result
    with database.write() as connection:  # somebody may be undoing it
        review = locked(connection, name)
        at = database.now(connection)
        if is_overdue(review, at):
            mark(connection, review, at)
        return _result(database, connection, name, review)


def _result(database: Database, connection: Connection, name: str, review: Review) -> ReviewResult:
    at = database.now(connection)
    if name.strip() != review.decision_id:
        query = sa.select(REPEATS).where(REPEATS.c.decision_id == name.strip())
        for row in connection.execute(query):
            repeat = to_repeat(row)
            return result_of(review, repeat.decision_id, repeat.due_at, repeat.late, at)
    return result_of(review, review.decision_id, review.due_at, review.late, at)


# -- late cases --------------------------------------------------------------------------------


def is_overdue(review: Review, at: str) -> bool:
    """Return whether a case is late and not marked so."""
    pending = review.status is ReviewStatus.PENDING and review.late_at is None
    return pending and review.due_at is not None and review.due_at <= at


def find_same(connection: Connection, fingerprint: str, at: str) -> Review | None:
    """Return the case that an identical one may be counted on: it waits, or was decided a moment ago."""
    same = REVIEWS.c.fingerprint == fingerprint
    waiting = first(connection, sa.and_(same, IS_PENDING, REVIEWS.c.late_at.is_(None)))
    return waiting or first(connection, sa.and_(same, REVIEWS.c.decided_at > later(at, -UNDO_S)))


def takes_repeats(review: Review, at: str) -> bool:
    """Return whether an identical case is counted on this one: it waits, or its verdict can still be undone."""
    return review.late_at is None and (review.final_at is None or review.final_at > at)


def mark(connection: Connection, review: Review, at: str) -> None:
    """Mark a case as late; the caller holds its lock."""
    record(connection, review.id, at=at, who="guard", what="late")
    change(connection, review.id, late_at=at)


def mark_late(database: Database) -> int:
    """Mark what is late; see `guard.review.store.Store.mark_late`."""
    marked = 0
    while True:
        with database.write() as connection:
            at = database.now(connection)
            query = sa.select(REVIEWS.c.id).where(IS_PENDING, REVIEWS.c.late_at.is_(None), REVIEWS.c.due_at <= at)
            query = query.order_by(REVIEWS.c.due_at).limit(_BATCH).with_for_update(skip_locked=True)
            names = list(connection.scalars(query))
            for name in names:
                mark(connection, exactly(connection, name), at)
        marked += len(names)
        if len(names) < _BATCH:
            return marked


# -- waiting -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Waiting:
    """Somebody who waits for a case.

    Attributes:
        look: reads the result.
        timeout_s: seconds to wait at most; None for as long as it takes.
        result: what the last look gave.
    """

    look: Callable[[], ReviewResult]
    timeout_s: float | None
    result: ReviewResult | None = None
    _began: float = field(default_factory=time.monotonic)
    _pause: float = _FIRST_PAUSE_S

    def pause(self) -> float | None:
        """Look once; return the seconds until the next look, or None where there is none."""
        self.result = self.look()
        left = None if self.timeout_s is None else self._began + self.timeout_s - time.monotonic()
        if self.result.is_ready or (left is not None and left <= 0):
            return None
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        return self._pause if left is None else min(self._pause, left)

    def wait(self) -> ReviewResult:
        """Return the result once it is ready or the time is up."""
        while (pause := self.pause()) is not None:
            time.sleep(pause)
        assert self.result is not None
        return self.result

    async def wait_async(self) -> ReviewResult:
        """`wait` without blocking the event loop."""
        while (pause := await asyncio.to_thread(self.pause)) is not None:
            await asyncio.sleep(pause)
        assert self.result is not None
        return self.result
