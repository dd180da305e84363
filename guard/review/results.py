"""Results for the caller of an escalated case: a person's answer, or the policy's action once the case is late.

A verdict counts for the caller if it was given before the due time; both times never change. They are read under the
case's lock, so that no answer is returned while a reviewer undoes it.
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

#: First and longest interval, in seconds, between reads of an awaited case.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0

#: Largest number of cases per call of `mark_late`.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class ReviewResult:
    """The result of an escalated case for its caller.

    Attributes:
        decision_id: id of the guarded call.
        review_id: id of the case; that of the earlier case if there was an identical one.
        state: ``waiting``, ``decided`` (by a person, in time and past undoing), or ``late``.
        answer: the answer after review, or the policy's text once the case is late; None while waiting, or without an
            answer.
        verdict: ``approved``, ``edited`` or ``rejected``; None unless decided.
        late: the policy's action instead of a person's; None unless late.
        reviewer, note: the reviewer and the note; None unless decided.
        decided_at: time of the verdict; ISO 8601 in UTC, like all times here.
        due_at: due time; None if the case may wait forever.
        ready_at: while waiting, when a given verdict becomes final; else None.
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
        """Whether the result is final."""
        return self.state != "waiting"


def build_result(
    review: Review, decision_id: str, due_at: str | None, late: LateAction | None, at: str
) -> ReviewResult:
    """Return the result of a case for a caller at a time.

    Args:
        review: the case.
        decision_id: decision id of the caller.
        due_at: due time of the caller, which can differ from that of an identical earlier case.
        late: the policy's action after the due time.
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
    """Return the result of a case; see `guard.review.store.Store.result`."""
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
    with database.write() as connection:  # a reviewer may be undoing it
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
            return build_result(review, repeat.decision_id, repeat.due_at, repeat.late, at)
    return build_result(review, review.decision_id, review.due_at, review.late, at)


# -- late cases --------------------------------------------------------------------------------


def is_overdue(review: Review, at: str) -> bool:
    """Return whether a case is late and not yet marked."""
    pending = review.status is ReviewStatus.PENDING and review.late_at is None
    return pending and review.due_at is not None and review.due_at <= at


def find_same(connection: Connection, fingerprint: str, at: str) -> Review | None:
    """Return the waiting or just decided case that counts an identical one, or None."""
    same = REVIEWS.c.fingerprint == fingerprint
    waiting = first(connection, sa.and_(same, IS_PENDING, REVIEWS.c.late_at.is_(None)))
    return waiting or first(connection, sa.and_(same, REVIEWS.c.decided_at > later(at, -UNDO_S)))


def takes_repeats(review: Review, at: str) -> bool:
    """Return whether this case counts identical ones: it waits, or its verdict can still be undone."""
    return review.late_at is None and (review.final_at is None or review.final_at > at)


def mark(connection: Connection, review: Review, at: str) -> None:
    """Mark a case as late; the caller holds its lock."""
    record(connection, review.id, at=at, who="guard", what="late")
    change(connection, review.id, late_at=at)


def mark_late(database: Database) -> int:
    """Mark late cases; see `guard.review.store.Store.mark_late`."""
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
    """A wait for the result of a case.

    Attributes:
        look: reads the result.
        timeout_s: longest wait in seconds; None for no limit.
        result: the last result.
    """

    look: Callable[[], ReviewResult]
    timeout_s: float | None
    result: ReviewResult | None = None
    _began: float = field(default_factory=time.monotonic)
    _pause: float = _FIRST_PAUSE_S

    def pause(self) -> float | None:
        """Read the result; return the seconds until the next read, or None at the end."""
        self.result = self.look()
        left = None if self.timeout_s is None else self._began + self.timeout_s - time.monotonic()
        if self.result.is_ready or (left is not None and left <= 0):
            return None
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        return self._pause if left is None else min(self._pause, left)

    def wait(self) -> ReviewResult:
        """Return the result once it is final or the time is up."""
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
