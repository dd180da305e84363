"""Verdicts: one person's decision, or two blind opinions with an adjudication if they differ; and undo.

Reviewers see a verdict at once. It becomes final after `UNDO_S` seconds; until then nobody else sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.errors import ReviewError
from guard.policy.defects import find_defects
from guard.review.claims import FREE, LEASE_S, check_free, decided_already, take
from guard.review.database import Database
from guard.review.migrations.tables import REVIEWS
from guard.review.outbox import cancel_verdict
from guard.review.queries import IS_PENDING, change, exactly, locked, record, standing_opinions
from guard.review.records import UNDO_S, VERDICT, Draft, Review, ReviewStatus, later, storable_text
from guard.review.span_marks import SpanMark, checked_marks, common_marks, marks_from_json, marks_to_json

_UNDECIDED = {
    "status": ReviewStatus.PENDING.value,
    **dict.fromkeys(("final_answer", "draft", "reviewer", "note", "decided_at", "final_at", "span_marks")),
}


@dataclass(frozen=True, slots=True)
class Opinion:
    """The opinion of one of two reviewers on a case.

    Attributes:
        reviewer: login name of the reviewer.
        at: time of the opinion.
        verdict: ``approved``, ``edited`` or ``rejected``.
        draft, final_answer, note, span_marks: as in `guard.review.records.Review`.
    """

    reviewer: str
    at: str
    verdict: ReviewStatus
    draft: Draft | None
    final_answer: str | None
    note: str | None
    span_marks: tuple[SpanMark, ...] = ()

    def agrees(self, other: Opinion) -> bool:
        """Return whether the caller would get the same, and the label would be the same; marks of spans may differ.

        Examples:
            >>> first = Opinion("ann", "", ReviewStatus.APPROVED, "right", "Paris", None)
            >>> first.agrees(Opinion("bob", "", ReviewStatus.APPROVED, "right", "Paris ", "sure"))
            True
            >>> first.agrees(Opinion("bob", "", ReviewStatus.REJECTED, "wrong", None, None))
            False
        """
        mine, others = ((each.verdict, each.draft, (each.final_answer or "").strip()) for each in (self, other))
        return mine == others


def decide(
    database: Database,
    connection: Connection,
    name: str,
    status: ReviewStatus,
    *,
    answer: str | None,
    draft: str | None,
    who: str,
    note: str | None,
    marks: Iterable[SpanMark],
) -> Review:
    """Record a verdict or an opinion; see `guard.review.store.Store.approve`."""
    review = locked(connection, name)
    at = database.now(connection)
    check_free(connection, review, who, at)
    _check_answer(review, status, answer)
    found = checked_marks(review.attempts, marks)
    _check_marks(review, status, found)
    verdict = {
        "status": status.value,
        "final_answer": review.answer if status is ReviewStatus.APPROVED else storable_text(answer),
        "draft": _checked_draft(review, draft),
        "reviewer": who,
        "note": storable_text(note),
        "decided_at": at,
        "span_marks": marks_to_json(found),
    }
    if review.reviews_wanted > 1 and not review.disputed:
        _give_opinion(connection, review, verdict)
    else:
        _settle(connection, review, verdict)
    return exactly(connection, review.id)


def _give_opinion(connection: Connection, review: Review, verdict: dict[str, Any]) -> None:
    """Record an opinion. The second one decides the case or, if the two differ, leaves it to a third person."""
    before = opinions(connection, review.id)
    kept = {VERDICT[column]: value for column, value in verdict.items() if column != "status"}
    record(connection, review.id, what="opinion", verdict=verdict["status"], **kept)
    given = opinions(connection, review.id)
    disputed = len(given) > 1 and not given[0].agrees(given[1])
    change(connection, review.id, opinions=len(given), disputed=int(disputed), assigned_to=None, **FREE)
    if before and not disputed:
        common = common_marks(opinion.span_marks for opinion in given)
        _settle(connection, review, {**verdict, "span_marks": marks_to_json(common)})


def _settle(connection: Connection, review: Review, verdict: dict[str, Any]) -> None:
    # First the trail: the database refuses a verdict that is not in it.
    record(connection, review.id, **{kept: verdict[column] for column, kept in VERDICT.items()})
    change(connection, review.id, **verdict, **FREE, final_at=later(verdict["decided_at"], UNDO_S))


def opinions(connection: Connection, review_id: str) -> list[Opinion]:
    """Return the opinions that were not withdrawn, in order; see `guard.review.store.Store.opinions`."""
    return [
        Opinion(
            *(row.who, row.at, ReviewStatus(row.verdict), row.draft, row.final_answer, row.note),
            span_marks=marks_from_json(row.span_marks),
        )
        for row in standing_opinions(connection, review_id).values()
    ]


def is_open_to_all(review: Review) -> bool:
    """Return whether no further blind opinion is possible, so that the given ones may be shown."""
    return review.status is not ReviewStatus.PENDING or review.disputed or review.opinions == 0


def undo(database: Database, connection: Connection, name: str, who: str) -> Review:
    """Undo a verdict or an opinion; see `guard.review.store.Store.undo`."""
    review = locked(connection, name)
    cancel_verdict(connection, review.id, database.now(connection))
    at = database.now(connection)  # after the locks: a message that a worker has taken was final
    own = [each for each in opinions(connection, review.id) if each.reviewer == who]
    if review.status is not ReviewStatus.PENDING:
        _check_undoable(review, str(review.reviewer), str(review.final_at), who, at)
        _check_alone(connection, review)
        record(connection, review.id, at=at, who=who, what="undone")
        change(connection, review.id, **_UNDECIDED)
    elif own:
        _check_undoable(review, who, later(own[0].at, UNDO_S), who, at)
    else:
        raise ReviewError(f"Review {review.id} has no decision of {who} to undo", fix="See: guard review list")
    if own:
        record(connection, review.id, at=at, who=who, what="withdrawn")
        change(connection, review.id, opinions=review.opinions - 1, disputed=0)
    if review.holder(at) is None:
        take(connection, review.id, who, at, LEASE_S)
    return exactly(connection, review.id)


def _check_alone(connection: Connection, review: Review) -> None:
    fingerprint = sa.select(REVIEWS.c.fingerprint).where(REVIEWS.c.id == review.id).scalar_subquery()
    same = sa.and_(REVIEWS.c.fingerprint == fingerprint, IS_PENDING, REVIEWS.c.late_at.is_(None))
    other = connection.scalar(sa.select(REVIEWS.c.id).where(same))
    if other is not None and review.late_at is None:
        raise ReviewError(
            f"The decision on review {review.id} cannot be undone",
            why=f"the same case waits as {other}",
            fix="Decide that",
        )


def _check_undoable(review: Review, whose: str, until: str, who: str, at: str) -> None:
    if whose != who:
        raise decided_already(review)
    if at >= until:
        raise ReviewError(
            f"The decision on review {review.id} is final",
            why=f"it could be undone until {until}",
            fix="The caller may have it already: inform them",
        )


# -- what a decision must have -----------------------------------------------------------------


def _checked_draft(review: Review, draft: str | None) -> str | None:
    """Return the reviewer's judgement of the model's answer, if there is an answer."""
    if review.answer is None:
        return None
    if draft not in ("right", "wrong"):
        raise ReviewError(
            f"The edit of review {review.id} must state whether the model's own answer was right or wrong",
            why=f"it becomes a label for calibration, and draft is {draft!r:.40}",
            fix="Give --draft right (such as right, but wordy) or --draft wrong",
        )
    return draft


def _check_answer(review: Review, status: ReviewStatus, answer: str | None) -> None:
    if status is ReviewStatus.APPROVED and review.answer is None:
        raise ReviewError(
            f"Review {review.id} has no answer to approve", why="generation failed", fix="Edit or reject it"
        )
    if status is ReviewStatus.EDITED and "empty" in find_defects(answer or "", None):
        raise ReviewError("An edited answer must not be empty", fix="Reject the review to give no answer")
    if answer is not None and review.answer is not None and answer.strip() == review.answer.strip():
        # Otherwise a right answer would be labelled wrong.
        raise ReviewError(f"The answer of review {review.id} is unchanged", fix="Approve it as it is")


def _check_marks(review: Review, status: ReviewStatus, marks: Iterable[SpanMark]) -> None:
    if status is ReviewStatus.APPROVED and any(mark.wrong for mark in marks):
        raise ReviewError(
            f"The answer of review {review.id} cannot be approved with a span marked wrong",
            why="the caller would get that span",
            fix="Edit or reject it, or take the mark away",
        )
