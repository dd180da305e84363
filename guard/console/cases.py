"""The page of one case: who has it, what it shows to whom, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from guard.access import Permission
from guard.console import times
from guard.console.desk import TheVisit, Visit
from guard.console.foreign import has_hidden, split_long, word_changes
from guard.console.layers import layers_of
from guard.console.security import is_own_navigation
from guard.console.shading import shade
from guard.console.toasts import Toast, toast_of
from guard.errors import ReviewError
from guard.review.records import Review, ReviewStatus
from guard.review.similar import find_similar
from guard.review.verdicts import Opinion

router = APIRouter()

#: Scores are said to differ from here on.
FAR_APART = 0.3


@dataclass(frozen=True, slots=True)
class CaseHolder:
    """Whether the reader can decide a case.

    Attributes:
        by: ``me``, ``other``, or ``nobody``.
        name: of the other.
        left: seconds of the claim.
        why: why it cannot be claimed, or empty.
    """

    by: str
    name: str = ""
    left: int = 0
    why: str = ""

    @property
    def mine(self) -> bool:
        """Whether the reader has the case."""
        return self.by == "me"


@router.get("/case/{name}")
def show_case(visit: TheVisit, name: str, edit: bool = False, done: str = "", leave: str = "") -> Response:
    """Return the page of a case; opening it claims it for whoever may decide it."""
    review = find_case(visit, name)
    own = is_own_navigation(visit.request.headers)
    if own and leave:
        leave_case(visit, leave)
    claimed = _claim(visit, review) if own else standing(visit, review)
    if claimed.mine:
        review = visit.desk.store.review(review.id)
    return case_page(visit, review, claimed, edit=edit and claimed.mine, toast=toast_of(visit, done))


def find_case(visit: Visit, name: str) -> Review:
    """Return a case that the reader may see.

    Raises:
        ReviewError: there is none.
        PageError: it is on a route that they may not see.
    """
    visit.require(Permission.SEE_CASES)
    review = visit.desk.store.review(name)
    visit.require(Permission.SEE_CASES, review.route)
    return review


def leave_case(visit: Visit, name: str) -> None:
    """Give a case back that the reader leaves without a decision; one that they do not have stays as it is."""
    try:
        visit.desk.store.release(name, reviewer=visit.who)
    except ReviewError:
        return


def may_decide(visit: Visit, review: Review) -> bool:
    """Return whether the visitor's role decides this case; where two verdicts differ, a lead does."""
    return visit.allows(decides(review), review.route)


def decides(review: Review) -> Permission:
    """Return what deciding a case takes."""
    return Permission.REASSIGN if review.disputed else Permission.DECIDE


def is_blind(review: Review) -> bool:
    """Return whether nothing may lead the verdict: of two opinions, or of an audit of what the score let out.

    Then the pages leave out the score, its parts and the rule. The verdict would otherwise be the score's.
    """
    two = review.reviews_wanted > 1 and not review.disputed
    return review.status is ReviewStatus.PENDING and (two or review.kind == "audit")


def case_page(
    visit: Visit,
    review: Review,
    claimed: CaseHolder,
    *,
    edit: bool = False,
    toast: Toast | None = None,
    typed: Mapping[str, str] | None = None,
    error: str = "",
    status: int = 200,
) -> Response:
    """Return the page of a case; `typed` is what stands in its form."""
    blind, first = is_blind(review), split_long(review.answer)
    return visit.page(
        "case.html.j2",
        status=status,
        here="queue",
        case=review,
        blind=blind,
        claimed=claimed,
        edit=edit,
        toast=toast,
        typed=typed or {},
        error=error,
        answer=first,
        hidden=has_hidden(review.question, review.answer),
        turns=turns_of(review),
        why=None if blind else reasons(review),
        attempts=() if blind else review.attempts,
        shading=None if blind or not first[0] else shade(first[0], review.attempts),
        layers=None if blind else layers_of(visit.desk, review),
        similar=() if blind else find_similar(visit.desk.store, review, routes=visit.routes(Permission.SEE_CASES)),
        history=history_of(visit, review) if _reads_history(visit, review) else None,
        late=_is_late(review, visit.now),
        opinions=_opinions(visit, review),
        changes=changes_of(review),
        names=visit.desk.names(),
        may_reassign=visit.allows(Permission.REASSIGN, review.route) and review.status is ReviewStatus.PENDING,
    )


# -- who has it --------------------------------------------------------------------------------


def _claim(visit: Visit, review: Review) -> CaseHolder:
    """Claim a case for a reader who may decide it, unless it is decided or somebody else's."""
    if review.status is not ReviewStatus.PENDING or not may_decide(visit, review):
        return standing(visit, review)
    try:
        return standing(visit, visit.desk.store.claim(review.id, reviewer=visit.who))
    except ReviewError as error:
        return standing(visit, visit.desk.store.review(review.id), why=error)


