"""Actions on a case: decide, undo, skip, keep, assign. Each is a form and ends with a redirect."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

from fastapi import APIRouter
from starlette.responses import Response

from guard.access import Permission
from guard.console import times
from guard.console.cases import MARK, case_page, decides, find_case, standing
from guard.console.desk import PageError, TheForm, TheVisit, Visit
from guard.errors import InputError, ReviewError
from guard.review.records import Draft, Review, ReviewStatus
from guard.review.span_marks import SpanMark

router = APIRouter()


@router.post("/case/{name}/approve")
def approve(visit: TheVisit, name: str, form: TheForm) -> Response:
    """Approve the model's answer."""
    review = _to_decide(visit, name)
    store, who, note = visit.desk.store, visit.who, _note(form)
    return _decided(
        visit, review, form, lambda: store.approve(review.id, reviewer=who, note=note, marks=_marks(form))
    )  # fmt: skip


@router.post("/case/{name}/reject")
def reject(visit: TheVisit, name: str, form: TheForm) -> Response:
    """Reject the answer as wrong."""
    review = _to_decide(visit, name)
    store, who, note = visit.desk.store, visit.who, _note(form)
    return _decided(
        visit, review, form, lambda: store.reject(review.id, reviewer=who, note=note, marks=_marks(form))
    )  # fmt: skip


@router.post("/case/{name}/edit")
def edit(visit: TheVisit, name: str, form: TheForm) -> Response:
    """Replace the model's answer by the reviewer's."""
    review = _to_decide(visit, name)
    answer, draft = form.get("answer", ""), cast("Draft | None", form.get("draft") or None)
    if review.answer is not None and draft not in ("right", "wrong"):
        error = "State whether the model's own answer was right or wrong: it becomes a label for calibration."
        return case_page(visit, review, standing(visit, review), edit=True, typed=form, error=error, status=422)
    store, who, note = visit.desk.store, visit.who, _note(form)
    return _decided(
        visit, review, form,
        lambda: store.edit(review.id, answer=answer, draft=draft, reviewer=who, note=note, marks=_marks(form)),
    )  # fmt: skip


@router.post("/case/{name}/adjudicate")
def adjudicate(visit: TheVisit, name: str, form: TheForm) -> Response:
    """Decide between two different opinions: the first or the second becomes the verdict, with its marks.

    Raises:
        PageError: the opinion does not exist, or the visitor lacks the permission.
    """
    review = _named_case(visit, name)
    visit.require(Permission.REASSIGN, review.route)
    opinions, which = visit.desk.store.opinions(review.id), form.get("which", "")
    if not review.disputed or which not in ("1", "2") or len(opinions) < 2:
        raise PageError(409, "There are no two verdicts to decide between", "Nothing was changed.")
    chosen = opinions[int(which) - 1]
    store = visit.desk.store
    given: dict[str, Any] = {"reviewer": visit.who, "note": _note(form), "marks": chosen.span_marks}
    match chosen.verdict:
        case ReviewStatus.APPROVED:
            return _decided(visit, review, form, lambda: store.approve(review.id, **given))
        case ReviewStatus.EDITED:
            answer = chosen.final_answer or ""
            return _decided(
                visit, review, form, lambda: store.edit(review.id, answer=answer, draft=chosen.draft, **given)
            )
    return _decided(visit, review, form, lambda: store.reject(review.id, answer=chosen.final_answer, **given))


@router.post("/case/{name}/skip")
def skip(visit: TheVisit, name: str, form: TheForm) -> Response:
    """Leave a case to others."""
    review = _to_decide(visit, name)
    return _decided(
        visit,
        review,
        form,
        lambda: visit.desk.store.skip(review.id, reviewer=visit.who, note=_note(form)),
        undoable=False,
    )


@router.post("/case/{name}/undo")
def undo(visit: TheVisit, name: str) -> Response:
    """Undo the visitor's own decision and return the case to them."""
    review = _named_case(visit, name)
    visit.require(Permission.DECIDE, review.route)
    try:
        visit.desk.store.undo(review.id, reviewer=visit.who)
    except ReviewError as error:
        raise PageError(409, "Not undone", f"{error}") from None
    return visit.go(f"/case/{review.id}")


