"""Pages of the queue: filters, orders and keyset pagination; all pages take the same time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.errors import InputError, did_you_mean
from guard.review.claims import claimable
from guard.review.migrations.tables import REVIEWS
from guard.review.queries import IS_PENDING, on_routes, read_reviews, selected
from guard.review.records import Review, ReviewStatus, priority_rank, storable_text
from guard.review.words import run_search, search_words
from guard.review_terms import CASE_KINDS, PRIORITIES, CaseKind, Priority

Order = Literal["due", "doubtful", "oldest", "newest", "decided"]
ORDERS: tuple[Order, ...] = get_args(Order)

#: Values of the filter for the holder of a case.
Claimed = Literal["free", "mine", "free or mine", "others"]
CLAIMED: tuple[Claimed, ...] = get_args(Claimed)

#: Largest exact count; beyond it, the count is one more.
COUNTED = 10_000

#: Written out, as in the index of these cases: only then does it serve.
_HAS_OPINIONS = REVIEWS.c.opinions > sa.literal_column("0")

#: Columns of each order, and whether it is descending; ties are ordered by id.
_COLUMNS = {
    "due": (REVIEWS.c.sort_key, False),
    "doubtful": (REVIEWS.c.doubt, True),
    "oldest": (REVIEWS.c.created_at, False),
    "newest": (REVIEWS.c.created_at, True),
    "decided": (REVIEWS.c.decided_at, True),
}


@dataclass(frozen=True, slots=True)
class CaseFilter:
    """A filter of cases; None matches any value.

    Attributes:
        status: a `ReviewStatus`, its name, or ``decided`` for all but pending.
        kind: ``escalation`` or ``audit``.
        route, model, policy: only these.
        priority: only this.
        late: whether nobody decided in time.
        second: whether the case has a first opinion and needs a second one.
        disputed: whether two opinions differ.
        claimed: ``free``, ``mine``, ``free or mine`` or ``others``; needs `viewer`.
        offered: whether only cases that `viewer` may take and has neither skipped nor given an opinion on.
        viewer: login name of the reviewer.
        routes: only these routes, for a reviewer whose role is limited to them.
        decided_by: only verdicts of this reviewer.
        since, until: created from the first, and before the second, of these ISO 8601 times in UTC.
        text: whole words of the question or the answer; all must occur.
    """

    status: str | None = None
    kind: CaseKind | None = None
    route: str | None = None
    model: str | None = None
    policy: str | None = None
    priority: Priority | None = None
    late: bool | None = None
    second: bool | None = None
    disputed: bool | None = None
    claimed: Claimed | None = None
    offered: bool = False
    viewer: str | None = None
    routes: frozenset[str] | None = None
    decided_by: str | None = None
    since: str | None = None
    until: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some cases, in order.

    Attributes:
        reviews: the cases.
        before, after: arguments of `guard.review.store.Store.page` for the previous and the next page, or None; such as
            ``2026-11-25T13:20:00.000000+00:00,k2m9xt``.
    """

    reviews: tuple[Review, ...]
    before: str | None
    after: str | None


def read_page(
    connection: Connection,
    chosen: CaseFilter,
    at: str,
    *,
    order: Order,
    after: str | None,
    before: str | None,
    limit: int,
) -> Page:
    """Return a page of the queue; see `guard.review.store.Store.page`."""
    if order not in ORDERS:
        raise InputError(f"There is no order '{order}'", fix=did_you_mean(order, ORDERS))
    if after is not None and before is not None:
        raise InputError("A page is after a case or before one, not both")
    column, falls = _COLUMNS[order]
    backwards = before is not None
    query = _selecting(connection, chosen, at, REVIEWS.c.id)
    if order == "decided":
        query = query.where(column.is_not(None))
    key = sa.tuple_(column, REVIEWS.c.id)
    down = falls != backwards
    if (cursor := before or after) is not None:
        query = query.where(key < _key(cursor, order) if down else key > _key(cursor, order))
    places = [part.desc() if down else part.asc() for part in (column, REVIEWS.c.id)]
    # First which cases, then their contents: a search would otherwise read and sort those of all its cases.
    ids = run_search(connection, query.order_by(*places).limit(limit + 1))
    found = read_reviews(connection, selected().where(REVIEWS.c.id.in_(ids)).order_by(*places))
    more, rows = len(found) > limit, found[:limit]
    if backwards:
        rows.reverse()
    there_before, there_after = (more, True) if backwards else (after is not None, more)
    first, last = (_cursor(connection, rows[place].id, order) if rows else None for place in (0, -1))
    return Page(tuple(rows), first if there_before else None, last if there_after else None)


def read_count(connection: Connection, chosen: CaseFilter, at: str) -> int:
    """Return the number of cases, at most one more than `COUNTED`; see `guard.review.store.Store.count`."""
    found = _selecting(connection, chosen, at, sa.literal(1)).limit(COUNTED + 1)
    counting = sa.select(sa.func.count()).select_from(found.subquery())
    (number,) = run_search(connection, counting.execution_options(**found.get_execution_options()))
    return int(number)


