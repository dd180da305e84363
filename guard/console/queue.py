"""The queue: views, filters in the address, keyset pagination, and the next case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from guard.access import Permission
from guard.console import times
from guard.console.cases import leave_case
from guard.console.desk import TheVisit, Visit, query_text
from guard.console.security import is_own_navigation
from guard.console.toasts import find_toast
from guard.errors import InputError, ReviewError
from guard.review.case_states import CaseState, case_states
from guard.review.pages import CLAIMED, COUNTED, CaseFilter, counted
from guard.review.records import Review, ReviewStatus
from guard.review_terms import PRIORITIES

router = APIRouter()

#: Number of cases on a page.
LENGTH = 25

#: A count that takes this many seconds is not made for each page.
DEAR_S = 0.01

#: Number of free cases that are tried before the queue reports that all are taken.
TRIED = 20

_ORDERS = {
    "due": "Due first",
    "doubtful": "Most doubtful first",
    "oldest": "Oldest first",
    "newest": "Newest first",
}
_CLAIMED = {"": "Anybody's", "free or mine": "Free and mine", "free": "Free", "mine": "Mine", "others": "Others'"}


@dataclass(frozen=True, slots=True)
class View:
    """A tab of the queue.

    Attributes:
        name: name in the address.
        title: title of the tab.
        chosen: filter of the cases.
        order: default order.
    """

    name: str
    title: str
    chosen: CaseFilter
    order: str = "due"


def list_views(visit: Visit) -> list[View]:
    """Return the visitor's tabs. Visitors who decide have one with the cases that they may take."""
    routes = visit.routes(Permission.SEE_CASES)
    waiting = CaseFilter(status="pending", routes=routes, viewer=visit.who)
    views = [
        View("all", "All waiting", waiting),
        View("late", "Late", replace(waiting, late=True)),
        View("second", "Second opinions", replace(waiting, second=True)),
        View("disputed", "Verdicts differ", replace(waiting, disputed=True)),
        View("audits", "Audits", replace(waiting, kind="audit")),
        View("decided", "Decided", replace(waiting, status="decided"), "decided"),
    ]
    if visit.allows(Permission.DECIDE):
        views.insert(0, View("yours", "For you", offered_to(visit)))
    return views


def offered_to(visit: Visit) -> CaseFilter:
    """Return the cases that a visitor may take."""
    disputed = None if visit.allows(Permission.REASSIGN) else False
    return CaseFilter(offered=True, viewer=visit.who, routes=visit.routes(Permission.DECIDE), disputed=disputed)


@router.get("/")
def start(visit: TheVisit) -> Response:
    """Redirect a visitor to the first page that their roles allow."""
    for permission, path in ((Permission.SEE_CASES, "/queue"), (Permission.ADMINISTER, "/settings/users")):
        if visit.allows(permission):
            return visit.go(path)
    return visit.go("/queue")


@router.get("/queue")
def show_queue(
    visit: TheVisit,
    view: str = "",
    q: str = "",
    route: str = "",
    priority: str = "",
    claimed: str = "",
    order: str = "",
    after: str = "",
    before: str = "",
    done: str = "",
    leave: str = "",
) -> Response:
    """Return one page of the queue."""
    views = list_views(visit)
    here = next((each for each in views if each.name == view), views[0])
    if leave and is_own_navigation(visit.request.headers):
        leave_case(visit, leave)
    if done:  # the numbers would still have the case that the visitor has just decided
        visit.desk.counts.forget()
    asked = {"view": here.name, "q": q, "route": route, "priority": priority, "claimed": claimed, "order": order}
    cursors = {"after": after or None, "before": before or None}
    error, found, names = "", None, visit.desk.names()
    try:
        found = visit.desk.store.page(_narrowed(here.chosen, asked), order=_order(order, here), limit=LENGTH, **cursors)  # type: ignore[arg-type]
    except InputError as wrong:
        error = str(wrong)
    return visit.page(
        "queue.html.j2",
        status=422 if error else 200,
        here="queue",
        tabs=[(each, counted(_count(visit, each.chosen))) for each in views],
        view=here,
        asked=asked,
        found=found,
        rows=[QueueRow.of(review, visit, names) for review in found.reviews] if found else [],
        error=error,
        toast=find_toast(visit, done),
        filtered=any(asked[name] for name in ("q", "route", "priority", "claimed")),
        routes=visit.desk.store.routes(visit.routes(Permission.SEE_CASES)),
        orders=_ORDERS,
        priorities=PRIORITIES,
        claims=_CLAIMED,
        names=names,
        address=lambda **change: query_text({**asked, **change}),
    )


