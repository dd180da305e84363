"""Figures of all decisions, from the newest entries of the audit log: by day and action, by score, and how unusual the
inputs were.

The queue has only some of the answers; the log has every decision of a guard that writes to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit.tables import ENTRIES
from guard.records import Action
from guard.review.insights import BINS

if TYPE_CHECKING:
    from guard.review.store import Store

#: Newest entries of the log that are read.
MOST = 20_000

#: From this out-of-distribution share on an input is unusual: of calibration answers 1 in 20 is.
UNUSUAL = 0.95

_PAGE = 2000


@dataclass(frozen=True, slots=True)
class DayOfScores:
    """The scores of one day.

    Attributes:
        scored: answers with a score.
        p_wrong: mean of the scores; None without any.
        placed: answers with an out-of-distribution score.
        unusual: those with a score of `UNUSUAL` or above.
    """

    scored: int
    p_wrong: float | None
    placed: int
    unusual: int


@dataclass(frozen=True, slots=True)
class DecisionFigures:
    """Decisions of the last days.

    Attributes:
        by_day: numbers of answers by day, ``2026-11-25``, and action; every day, also those without any.
        by_route: the same by route (None for answers without one), in descending order.
        bins: numbers of answers by p(wrong), `BINS` equal steps from 0 to 1.
        failed: answers without a score.
        days: the scores of each day.
        since: the time of the oldest decision that was read, where the log has more of these days than `MOST` entries;
            None where all were read.
    """

    by_day: Mapping[str, Mapping[str, int]]
    by_route: Mapping[str | None, Mapping[str, int]]
    bins: tuple[int, ...]
    failed: int
    days: Mapping[str, DayOfScores]
    since: str | None

    @property
    def total(self) -> int:
        """All decisions."""
        return sum(sum(each.values()) for each in self.by_day.values())


def decision_figures(
    store: Store, *, days: int, routes: frozenset[str] | None = None, route: str | None = None
) -> DecisionFigures:
    """Return the decisions of the last days.

    Args:
        store: store with the log.
        days: today and the days before it, in UTC.
        routes: only these; None for all.
        route: only this route.
    """
    with store._database.read() as connection:
        today = datetime.fromisoformat(store._database.now(connection)).date()
        names = [str(today - timedelta(days=back)) for back in range(days - 1, -1, -1)]
        events, cut = _newest(connection, names[0])
    kept = [event for event in events if _is_meant(event.get("route"), routes, route)]
    return _counted(kept, names, str(events[-1]["at"]) if cut and events else None)


def _newest(connection: Connection, first_day: str) -> tuple[list[dict[str, Any]], bool]:
    """Return the decisions from a day on, the newest first, and whether there are more than were read."""
    found: list[dict[str, Any]] = []
    for number, event in enumerate(_entries(connection)):
        if number >= MOST:
            return found, True
        if str(event.get("at")) < first_day:
            return found, False
        if event.get("kind") == "decision":
            found.append(event)
    return found, False


def _entries(connection: Connection) -> Iterator[dict[str, Any]]:
    query = sa.select(ENTRIES.c.number, ENTRIES.c.event).order_by(ENTRIES.c.number.desc()).limit(_PAGE)
    before: int | None = None
    while True:
        page = connection.execute(query if before is None else query.where(ENTRIES.c.number < before)).all()
        yield from (json.loads(row.event) for row in page)
        if len(page) < _PAGE:
            return
        before = page[-1].number


def _is_meant(given: Any, routes: frozenset[str] | None, route: str | None) -> bool:
    return (routes is None or given in routes) and (route is None or given == route)


def _counted(events: list[dict[str, Any]], names: list[str], since: str | None) -> DecisionFigures:
    by_day: dict[str, Counter[str]] = {name: Counter() for name in names}
    by_route: dict[str | None, Counter[str]] = {}
    of_day: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    bins, failed = [0] * BINS, 0
    for event in events:
        day, action, p_wrong = str(event["at"])[:10], str(event.get("action")), event.get("p_wrong")
        by_day.setdefault(day, Counter())[action] += 1
        by_route.setdefault(event.get("route"), Counter())[action] += 1
        of_day.setdefault(day, []).append(event)
        if p_wrong is None:
            failed += 1
        else:
            bins[min(int(float(p_wrong) * BINS), BINS - 1)] += 1
    most = sorted(by_route.items(), key=lambda item: (-sum(item[1].values()), str(item[0])))
    days = {name: _day(each) for name, each in sorted(of_day.items())}
    return DecisionFigures(dict(sorted(by_day.items())), dict(most), tuple(bins), failed, days, since)


def _day(events: list[dict[str, Any]]) -> DayOfScores:
    known = ("p_wrong", "ood_score")
    scores, places = ([event[name] for event in events if event.get(name) is not None] for name in known)
    return DayOfScores(
        len(scores), fmean(scores) if scores else None, len(places), sum(place >= UNUSUAL for place in places)
    )


#: Actions in the order of charts.
ACTIONS = tuple(action.value for action in Action)