def counted(number: int) -> str:
    """Return what `guard.review.store.Store.count` gave, in words.

    Examples:
        >>> counted(1234), counted(COUNTED + 1)
        ('1,234', 'more than 10,000')
    """
    return f"{number:,}" if number <= COUNTED else f"more than {COUNTED:,}"


def _cursor(connection: Connection, review_id: str, order: Order) -> str:
    value = connection.scalar(sa.select(_COLUMNS[order][0]).where(REVIEWS.c.id == review_id))
    return f"{value!r},{review_id}" if order == "doubtful" else f"{value},{review_id}"


def _key(cursor: str, order: Order) -> sa.Tuple:
    value, comma, review_id = (storable_text(cursor) or "").rpartition(",")
    try:
        if not comma:
            raise ValueError
        at: Any = float(value) if order == "doubtful" else value
    except ValueError:
        raise InputError(f"'{cursor:.60}' is not a position in the queue", fix="Start with the first page") from None
    kind = sa.Float() if order == "doubtful" else sa.Text()
    return sa.tuple_(sa.literal(at, kind), sa.literal(review_id, sa.Text()))


# -- filters -----------------------------------------------------------------------------------


def _selecting(connection: Connection, chosen: CaseFilter, at: str, column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the query for a column of a filter's cases at a time.

    Raises:
        InputError: a value of the filter is unknown.
    """
    query = sa.select(column).where(*_conditions(chosen, at))
    if chosen.text is None:
        return query.select_from(REVIEWS)
    return search_words(connection, chosen.text).narrowed(query)


def _conditions(chosen: CaseFilter, at: str) -> list[sa.ColumnElement[bool]]:
    found = [*_states(chosen, at), *_equal(chosen)]
    if chosen.priority is not None:
        if chosen.priority not in PRIORITIES:
            fix = did_you_mean(chosen.priority, PRIORITIES)
            raise InputError(f"There is no priority '{chosen.priority}'", fix=fix)
        found.append(REVIEWS.c.priority == priority_rank(chosen.priority))
    if chosen.kind is not None:
        if chosen.kind not in CASE_KINDS:
            raise InputError(f"There are no cases '{chosen.kind}'", fix=did_you_mean(chosen.kind, CASE_KINDS))
        found.append(REVIEWS.c.kind == chosen.kind)
    if chosen.since is not None:
        found.append(REVIEWS.c.created_at >= chosen.since)
    if chosen.until is not None:
        found.append(REVIEWS.c.created_at < chosen.until)
    if chosen.claimed is not None or chosen.offered:
        found.append(_by_claim(chosen, at))
    return found


def _equal(chosen: CaseFilter) -> list[sa.ColumnElement[bool]]:
    wanted = {
        REVIEWS.c.route: chosen.route,
        REVIEWS.c.model: chosen.model,
        REVIEWS.c.policy: chosen.policy,
        REVIEWS.c.reviewer: chosen.decided_by,
    }
    found = [column == storable_text(value) for column, value in wanted.items() if value is not None]
    return [*found, *on_routes(chosen.routes)]


def _states(chosen: CaseFilter, at: str) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if chosen.status is not None:
        found.append(_by_status(chosen.status))
    if chosen.late is not None:
        # What is due sorts by its time, so this is a range of the index by which pages are ordered.
        late = sa.and_(IS_PENDING, REVIEWS.c.sort_key <= at, REVIEWS.c.due_at <= at)
        found.append(late if chosen.late else sa.or_(REVIEWS.c.due_at.is_(None), REVIEWS.c.due_at > at))
    if chosen.second is not None:
        second = sa.and_(IS_PENDING, _HAS_OPINIONS, REVIEWS.c.opinions == 1)
        found.append(second if chosen.second else ~second)
    if chosen.disputed is not None:
        disputed = sa.and_(_HAS_OPINIONS, REVIEWS.c.disputed == 1)
        found.append(disputed if chosen.disputed else REVIEWS.c.disputed == 0)
    return found


def _by_status(status: str) -> sa.ColumnElement[bool]:
    if status == "decided":
        return REVIEWS.c.decided_at.is_not(None)
    if status not in list(ReviewStatus):
        raise InputError(f"There is no status '{status}'", fix=did_you_mean(status, (*ReviewStatus, "decided")))
    return IS_PENDING if status == ReviewStatus.PENDING else REVIEWS.c.status == ReviewStatus(status).value


def _by_claim(chosen: CaseFilter, at: str) -> sa.ColumnElement[bool]:
    if chosen.viewer is None:
        raise InputError("This filter needs a reviewer", fix="Give viewer=")
    if chosen.offered:
        return sa.and_(IS_PENDING, claimable(chosen.viewer, at))
    free = sa.or_(REVIEWS.c.claimed_until.is_(None), REVIEWS.c.claimed_until <= at)
    mine = sa.and_(REVIEWS.c.claimed_by == chosen.viewer, REVIEWS.c.claimed_until > at)
    match chosen.claimed:
        case "free":
            return free
        case "mine":
            return mine
        case "free or mine":
            return sa.or_(free, mine)
        case "others":
            return sa.and_(REVIEWS.c.claimed_by != chosen.viewer, REVIEWS.c.claimed_until > at)
    raise InputError(f"There are no cases '{chosen.claimed}'", fix=did_you_mean(str(chosen.claimed), CLAIMED))
