"""Figures for leads: counted by SQLite and PostgreSQL alike, within routes and days, against a count by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from made_cases import make_escalation
from moved_clock import MovedClock

from guard.review.insights import BINS, Tally
from guard.review.store import Store
from guard.review_terms import ReviewTerms

#: p(wrong) at, just below and just above the edges of bins; None has no bin.
SCORES = (0.0, 0.049, 0.05, 0.051, 0.5, 0.52, 0.549, 0.949, 0.95, 0.999, 1.0, None)
ROUTES = ("medical", "law", None)


@pytest.fixture
def filled(store: Store, clock: MovedClock) -> list[dict[str, object]]:
    """Two cases a day, back from 2 January; every third is decided, by two people in turn."""
    made = []
    for number in range(24):
        at = clock.time - timedelta(days=number // 2, minutes=number % 2)
        row = {"score": SCORES[number % 12], "route": ROUTES[number % 3], "day": str(at.date()), "status": "pending"}
        case = make_escalation(number, created_at=at.isoformat(), p_wrong=row["score"], route=row["route"])
        review = store.add(case)
        if number % 3 == 0:
            decide = (store.approve, store.reject)[number // 3 % 2]
            row["status"] = decide(review.id, reviewer=("ann", "bob")[number // 3 % 2]).status.value
        made.append(row)
    return made


def counted(rows: list[dict[str, object]]) -> Tally:
    return Tally(**{name: sum(row["status"] == name for row in rows) for name in ("pending", "approved", "rejected")})


def test_cases_are_counted_by_day_route_and_person(store: Store, filled: list[dict[str, object]]) -> None:
    found = store.insights(days=7)
    days = sorted({row["day"] for row in filled})[-7:]
    within = [row for row in filled if row["day"] in days]
    assert found.total == counted(within)
    assert list(found.by_day) == days
    for day in days:
        assert found.by_day[str(day)] == counted([row for row in within if row["day"] == day])
    for route in ROUTES:
        assert found.by_route[route] == counted([row for row in within if row["route"] == route])
    assert {who: tally.decided for who, tally in found.by_reviewer.items()} == {"ann": 3, "bob": 2}


def test_scores_fall_into_the_bins_that_hold_them(store: Store, filled: list[dict[str, object]]) -> None:
    found = store.insights(days=28)
    by_hand = [0] * BINS
    for row in filled:
        if row["score"] is not None:
            by_hand[min(int(float(str(row["score"])) * BINS), BINS - 1)] += 1
    assert list(found.bins) == by_hand
    assert found.unscored == 2


def test_only_the_routes_that_one_may_see_are_counted(store: Store, filled: list[dict[str, object]]) -> None:
    law = [row for row in filled if row["route"] == "law"]
    assert store.insights(days=28, routes=frozenset({"law"})).total == counted(law)
    assert store.insights(days=28, routes=frozenset({"law"}), route="medical").total == Tally()
    assert store.insights(days=28, routes=frozenset()).total == Tally()
    assert store.routes() == ["law", "medical"]
    assert store.routes(frozenset({"law", "tax"})) == ["law"]


def test_late_cases_claims_and_waits(store: Store, clock: MovedClock) -> None:
    now = clock.time
    for number, minutes in enumerate((10, 20, 60)):
        case = make_escalation(
            number, created_at=(now - timedelta(minutes=minutes)).isoformat(), terms=ReviewTerms(within_s=1800)
        )
        review = store.add(case)
        if number < 2:
            store.approve(review.id, reviewer="ann")
        else:
            store.claim(review.id, reviewer="bob")
    found = store.insights(days=2)
    assert found.late == 1
    assert found.holding == {"bob": 1}
    assert found.wait_s == pytest.approx(15 * 60, abs=1)
    clock.move(3600)
    assert store.insights(days=2).holding == {}


def test_nothing_is_counted_where_nothing_is(store: Store, clock: MovedClock) -> None:
    found = store.insights(days=3)
    assert found.total == Tally()
    assert len(found.by_day) == 3
    assert found.wait_s is None
    assert datetime.fromisoformat(list(found.by_day)[-1]).date() == clock.time.date()
