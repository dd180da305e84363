"""The page of a case: its holder, its contents for each role, its actions."""

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
from guard.console.layers import read_layers
from guard.console.security import is_own_navigation
from guard.console.shading import Shading, shade, without_doubt
from guard.console.toasts import Toast, find_toast
from guard.errors import ReviewError
from guard.review.records import Review, ReviewStatus
from guard.review.similar import find_similar
from guard.review.span_marks import any_span_wrong, describe_marks
from guard.review.verdicts import Opinion

router = APIRouter()

#: Beginning of the names of fields that mark sentences.
MARK = "mark-"

#: Smallest difference between scores that the page points out.
FAR_APART = 0.3


@dataclass(frozen=True, slots=True)
class CaseHolder:
    """The holder of a case, from the visitor's point of view.

    Attributes:
        by: ``me``, ``other``, or ``nobody``.
        name: the name of another holder.
        left: seconds until the claim ends.
        why: why the case cannot be claimed, or empty.
    """

    by: str
    name: str = ""
    left: int = 0
    why: str = ""

    @property
    def mine(self) -> bool:
        """Whether the visitor holds the case."""
        return self.by == "me"


@router.get("/case/{name}")
def show_case(visit: TheVisit, name: str, edit: bool = False, done: str = "", leave: str = "") -> Response:
    """Return the page of a case; opening it claims the case for a visitor who may decide it."""
    review = find_case(visit, name)
    own = is_own_navigation(visit.request.headers)
    if own and leave:
        leave_case(visit, leave)
    claimed = _claim(visit, review) if own else standing(visit, review)
    if claimed.mine:
        review = visit.desk.store.review(review.id)
    return case_page(visit, review, claimed, edit=edit and claimed.mine, toast=find_toast(visit, done))


def find_case(visit: Visit, name: str) -> Review:
    """Return a case that the visitor may see.

    Raises:
        ReviewError: the case does not exist.
        PageError: the case is on a route that the visitor may not see.
    """
    visit.require(Permission.SEE_CASES)
    review = visit.desk.store.review(name)
    visit.require(Permission.SEE_CASES, review.route)
    return review


def leave_case(visit: Visit, name: str) -> None:
    """Release a case that the visitor leaves without a decision; other cases are unchanged."""
    try:
        visit.desk.store.release(name, reviewer=visit.who)
    except ReviewError:
        return


def may_decide(visit: Visit, review: Review) -> bool:
    """Return whether the visitor may decide this case; if two verdicts differ, only a lead may."""
    return visit.allows(decides(review), review.route)


def decides(review: Review) -> Permission:
    """Return the permission that deciding a case needs."""
    return Permission.REASSIGN if review.disputed else Permission.DECIDE


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
    """Return the page of a case; `typed` has the contents of its form."""
    blind, first = review.is_blind, split_long(review.answer)
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
        turns=list_turns(review),
        why=None if blind else reasons(review),
        attempts=() if blind else review.attempts,
        describe_ending=describe_ending,
        shading=_shading(review, first[0]),
        marking=claimed.mine,
        marks=_marks(review, typed or {}),
        layers=None if blind else read_layers(visit.desk, review),
        similar=() if blind else find_similar(visit.desk.store, review, routes=visit.routes(Permission.SEE_CASES)),
        history=list_history(visit, review) if _reads_history(visit, review) else None,
        late=_is_late(review, visit.now),
        opinions=_opinions(visit, review),
        changes=list_changes(review),
        names=visit.desk.names(),
        mark_field=mark_field,
        may_reassign=visit.allows(Permission.REASSIGN, review.route) and review.status is ReviewStatus.PENDING,
    )


# -- who has it --------------------------------------------------------------------------------


def _claim(visit: Visit, review: Review) -> CaseHolder:
    """Claim a case for a visitor who may decide it, unless it is decided or held by another person."""
    if review.status is not ReviewStatus.PENDING or not may_decide(visit, review):
        return standing(visit, review)
    try:
        return standing(visit, visit.desk.store.claim(review.id, reviewer=visit.who))
    except ReviewError as error:
        return standing(visit, visit.desk.store.review(review.id), why=error)


def standing(visit: Visit, review: Review, why: ReviewError | None = None) -> CaseHolder:
    """Return the holder of a case at the time of the request; `why` is the error of a failed claim."""
    holder = review.holder(visit.now.isoformat(timespec="microseconds"))
    text = "" if why is None else (why.why and f"{why.what}: {why.why}") or why.what
    if holder is None or review.claimed_until is None:
        return CaseHolder("nobody", why=text)
    left = int(-times.since(review.claimed_until, visit.now))
    if holder == visit.who:
        return CaseHolder("me", left=left)
    return CaseHolder("other", visit.desk.names().get(holder, holder), left, text)


# -- what it shows -----------------------------------------------------------------------------


def _shading(review: Review, answer: str) -> Shading | None:
    """Return the answer with its doubt; a blind reviewer gets its sentences only."""
    if not answer:
        return None
    return without_doubt(answer, review.attempts) if review.is_blind else shade(answer, review.attempts)