@router.post("/case/{name}/keep")
def keep(visit: TheVisit, name: str) -> Response:
    """Extend a claim while the visitor is typing. Returns 409 if the claim has ended."""
    review = _to_decide(visit, name)
    if not standing(visit, review).mine:
        raise PageError(409, "The claim has ended", "Somebody else may have taken the case.")
    visit.desk.store.claim(review.id, reviewer=visit.who)
    return Response(status_code=204)


@router.post("/case/{name}/assign")
def assign(visit: TheVisit, name: str, form: TheForm) -> Response:
    """Reserve a case for one reviewer, or open it to everybody."""
    review = _named_case(visit, name)
    visit.require(Permission.REASSIGN, review.route)
    whom = form.get("to", "").strip() or None
    try:
        visit.desk.store.assign(review.id, to=visit.desk.access.users.get(whom).id if whom else None, by=visit.who)
    except InputError as error:
        raise PageError(409, "Not assigned", f"{error}") from None
    return visit.go(f"/case/{review.id}")


def _named_case(visit: Visit, name: str) -> Review:
    """Return a case that the visitor may see by its whole id: a prefix shows a case, but decides nothing.

    Raises:
        PageError: the name is not an id or a decision id.
    """
    review = find_case(visit, name)
    if name not in (review.id, review.decision_id):
        raise PageError(404, "This is not the whole id of a case", "Nothing was changed. Open the case from the queue.")
    return review


def _to_decide(visit: Visit, name: str) -> Review:
    """Return a case that the visitor may decide."""
    review = _named_case(visit, name)
    visit.require(decides(review), review.route)
    return review


def _note(form: dict[str, str]) -> str | None:
    return form.get("note", "").strip() or None


def _marks(form: dict[str, str]) -> list[SpanMark]:
    """Return the marks of sentences in a form.

    Raises:
        ReviewError: a field that marks a sentence is none of the page's.
    """
    found = []
    for name, value in form.items():
        if not name.startswith(MARK) or not value:
            continue
        place = re.fullmatch(r"(\d{1,9})-(\d{1,9})", name.removeprefix(MARK), re.ASCII)
        if place is None or value not in ("wrong", "right"):
            raise ReviewError("A sentence is marked in a way that is none of the page's", fix="Reload the page")
        found.append(SpanMark(int(place[1]), int(place[2]), wrong=value == "wrong"))
    return found


def _decided(
    visit: Visit, review: Review, form: dict[str, str], decide: Callable[[], Review], *, undoable: bool = True
) -> Response:
    """Carry out a decision and continue with the next case. If it is too late, say so and keep the typed text."""
    try:
        decide()
    except InputError as error:
        return _not_saved(visit, visit.desk.store.review(review.id), form, error)
    return visit.go("/next", done=review.id if undoable else None)


def _not_saved(visit: Visit, review: Review, form: dict[str, str], error: InputError) -> Response:
    claimed = standing(visit, review)
    if review.status is not ReviewStatus.PENDING or claimed.by == "other":
        return _conflict(visit, review, form, claimed.name, error)
    return case_page(visit, review, claimed, edit="answer" in form, typed=form, error=f"Not saved. {error}", status=422)


def _conflict(visit: Visit, review: Review, form: dict[str, str], holder: str, error: InputError) -> Response:
    name = visit.desk.names().get(review.reviewer or "", review.reviewer or "")
    if review.status is not ReviewStatus.PENDING:
        title = f"Not saved: {name} {review.status} this case at {times.moment(str(review.decided_at), visit.now)}"
    else:
        title = f"Not saved: {holder} has this case now"
    kept = {label: form[key] for key, label in (("answer", "Your answer"), ("note", "Your note")) if form.get(key)}
    return visit.page("conflict.html.j2", status=409, here="queue", title=title, case=review, kept=kept)