def standing(visit: Visit, review: Review, why: ReviewError | None = None) -> CaseHolder:
    """Return who has a case at the time of the request, without claiming it; `why` it could not be claimed."""
    holder = review.holder(visit.now.isoformat(timespec="microseconds"))
    text = "" if why is None else (why.why and f"{why.what}: {why.why}") or why.what
    if holder is None or review.claimed_until is None:
        return CaseHolder("nobody", why=text)
    left = int(-times.since(review.claimed_until, visit.now))
    if holder == visit.who:
        return CaseHolder("me", left=left)
    return CaseHolder("other", visit.desk.names().get(holder, holder), left, text)


# -- what it shows -----------------------------------------------------------------------------


def turns_of(review: Review) -> list[tuple[str, str]]:
    """Return the whole prompt as pairs of role and text."""
    if review.prompt.messages is None:
        return [("prompt", review.prompt.text or "")]
    return [(str(turn["role"]), str(turn["content"])) for turn in review.prompt.messages]


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why a case came to a person.

    Attributes:
        p_wrong: the score that decided; None where there is none.
        parts: each score of the last attempt by name.
        decides: the name of the one that decided.
        reading: one sentence where they are far apart, or empty.
        ood: share of the calibration answers that are more usual; None where unknown.
        error: why there is no score, or empty.
    """

    p_wrong: float | None
    parts: tuple[tuple[str, float], ...]
    decides: str | None
    reading: str
    ood: float | None
    error: str


def reasons(review: Review) -> Reasons:
    """Return why a case came to a person, from its last attempt that has an answer."""
    scored = [attempt for attempt in review.attempts if attempt.get("scores")]
    last: Mapping[str, Any] = scored[-1] if scored else {}
    parts = tuple((str(name), float(part["p_wrong"])) for name, part in (last.get("scores") or {}).items())
    errors = [str(attempt["error"]) for attempt in review.attempts if attempt.get("error")]
    ood = last.get("ood_score")
    return Reasons(
        review.p_wrong,
        parts,
        last.get("decides"),
        _reading(dict(parts)),
        None if ood is None else float(ood),
        errors[-1] if errors and review.p_wrong is None else "",
    )


def _reading(parts: Mapping[str, float]) -> str:
    """Return what it means that the layers and the words differ."""
    layers, words = parts.get("ilis"), parts.get("log-probabilities")
    if layers is None or words is None or abs(layers - words) < FAR_APART:
        return ""
    if layers > words:
        return "The words look sure, the layers do not: read it for a confident mistake."
    return "The words look unsure, the layers do not: the wording may be odd where the content is right."


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a case's history.

    Attributes:
        who: the person's name.
        what: what they did, in words.
        at: when.
        note: what they wrote, or None.
    """

    who: str
    what: str
    at: str
    note: str | None


_DONE = {
    "added": "put it here",
    "claimed": "took the case",
    "released": "gave it back",
    "skipped": "skipped it",
    "opinion": "gave an opinion",
    "withdrawn": "took the opinion back",
    "undone": "took the decision back",
    "late": "found it late",
}


def history_of(visit: Visit, review: Review) -> list[Line]:
    """Return the trail of a case for people, newest first. What a blind opinion says is left out by the store."""
    names, lines = visit.desk.names(), []
    for event in visit.desk.store.history(review.id):
        who = "You" if event.who == visit.who else names.get(event.who, event.who)
        if event.what == "assigned":
            what = f"assigned it to {names.get(event.whom, event.whom)}" if event.whom else "opened it to everybody"
        else:
            what = _DONE.get(event.what, f"{event.what} it")
        if event.verdict is not None:
            what += f": {event.verdict}"
        lines.append(Line(who, what, event.at, event.note))
    return lines[::-1]


def _reads_history(visit: Visit, review: Review) -> bool:
    return may_decide(visit, review) or visit.allows(Permission.READ_TRAIL, review.route)


def _is_late(review: Review, now: datetime) -> bool:
    """Return whether the caller had what the policy says of late cases, or has it by now."""
    if review.due_at is None:
        return False
    end = review.decided_at or now.isoformat(timespec="microseconds")
    return review.due_at <= end


def _opinions(visit: Visit, review: Review) -> list[Opinion]:
    """Return the two opinions where they differ; before that nobody is shown any."""
    return visit.desk.store.opinions(review.id) if review.disputed else []


def changes_of(review: Review) -> list[tuple[str, str]]:
    """Return how the reviewer changed the answer, word by word."""
    if review.status is ReviewStatus.PENDING or not review.answer or not review.final_answer:
        return []
    return [] if review.final_answer == review.answer else word_changes(review.answer, review.final_answer)