def _marks(review: Review, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the marks of sentences, typed or of the verdict, by the names of their fields."""
    kept = {mark_field(mark.place): "wrong" if mark.wrong else "right" for mark in review.span_marks}
    return kept | {name: value for name, value in typed.items() if name.startswith(MARK)}


def mark_field(place: tuple[int, int]) -> str:
    """Return the name of the field that marks a sentence.

    Examples:
        >>> mark_field((10, 25))
        'mark-10-25'
    """
    return f"{MARK}{place[0]}-{place[1]}"


def list_turns(review: Review) -> list[tuple[str, str]]:
    """Return the whole prompt as pairs of role and text."""
    if review.prompt.messages is None:
        return [("prompt", review.prompt.text or "")]
    return [(str(turn["role"]), str(turn["content"])) for turn in review.prompt.messages]


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why a case was escalated.

    Attributes:
        p_wrong: the score that decided, or None.
        parts: the scores of the last attempt by name.
        decides: name of the score that decided.
        reading: one sentence if the scores differ widely, or empty.
        ood: the out-of-distribution score; None if unknown.
        unlike: why the answer is of another length or form than those that the score was fitted on, or None.
        any_wrong: probability that any sentence is wrong; None without several sentences.
        error: why there is no score, or empty.
    """

    p_wrong: float | None
    parts: tuple[tuple[str, float], ...]
    decides: str | None
    reading: str
    ood: float | None
    unlike: str | None
    any_wrong: float | None
    error: str


def reasons(review: Review) -> Reasons:
    """Return why a case was escalated, from its last attempt with scores."""
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
        str(last["unlike"]) if last.get("unlike") else None,
        any_span_wrong(last),
        errors[-1] if errors and review.p_wrong is None else "",
    )


def _reading(parts: Mapping[str, float]) -> str:
    """Return what a difference between layers and words suggests."""
    layers, words = parts.get("ilis"), parts.get("log-probabilities")
    if layers is None or words is None or abs(layers - words) < FAR_APART:
        return ""
    if layers > words:
        return "The words look certain, the layers do not: check for a confident mistake."
    return "The words look uncertain, the layers do not: the wording may be unusual although the content is right."


#: How an answer ended, in words, by its finish reason.
_ENDINGS = {
    "stop": "by itself",
    "stop_string": "at a stop string",
    "length": "cut at its token limit",
    "early": "stopped by the policy",
}


def describe_ending(attempt: Mapping[str, Any]) -> str:
    """Return how the answer of an attempt ended, in words; a dash if unknown.

    Examples:
        >>> describe_ending({"finish_reason": "length"})
        'cut at its token limit'
    """
    return _ENDINGS.get(str(attempt.get("finish_reason")), "-")


@dataclass(frozen=True, slots=True)
class Line:
    """An entry of a case's history.

    Attributes:
        who: name of the person.
        what: the action, in words.
        at: time of the action.
        note: note of the person, or None.
    """

    who: str
    what: str
    at: str
    note: str | None


_DONE = {
    "added": "added it",
    "claimed": "claimed the case",
    "released": "released it",
    "skipped": "skipped it",
    "opinion": "gave an opinion",
    "withdrawn": "withdrew the opinion",
    "undone": "undid the decision",
    "late": "marked it as late",
}


#: What a reviewer does before and with an opinion.
_BY_REVIEWERS = ("claimed", "released", "skipped", "opinion", "withdrawn")


def list_history(visit: Visit, review: Review) -> list[Line]:
    """Return the history of a case, newest first. The store leaves out the contents of blind opinions.

    Who decides between two opinions does not learn here whose they are.
    """
    unnamed = review.disputed and review.status is ReviewStatus.PENDING and may_decide(visit, review)
    names, lines = visit.desk.names(), []
    for event in visit.desk.store.history(review.id):
        who = "You" if event.who == visit.who else names.get(event.who, event.who)
        if unnamed and event.what in _BY_REVIEWERS:
            event, who = event.blind(), "A reviewer"
        if event.what == "assigned":
            what = f"assigned it to {names.get(event.whom, event.whom)}" if event.whom else "opened it to everybody"
        else:
            what = _DONE.get(event.what, f"{event.what} it")
        if event.verdict is not None:
            what += f": {event.verdict}"
        if event.span_marks:
            what += f", {describe_marks(event.span_marks)}"
        lines.append(Line(who, what, event.at, event.note))
    return lines[::-1]


def _reads_history(visit: Visit, review: Review) -> bool:
    return may_decide(visit, review) or visit.allows(Permission.READ_TRAIL, review.route)


def _is_late(review: Review, now: datetime) -> bool:
    """Return whether the caller has got the policy's reply for late cases."""
    if review.due_at is None:
        return False
    end = review.decided_at or now.isoformat(timespec="microseconds")
    return review.due_at <= end


def _opinions(visit: Visit, review: Review) -> list[Opinion]:
    """Return the two opinions if they differ; otherwise nobody sees them."""
    return visit.desk.store.opinions(review.id) if review.disputed else []


def list_changes(review: Review) -> list[tuple[str, str]]:
    """Return the reviewer's changes to the answer, word by word."""
    if review.status is ReviewStatus.PENDING or not review.answer or not review.final_answer:
        return []
    return [] if review.final_answer == review.answer else word_changes(review.answer, review.final_answer)
