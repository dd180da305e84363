"""What guards decided, read off the audit log, against a count by hand; SQLite and PostgreSQL alike."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from moved_clock import MovedClock

from guard.audit import log as audit_log
from guard.review import decision_figures as module
from guard.review.decision_figures import decision_figures
from guard.review.insights import BINS
from guard.review.store import Store

ACTIONS = ("accept", "retry", "escalate")


@pytest.fixture
def logged(store: Store, clock: MovedClock, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Forty decisions, two a day up to 2 January, and entries of other kinds between them."""
    made, log = [], store.audit_log()
    for number in range(40):
        at = (clock.time - timedelta(days=(39 - number) // 2, hours=1)).isoformat(timespec="milliseconds")
        monkeypatch.setattr(audit_log, "_now", lambda at=at: at)
        fields = {
            "action": ACTIONS[number % 3],
            "route": ("medical", "law", None)[number % 3],
            "p_wrong": None if number % 10 == 9 else number / 40,
            "ood_score": None if number % 4 else (0.99 if number % 8 else 0.5),
        }
        log.append("decision", f"decision-{number}", fields, texts={"answer": "secret"})
        log.append("policy", "policy p", {"mode": "enforce"}, texts={})
        made.append({**fields, "day": at[:10]})
    return made


def test_decisions_are_counted_by_day_action_and_route(store: Store, logged: list[dict[str, Any]]) -> None:
    found = decision_figures(store, days=7)
    within = [each for each in logged if each["day"] in found.by_day]
    assert len(found.by_day) == 7
    assert found.total == len(within) == 12
    for day, tally in found.by_day.items():
        assert tally == {a: n for a in ACTIONS if (n := sum(e["day"] == day and e["action"] == a for e in within))}
    for route, tally in found.by_route.items():
        assert sum(tally.values()) == sum(each["route"] == route for each in within)
    assert found.since is None


def test_scores_fall_into_their_bins_and_days(store: Store, logged: list[dict[str, Any]]) -> None:
    found = decision_figures(store, days=28)
    by_hand = [0] * BINS
    for each in logged:
        if each["p_wrong"] is not None:
            by_hand[int(each["p_wrong"] * BINS)] += 1
    assert list(found.bins) == by_hand
    assert found.failed == 4
    day = logged[0]["day"]
    assert found.days[day].p_wrong == pytest.approx((0 + 1 / 40) / 2)
    placed = [each["ood_score"] for each in logged if each["ood_score"] is not None]
    assert sum(each.placed for each in found.days.values()) == len(placed) == 10
    assert sum(each.unusual for each in found.days.values()) == placed.count(0.99) == 5
    assert found.days[min(found.days)].p_wrong is None


def test_only_routes_in_reach_are_counted(store: Store, logged: list[dict[str, Any]]) -> None:
    assert list(decision_figures(store, days=28, routes=frozenset({"law"})).by_route) == ["law"]
    assert decision_figures(store, days=28, routes=frozenset({"law"}), route="medical").total == 0
    assert None in decision_figures(store, days=28).by_route


def test_of_a_long_log_the_newest_part_is_read_and_said(
    store: Store, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 20)
    monkeypatch.setattr(module, "_PAGE", 7)
    found = decision_figures(store, days=28)
    assert found.total == 10
    assert found.since is not None
    assert found.since[:10] == logged[-10]["day"]