@router.get("/queue/live")
def show_changes(visit: TheVisit, since: str, ids: str = "") -> Response:
    """Return what has changed since a page was made: how many cases have come, and who has those that it shows."""
    routes, store = visit.routes(Permission.SEE_CASES), visit.desk.store
    new = store.count(CaseFilter(status="pending", since=since[:40], routes=routes))
    states = case_states(store, [name for name in ids.split(",") if name], routes=routes)
    names = visit.desk.names() if states else {}
    rows = {state.id: who_has(visit, state, names) for state in states}
    return JSONResponse({"new": min(new, COUNTED), "rows": rows})


def who_has(visit: Visit, state: CaseState, names: Mapping[str, str]) -> str:
    """Return who has a case, or what became of it, in words; the script puts them in place of what is out of date."""

    def person(login: str | None) -> str:
        return "you" if login == visit.who else names.get(str(login), str(login))

    if state.status != ReviewStatus.PENDING.value:
        return f"{state.status} by {person(state.reviewer)}"
    if state.holder is not None:
        return person(state.holder)
    return f"for {person(state.assigned_to)}" if state.assigned_to else "free"


@router.get("/next")
def go_on(visit: TheVisit, done: str = "", leave: str = "") -> Response:
    """Claim the next case that the visitor may take and redirect to it, or to the queue if there is none."""
    visit.require(Permission.DECIDE)
    if not is_own_navigation(visit.request.headers):
        return visit.go("/queue")
    chosen = offered_to(visit)
    passed = {name for name in (done, leave) if name}
    for review in visit.desk.store.page(chosen, order="due", limit=TRIED).reviews:
        if review.id not in passed and _claimed(visit, review):
            if leave:
                leave_case(visit, leave)
            return visit.go(f"/case/{review.id}", done=done or None)
    return visit.go("/queue", done=done or None, leave=leave or None)


def _count(visit: Visit, chosen: CaseFilter) -> int:
    """Return how many cases there are; a number that took long to count is shown for some seconds."""
    return visit.desk.counts.get(chosen, lambda: visit.desk.store.count(chosen), dear_s=DEAR_S)


def _claimed(visit: Visit, review: Review) -> bool:
    try:
        visit.desk.store.claim(review.id, reviewer=visit.who)
    except ReviewError:  # another person was faster
        return False
    return True


def _narrowed(chosen: CaseFilter, asked: Mapping[str, str]) -> CaseFilter:
    """Return a view's cases, narrowed by the filters of the address.

    Raises:
        InputError: a filter has an unknown value.
    """
    claimed = asked["claimed"]
    if claimed and claimed not in CLAIMED:
        raise InputError(f"There are no cases '{claimed[:40]}'")
    values: dict[str, Any] = {
        "text": asked["q"].strip() or None,
        "route": asked["route"] or None,
        "priority": asked["priority"] or None,
        "claimed": claimed or None,
    }
    return replace(chosen, **values)


def _order(order: str, view: View) -> str:
    return order if order in _ORDERS and view.order == "due" else view.order


# -- rows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A row of the queue.

    Attributes:
        case: the case.
        blind: whether its score is hidden.
        holder: login name of whoever has it now, or None.
        left: seconds of that claim.
        snippet: the beginning of the answer.
        who: who has it, in the words of `who_has`.
    """

    case: Review
    blind: bool
    holder: str | None
    left: float
    snippet: str
    who: str

    @classmethod
    def of(cls, review: Review, visit: Visit, names: Mapping[str, str]) -> QueueRow:
        """Return the row of a case."""
        holder = review.holder(visit.now.isoformat(timespec="microseconds"))
        left = 0.0
        if holder is not None and review.claimed_until is not None:
            left = -times.since(review.claimed_until, visit.now)
        pending = review.status is ReviewStatus.PENDING
        holder = holder if pending else None
        state = CaseState(review.id, review.status.value, review.reviewer, review.assigned_to, holder)
        return cls(review, review.is_blind, holder, left, (review.answer or "")[:400], who_has(visit, state, names))
