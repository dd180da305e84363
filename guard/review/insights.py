"""Figures for the lead of reviewers: incoming cases, verdicts, reviewers, and the distribution of p(wrong).

The database counts: results have one row per day, route and person, not per case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.review.migrations.tables import REVIEWS
from guard.review.queries import IS_PENDING, on_routes
from guard.review.records import ReviewStatus, storable_text

#: Number of equal bins of p(wrong) from 0 to 1.
BINS = 20

#: Largest number of the most recent verdicts for the median wait.
WAITS = 1000

#: Largest number of listed routes.
ROUTES = 200


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of cases of a day, route or person by status.

    Attributes:
        pending, approved, edited, rejected: numbers of cases.
    """

    pending: int = 0
    approved: int = 0
    edited: int = 0
    rejected: int = 0

    @property
    def decided(self) -> int:
        """Number of cases with a verdict."""
        return self.approved + self.edited + self.rejected

    @property
    def all(self) -> int:
        """Number of all cases."""
        return self.pending + self.decided


@dataclass(frozen=True, slots=True)
class Insights:
    """The figures of some days.

    Attributes:
        by_day: cases by the day of their arrival, such as ``2026-11-25``; every day, in order.
        by_route: cases by route (None for cases without one), in descending order.
        by_reviewer: verdicts by login name, in descending order.
        holding: currently claimed cases by login name.
        bins: numbers of cases by p(wrong), in `BINS` equal bins from 0 to 1.
        unscored: cases without a score.
        late: cases that were or are late.
        wait_s: median seconds from arrival to verdict, of the most recent `WAITS` verdicts; None without verdicts.
    """

    by_day: dict[str, Tally]
    by_route: dict[str | None, Tally]
    by_reviewer: dict[str, Tally]
    holding: dict[str, int]
    bins: tuple[int, ...]
    unscored: int
    late: int
    wait_s: float | None

    @property
    def total(self) -> Tally:
        """All of it."""
        return _add(self.by_day.values())


def read_insights(
    connection: Connection, at: str, *, days: int, routes: frozenset[str] | None, route: str | None = None
) -> Insights:
    """Return the figures of the last days.

    Args:
        connection: a connection within a transaction.
        at: the current time, ISO 8601 in UTC.
        days: number of days, including today.
        routes: only these routes; None for all.
        route: only this route.
    """
    today = datetime.fromisoformat(at).date()
    names = [str(today - timedelta(days=back)) for back in range(days - 1, -1, -1)]
    chosen = [REVIEWS.c.created_at >= names[0], *_on(routes, route)]
    by_day = _tallies(connection, sa.func.substr(REVIEWS.c.created_at, 1, 10), chosen)
    bins, unscored = _histogram(connection, chosen)
    decided = REVIEWS.c.reviewer.is_not(None)
    return Insights(
        by_day={name: by_day.get(name, Tally()) for name in sorted({*names, *map(str, by_day)})},
        by_route=_largest_first(_tallies(connection, REVIEWS.c.route, chosen)),
        by_reviewer=_largest_first(_tallies(connection, REVIEWS.c.reviewer, [*chosen, decided])),
        holding=_holding(connection, at, routes, route),
        bins=bins,
        unscored=unscored,
        late=_late(connection, at, chosen),
        wait_s=_median_wait(connection, chosen),
    )


def read_routes(connection: Connection, routes: frozenset[str] | None) -> list[str]:
    """Return the routes of existing cases, in order, at most `ROUTES`; only these, or None for all."""
    found: list[str] = []
    chosen = on_routes(routes)
    # From route to route in the index: a DISTINCT would read every case.
    while len(found) < ROUTES:
        beyond = REVIEWS.c.route > found[-1] if found else REVIEWS.c.route.is_not(None)
        route = connection.scalar(sa.select(sa.func.min(REVIEWS.c.route)).where(beyond, *chosen))
        if route is None:
            break
        found.append(str(route))
    return found


def _on(routes: frozenset[str] | None, route: str | None) -> list[sa.ColumnElement[bool]]:
    return on_routes(routes) if route is None else [*on_routes(routes), REVIEWS.c.route == storable_text(route)]


def _tallies(
    connection: Connection, key: sa.ColumnElement[Any], chosen: list[sa.ColumnElement[bool]]
) -> dict[Any, Tally]:
    query = sa.select(key, REVIEWS.c.status, sa.func.count()).where(*chosen).group_by(key, REVIEWS.c.status)
    counts: dict[Any, dict[str, int]] = {}
    for name, status, number in connection.execute(query):
        counts.setdefault(name, {})[status] = int(number)
    return {name: Tally(**each) for name, each in counts.items()}


def _largest_first(tallies: dict[Any, Tally]) -> dict[Any, Tally]:
    return dict(sorted(tallies.items(), key=lambda item: (-item[1].all, str(item[0]))))


def _add(tallies: Iterable[Tally]) -> Tally:
    known = list(tallies)
    return Tally(**{status.value: sum(getattr(each, status.value) for each in known) for status in ReviewStatus})


def _histogram(connection: Connection, chosen: list[sa.ColumnElement[bool]]) -> tuple[tuple[int, ...], int]:
    scaled: sa.ColumnElement[Any] = REVIEWS.c.p_wrong * BINS
    # PostgreSQL's cast rounds; SQLite's truncates, and its floor is not in every build.
    whole = scaled if connection.dialect.name == "sqlite" else sa.func.floor(scaled)
    place: sa.ColumnElement[int | None] = sa.cast(whole, sa.Integer)
    bins, unscored = [0] * BINS, 0
    for which, number in connection.execute(sa.select(place, sa.func.count()).where(*chosen).group_by(place)):
        if which is None:
            unscored = int(number)
        else:
            bins[min(int(which), BINS - 1)] += int(number)
    return tuple(bins), unscored


def _holding(connection: Connection, at: str, routes: frozenset[str] | None, route: str | None) -> dict[str, int]:
    query = sa.select(REVIEWS.c.claimed_by, sa.func.count()).where(
        IS_PENDING, REVIEWS.c.claimed_until > at, *_on(routes, route)
    )
    return {who: int(number) for who, number in connection.execute(query.group_by(REVIEWS.c.claimed_by))}


def _late(connection: Connection, at: str, chosen: list[sa.ColumnElement[bool]]) -> int:
    answered = sa.func.coalesce(REVIEWS.c.decided_at, at)
    query = sa.select(sa.func.count()).where(*chosen, REVIEWS.c.due_at <= answered)
    return int(connection.scalar(query) or 0)


def _median_wait(connection: Connection, chosen: list[sa.ColumnElement[bool]]) -> float | None:
    query = sa.select(REVIEWS.c.created_at, REVIEWS.c.decided_at).where(*chosen, REVIEWS.c.decided_at.is_not(None))
    rows = connection.execute(query.order_by(REVIEWS.c.decided_at.desc()).limit(WAITS))
    waits = [(datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() for begin, end in rows]
    return median(waits) if waits else None
