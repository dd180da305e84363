"""What callers get, by id and at any time: a person's answer past undoing, or what the policy says of a late case."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from made_cases import make_escalation
from moved_clock import MovedClock

from guard.errors import InputError, ReviewError
from guard.review import results
from guard.review.records import UNDO_S
from guard.review.store import CaseFilter, ReviewStatus, Store
from guard.review_terms import LateAction, ReviewTerms

DAY = 86_400
HOUR = ReviewTerms(within_s=DAY + 3600, late=LateAction("fallback", "Ask again tomorrow."))


def test_the_caller_gets_the_persons_answer_once_it_can_no_longer_be_undone(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation())
    assert store.result("decision-0").state == "waiting"
    decided = store.edit(case.id, answer="Paris", draft="wrong", reviewer="ann", note="a capital")
    clock.move(UNDO_S - 0.1)
    waiting = store.result("decision-0")
    assert (waiting.state, waiting.answer, waiting.verdict, waiting.reviewer) == ("waiting", None, None, None)
    assert waiting.ready_at == decided.final_at
    clock.move(0.2)
    result = store.result("decision-0")
    assert (result.state, result.answer, result.verdict, result.reviewer, result.note) == (
        *("decided", "Paris", ReviewStatus.EDITED, "ann", "a capital"),
    )
    assert store.result(case.id) == result


def test_what_is_undone_never_reaches_the_caller(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation())
    store.approve(case.id, reviewer="ann")
    clock.move(UNDO_S - 0.1)
    store.undo(case.id, reviewer="ann")
    clock.move(UNDO_S)
    assert store.result("decision-0").state == "waiting"


def test_a_late_case_becomes_the_policys_action(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation(terms=HOUR))
    clock.move(3599)
    assert store.result("decision-0").state == "waiting"
    clock.move(2)
    result = store.result("decision-0")
    assert (result.state, result.answer, result.late) == ("late", "Ask again tomorrow.", HOUR.late)
    assert [event.what for event in store.history(case.id)] == ["added", "late"]
    assert store.mark_late() == 0  # the caller's look has marked it


def test_a_verdict_on_a_late_case_is_a_label_and_does_not_change_what_the_caller_got(
    store: Store, clock: MovedClock
) -> None:
    case = store.add(make_escalation(terms=HOUR))
    clock.move(3601)
    assert store.mark_late() == 1
    assert store.review(case.id).late_at is not None
    assert store.count(CaseFilter(late=True)) == 1
    store.approve(case.id, reviewer="ann")
    clock.move(UNDO_S)
    assert store.result("decision-0").state == "late"
    assert [row["label"] for row in store.labelled()] == [0]


def test_a_verdict_in_time_counts_though_it_becomes_final_after_the_due_time(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation(terms=HOUR))
    clock.move(3599)
    store.approve(case.id, reviewer="ann")
    clock.move(5)
    assert store.result("decision-0").state == "waiting"
    assert store.mark_late() == 0
    clock.move(UNDO_S)
    assert store.result("decision-0").state == "decided"


def test_a_verdict_in_time_that_is_undone_after_the_due_time_leaves_the_case_late(
    store: Store, clock: MovedClock
) -> None:
    case = store.add(make_escalation(terms=HOUR))
    clock.move(3595)
    store.approve(case.id, reviewer="ann")
    clock.move(7)
    store.undo(case.id, reviewer="ann")
    assert store.result("decision-0").state == "late"


def test_an_identical_case_has_a_due_time_of_its_own(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation(terms=HOUR))
    later = ReviewTerms(within_s=DAY + 7200, late=LateAction())
    assert store.add(make_escalation(decision_id="again", terms=later)).id == case.id
    clock.move(3601)
    assert [store.result(name).state for name in ("decision-0", "again")] == ["late", "waiting"]
    store.approve(case.id, reviewer="ann")
    clock.move(UNDO_S)
    first, second = (store.result(name) for name in ("decision-0", "again"))
    assert (first.state, second.state, second.answer) == ("late", "decided", make_escalation().answer)


def test_an_identical_case_is_not_counted_on_one_that_is_late(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation(terms=HOUR))
    clock.move(3601)
    again = store.add(make_escalation(decision_id="again"))
    assert again.id != case.id
    assert store.review(case.id).late_at is not None


def test_a_late_case_is_marked_once_and_by_one_of_many(store: Store, clock: MovedClock) -> None:
    for number in range(5):
        store.add(make_escalation(number, terms=HOUR))
    clock.move(3700)
    results._BATCH, batch = 2, results._BATCH
    try:
        assert store.mark_late() == 5
    finally:
        results._BATCH = batch
    assert store.mark_late() == 0


# -- waiting -----------------------------------------------------------------------------------


def test_waiting_ends_when_the_verdict_is_final(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation())

    def decide() -> None:
        store.approve(case.id, reviewer="ann")
        clock.move(UNDO_S)

    timer = threading.Timer(0.2, decide)
    timer.start()
    assert store.wait("decision-0", timeout_s=60).state == "decided"
    timer.join()


def test_waiting_ends_when_the_case_is_late(store: Store, clock: MovedClock) -> None:
    store.add(make_escalation(terms=HOUR))
    timer = threading.Timer(0.2, clock.move, [3700])
    timer.start()
    assert asyncio.run(store.wait_async("decision-0", timeout_s=60)).state == "late"
    timer.join()


def test_waiting_ends_when_the_time_is_up(store: Store) -> None:
    store.add(make_escalation())
    assert store.wait("decision-0", timeout_s=0).state == "waiting"
    assert asyncio.run(store.wait_async("decision-0", timeout_s=0.1)).state == "waiting"


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan")])
def test_a_time_to_wait_is_not_negative(store: Store, timeout_s: float) -> None:
    store.add(make_escalation())
    with pytest.raises(InputError, match="timeout_s"):
        store.wait("decision-0", timeout_s=timeout_s)


def test_nobody_waits_for_a_case_that_is_not_there(store: Store) -> None:
    for ask in (store.result, store.wait):
        with pytest.raises(ReviewError, match="no review"):
            ask("decision-7")


def test_another_process_asks_by_the_same_id(url: str, store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation())
    store.approve(case.id, reviewer="ann")  # in the past, by the other process's clock
    code = (
        "import sys; from guard.review.store import Store; store = Store.open(sys.argv[1]);"
        "result = store.wait('decision-0', timeout_s=30); print(result.state, result.reviewer)"
    )
    run = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["decided", "ann"]
