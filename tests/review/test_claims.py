"""Claims on real databases: one person at a time has a case, and only for as long as the lease lasts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from made_cases import make_escalation
from moved_clock import MovedClock
from past_guard import run_past_guard
from sqlalchemy import event

from guard.errors import InputError, ReviewError, StoreError
from guard.review.claims import LEASE_S
from guard.review.store import CaseFilter, Review, ReviewStatus, Store
from guard.review_terms import ReviewTerms


def decided_by(store: Store, name: str) -> list[tuple[str, str]]:
    return [(event.who, event.what) for event in store.history(name)]


def test_a_claimed_case_is_nobody_elses_until_the_lease_ends(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation()).id
    taken = store.claim(name, reviewer="ann", lease_s=60)
    assert (taken.claimed_by, taken.holder(str(clock))) == ("ann", "ann")
    for attempt in (
        lambda: store.claim(name, reviewer="bob"),
        lambda: store.approve(name, reviewer="bob"),
        lambda: store.release(name, reviewer="bob"),
        lambda: store.skip(name, reviewer="bob"),
    ):
        with pytest.raises(ReviewError, match="ann has it until"):
            attempt()
    assert store.claim_next(reviewer="bob") is None
    clock.move(61)
    assert store.review(name).holder(str(clock)) is None
    assert store.claim(name, reviewer="bob").claimed_by == "bob"
    with pytest.raises(ReviewError, match="bob has it until"):
        store.approve(name, reviewer="ann")
    assert store.approve(name, reviewer="bob").reviewer == "bob"


def test_a_claim_is_kept_for_longer_and_never_shortened(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation()).id
    first = store.claim(name, reviewer="ann")
    clock.move(30)
    longer = store.claim(name, reviewer="ann")
    assert str(longer.claimed_until) > str(first.claimed_until)
    assert store.claim(name, reviewer="ann", lease_s=1).claimed_until == longer.claimed_until
    assert decided_by(store, name) == [("guard", "added"), ("ann", "claimed")]


def test_a_decision_needs_no_claim_where_nobody_has_one(store: Store) -> None:
    name = store.add(make_escalation()).id
    decided = store.approve(name, reviewer="ann")
    assert (decided.status, decided.claimed_by, decided.claimed_until) == (ReviewStatus.APPROVED, None, None)
    with pytest.raises(ReviewError, match="approved by ann"):
        store.claim(name, reviewer="bob")


@pytest.mark.parametrize("lease_s", [0, -1, 86_401, float("nan")])
def test_a_lease_has_bounds(store: Store, lease_s: float) -> None:
    name = store.add(make_escalation()).id
    with pytest.raises(InputError, match="lease_s"):
        store.claim(name, reviewer="ann", lease_s=lease_s)


@pytest.mark.parametrize("name", ["", " ", "guard"])
def test_nobody_reviews_without_a_name_or_as_guard(store: Store, name: str) -> None:
    store.add(make_escalation())
    with pytest.raises(InputError):
        store.claim_next(reviewer=name)


def test_released_cases_are_free_again(store: Store) -> None:
    name = store.add(make_escalation()).id
    store.claim(name, reviewer="ann")
    assert store.release(name, reviewer="ann").claimed_by is None
    assert store.claim(name, reviewer="bob").claimed_by == "bob"
    assert decided_by(store, name)[1:] == [("ann", "claimed"), ("ann", "released"), ("bob", "claimed")]


def test_a_skipped_case_is_offered_to_others_only(store: Store) -> None:
    first, second = (store.add(make_escalation(number)).id for number in range(2))
    store.claim(first, reviewer="ann")
    assert store.skip(first, reviewer="ann", note="not my field").claimed_by is None
    assert [case.id for case in (store.claim_next(reviewer="ann"), store.claim_next(reviewer="bob")) if case] == [
        second,
        first,
    ]
    assert store.history(first)[2].note == "not my field"
    assert store.count(CaseFilter(offered=True, viewer="ann")) == 1


def test_an_assigned_case_is_for_one_person(store: Store) -> None:
    name = store.add(make_escalation()).id
    store.claim(name, reviewer="ann")
    assigned = store.assign(name, to="bob", by="lea")
    assert (assigned.assigned_to, assigned.claimed_by) == ("bob", None)
    assert store.claim_next(reviewer="ann") is None
    for attempt in (store.claim, store.approve):
        with pytest.raises(ReviewError, match="assigned to bob"):
            attempt(name, reviewer="ann")
    assert store.claim_next(reviewer="bob") is not None
    store.assign(name, to=None, by="lea")
    assert store.claim(name, reviewer="ann").claimed_by == "ann"
    whom = [(event.who, event.whom) for event in store.history(name) if event.what == "assigned"]
    assert whom == [("lea", "bob"), ("lea", None)]


def test_the_next_case_is_ones_own_then_by_priority_and_due_time_and_late_ones_last(
    store: Store, clock: MovedClock
) -> None:
    wanted = {
        0: ReviewTerms(),
        1: ReviewTerms(within_s=2 * 86_400),
        2: ReviewTerms(within_s=86_400 + 600),
        3: ReviewTerms(within_s=3 * 86_400, priority="high"),
        4: ReviewTerms(within_s=60, priority="high"),  # late since yesterday
        5: ReviewTerms(priority="low"),
    }
    for number, terms in wanted.items():
        store.add(make_escalation(number, terms=terms))
    own = store.claim("decision-5", reviewer="ann")
    assert store.claim_next(reviewer="ann") == store.review(own.id)
    store.approve(own.id, reviewer="ann")
    order = []
    while (case := store.claim_next(reviewer="ann")) is not None:
        order.append(int(case.decision_id.removeprefix("decision-")))
        store.approve(case.id, reviewer="ann")
    assert order == [3, 2, 1, 0, 4]


def test_the_next_case_of_a_route(store: Store) -> None:
    for number, route in enumerate(["law", "medical"]):
        store.add(make_escalation(number, route=route))
    case = store.claim_next(reviewer="ann", route="medical")
    assert case is not None
    assert case.route == "medical"
    assert store.claim_next(reviewer="bob", route="medical") is None


def test_threads_that_ask_at_once_get_a_case_each(store: Store) -> None:
    for number in range(24):
        store.add(make_escalation(number))
    with ThreadPoolExecutor(12) as pool:
        cases = list(pool.map(lambda number: store.claim_next(reviewer=f"person-{number}"), range(30)))
    got = [case.id for case in cases if case is not None]
    assert len(got) == len(set(got)) == 24


def _claim_many(url: str, who: str, barrier: Any, results: Any) -> None:
    with Store.open(url) as store:
        barrier.wait(timeout=60)
        got: list[str] = []
        while (case := store.claim_next(reviewer=who)) is not None:
            got.append(case.id)
            store.approve(case.id, reviewer=who)
        results.put(got)


def test_processes_that_ask_at_once_get_a_case_each(url: str, store: Store) -> None:
    for number in range(30):
        store.add(make_escalation(number))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    people = [context.Process(target=_claim_many, args=(url, f"person-{n}", barrier, results)) for n in range(3)]
    for person in people:
        person.start()
    got = [results.get(timeout=120) for _ in people]
    for person in people:
        person.join()
    assert sorted(name for names in got for name in names) == sorted(review.id for review in store.reviews())
    assert store.count(CaseFilter(status="approved")) == 30


def test_the_next_case_is_found_by_an_index_that_has_the_order(path: Path) -> None:
    """A million cases that wait must not be read and sorted for one claim."""
    with Store.open(path) as store:
        for number in range(3):
            store.add(make_escalation(number))
        statements: list[tuple[str, Any]] = []
        event.listen(store._database.engine, "before_cursor_execute", lambda *seen: statements.append(seen[2:4]))
        assert store.claim_next(reviewer="ann") is not None
        asked = [each for each in statements if "reviews.late_at IS NULL" in each[0]]
        with store._database.read() as connection:
            plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", given).all() for text, given in asked]
    (plan,) = plans
    steps = [row[3] for row in plan]
    assert any("USING INDEX reviews_to_claim" in step for step in steps), steps
    assert not any("B-TREE" in step for step in steps), steps


_TIME = "'2026-01-02T00:00:01.000000+00:00'"
_LATER = "'2026-01-02T00:09:00.000000+00:00'"
TRAIL = "INSERT INTO review_events (review_id, at, who, what) SELECT id, {at}, '{who}', '{what}' FROM reviews"

#: What nobody can do to a case that ann has claimed, with what must be in the trail first for the rest to be judged.
ILLEGAL: list[tuple[str, list[str]]] = [
    ("not in the audit trail", [f"UPDATE reviews SET claimed_by = 'eve', claimed_at = {_LATER}, claimed_until = 'z'"]),
    (
        "somebody else has claimed",
        [
            TRAIL.format(at=_TIME, who="eve", what="claimed"),
            f"UPDATE reviews SET claimed_by = 'eve', claimed_at = {_TIME}, claimed_until = {_LATER}",
        ],
    ),
    ("a person, a beginning and an end", ["UPDATE reviews SET claimed_until = NULL"]),
    ("late once", [TRAIL.format(at=_TIME, who="guard", what="late"), f"UPDATE reviews SET late_at = {_TIME}"]),
    ("opinions are not in", ["UPDATE reviews SET opinions = 1"]),
    ("cannot be changed", ["UPDATE reviews SET due_at = '2030'"]),
    ("cannot be changed", ["UPDATE reviews SET priority = 0"]),
    ("cannot be changed", ["UPDATE reviews SET reviews_wanted = 2"]),
    ("no verdict to undo", [TRAIL.format(at=_TIME, who="eve", what="undone")]),
    (
        "somebody else has claimed",
        [
            "INSERT INTO review_events (review_id, at, who, what, draft, final_answer) "
            f"SELECT id, {_TIME}, 'eve', 'approved', 'right', answer FROM reviews",
            "UPDATE reviews SET status = 'approved', reviewer = 'eve', draft = 'right', final_answer = answer, "
            f"decided_at = {_TIME}, final_at = {_LATER}, claimed_by = NULL, claimed_at = NULL, claimed_until = NULL",
        ],
    ),
]


@pytest.mark.parametrize(("says", "statements"), ILLEGAL)
def test_the_database_itself_refuses_illegal_steps(
    store: Store, clock: MovedClock, says: str, statements: list[str]
) -> None:
    before = store.claim(store.add(make_escalation()).id, reviewer="ann", lease_s=LEASE_S)
    with pytest.raises(StoreError, match=says):
        run_past_guard(store, *statements)
    assert store.review(before.id) == before


VERDICTS: dict[str, Callable[[Store, str], Review]] = {
    "approve": lambda store, name: store.approve(name, reviewer="ann"),
    "edit": lambda store, name: store.edit(name, answer="Paris", draft="right", reviewer="ann"),
    "reject": lambda store, name: store.reject(name, reviewer="ann"),
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_a_verdict_ends_the_claim(store: Store, kind: str) -> None:
    name = store.claim(store.add(make_escalation()).id, reviewer="ann").id
    assert VERDICTS[kind](store, name).claimed_by is None
