"""The bar that shows the last decision and can undo it for ten seconds of the server's clock."""

from __future__ import annotations

from dataclasses import dataclass

from guard.console import times
from guard.console.desk import Visit
from guard.errors import ReviewError
from guard.review.records import UNDO_S, Review, ReviewStatus

_WORDS = {
    ReviewStatus.APPROVED: "Approved",
    ReviewStatus.EDITED: "Edited",
    ReviewStatus.REJECTED: "Rejected",
}


@dataclass(frozen=True, slots=True)
class Toast:
    """A decision that can be undone.

    Attributes:
        id: id of the case.
        what: the decision, such as ``Approved 06wb38``.
        left: seconds during which it can be undone.
        then: the consequence, in words that precede the seconds.
    """

    id: str
    what: str
    left: int
    then: str


def find_toast(visit: Visit, name: str) -> Toast | None:
    """Return the visitor's last decision on a case, or None if it can no longer be undone."""
    if not name:
        return None
    try:
        review = visit.desk.store.review(name)
    except ReviewError:
        return None
    return _of_verdict(visit, review) or _of_opinion(visit, review)


def _of_verdict(visit: Visit, review: Review) -> Toast | None:
    if review.reviewer != visit.who or review.final_at is None:
        return None
    left = int(-times.since(review.final_at, visit.now))
    late = review.late_at is not None
    then = "kept as a label in" if late else "the caller gets it in"
    return Toast(review.id, f"{_WORDS[review.status]} {review.id}", left, then) if left > 0 else None


def _of_opinion(visit: Visit, review: Review) -> Toast | None:
    own = [each for each in visit.desk.store.opinions(review.id) if each.reviewer == visit.who]
    if review.status is not ReviewStatus.PENDING or not own:
        return None
    left = int(UNDO_S - times.since(own[0].at, visit.now))
    return Toast(review.id, f"Opinion on {review.id} kept", left, "fixed in") if left > 0 else None
