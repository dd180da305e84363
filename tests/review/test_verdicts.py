"""Undo, and blind second opinions: nothing is decided twice, and nothing leaves while it can be taken back."""

from __future__ import annotations

import pytest
from made_cases import make_escalation
from moved_clock import MovedClock
from past_guard import run_past_guard

from guard.errors import ReviewError, StoreError
from guard.review.records import UNDO_S
from guard.review.store import CaseFilter, ReviewStatus, Store
from guard.review_terms import ReviewTerms

TWO = ReviewTerms(reviews=2)


def trail(store: Store, name: str) -> list[tuple[str, str]]:
    return [(event.who, event.what) for event in store.history(name) if event.what != "claimed"][1:]


# -- undo --------------------------------------------------------------------------------------


def test_a_decision_can_be_undone_for_ten_seconds_and_is_the_reviewers_again(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation()).id
    store.approve(name, reviewer="ann", note="fine")
    clock.move(UNDO_S - 0.1)
    undone = store.undo(name, reviewer="ann")
    assert (undone.status, undone.reviewer, undone.note, undone.final_answer, undone.draft, undone.final_at) == (
        *(ReviewStatus.PENDING, None, None, None, None, None),
    )
    assert undone.claimed_by == "ann"
    decided = store.reject(name, reviewer="ann")
    assert (decided.status, store.review(name)) == (ReviewStatus.REJECTED, decided)
    assert trail(store, name) == [("ann", "approved"), ("ann", "undone"), ("ann", "rejected")]


def test_a_decision_is_final_after_ten_seconds(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation()).id
    decided = store.approve(name, reviewer="ann")
    clock.move(UNDO_S)
    with pytest.raises(ReviewError, match=f"final.*until {decided.final_at}".replace("+", r"\+")):
        store.undo(name, reviewer="ann")
    assert store.review(name) == decided


def test_only_ones_own_decision_can_be_undone(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation()).id
    with pytest.raises(ReviewError, match="no decision of ann"):
        store.undo(name, reviewer="ann")
    store.approve(name, reviewer="ann")
    with pytest.raises(ReviewError, match="approved by ann"):
        store.undo(name, reviewer="bob")
    store.undo(name, reviewer="ann")
    with pytest.raises(ReviewError, match="no decision of ann"):
        store.undo(name, reviewer="ann")


def test_the_database_refuses_to_undo_a_final_verdict(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation()).id
    decided = store.approve(name, reviewer="ann")
    late = "'2026-01-03T00:00:00.000000+00:00'"
    statements = (
        f"INSERT INTO review_events (review_id, at, who, what) SELECT id, {late}, 'ann', 'undone' FROM reviews",
        "UPDATE reviews SET status = 'pending', final_answer = NULL, draft = NULL, reviewer = NULL, note = NULL, "
        "decided_at = NULL, final_at = NULL",
    )
    with pytest.raises(StoreError, match="a verdict cannot be changed"):
        run_past_guard(store, *statements)
    assert store.review(name) == decided


def test_an_identical_case_that_comes_in_while_a_verdict_can_be_undone_is_counted_on_it(
    store: Store, clock: MovedClock
) -> None:
    first = store.add(make_escalation())
    store.approve(first.id, reviewer="ann")
    assert store.add(make_escalation(decision_id="again")).id == first.id
    assert store.undo(first.id, reviewer="ann").repeats == 1
    store.reject(first.id, reviewer="ann")
    clock.move(UNDO_S)
    assert store.add(make_escalation(decision_id="later")).id != first.id


# -- two reviewers -----------------------------------------------------------------------------


def test_two_opinions_that_agree_are_the_verdict(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    first = store.approve(name, reviewer="ann", note="sure")
    assert (first.status, first.opinions, first.disputed, first.final_at) == (ReviewStatus.PENDING, 1, False, None)
    assert store.count(CaseFilter(second=True)) == 1
    second = store.approve(name, reviewer="bob")
    assert (second.status, second.reviewer, second.opinions) == (ReviewStatus.APPROVED, "bob", 2)
    assert trail(store, name) == [("ann", "opinion"), ("bob", "opinion"), ("bob", "approved")]
    assert [(each.reviewer, each.verdict, each.note) for each in store.opinions(name)] == [
        ("ann", ReviewStatus.APPROVED, "sure"),
        ("bob", ReviewStatus.APPROVED, None),
    ]


def test_nobody_gives_both_opinions(store: Store) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    store.approve(name, reviewer="ann")
    for attempt in (store.approve, store.claim):
        with pytest.raises(ReviewError, match="given an opinion"):
            attempt(name, reviewer="ann")
    assert store.claim_next(reviewer="ann") is None
    assert store.claim_next(reviewer="bob") is not None


def test_the_second_reviewer_is_blind(store: Store) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    store.edit(name, answer="Paris", draft="wrong", reviewer="ann", note="a river")
    (opinion,) = [event for event in store.history(name) if event.what == "opinion"]
    assert (opinion.verdict, opinion.draft, opinion.final_answer, opinion.note) == (None, None, None, None)
    (opinion,) = [event for event in store.history(name, whole=True) if event.what == "opinion"]
    assert (opinion.verdict, opinion.draft, opinion.final_answer, opinion.note) == (
        *("edited", "wrong", "Paris", "a river"),
    )
    review = store.review(name)
    assert (review.reviewer, review.note, review.draft, review.final_answer) == (None, None, None, None)


def test_opinions_that_differ_need_a_third_person(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    store.approve(name, reviewer="ann")
    second = store.reject(name, reviewer="bob")
    assert (second.status, second.disputed, second.opinions) == (ReviewStatus.PENDING, True, 2)
    assert store.count(CaseFilter(disputed=True)) == 1
    assert {event.verdict for event in store.history(name) if event.what == "opinion"} == {"approved", "rejected"}
    for who in ("ann", "bob"):
        with pytest.raises(ReviewError, match="given an opinion"):
            store.reject(name, reviewer=who)
    decided = store.edit(name, answer="Paris", draft="wrong", reviewer="cyd")
    assert (decided.status, decided.reviewer, decided.final_answer) == (ReviewStatus.EDITED, "cyd", "Paris")
    assert store.undo(name, reviewer="cyd").disputed
    assert store.reject(name, reviewer="cyd").status is ReviewStatus.REJECTED


def test_edits_that_differ_disagree(store: Store) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    store.edit(name, answer="Paris", draft="wrong", reviewer="ann")
    assert store.edit(name, answer="Lyon", draft="wrong", reviewer="bob").disputed


def test_an_opinion_can_be_withdrawn_and_given_again(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    store.approve(name, reviewer="ann")
    withdrawn = store.undo(name, reviewer="ann")
    assert (withdrawn.opinions, withdrawn.claimed_by) == (0, "ann")
    store.reject(name, reviewer="ann")
    clock.move(UNDO_S)
    with pytest.raises(ReviewError, match="final"):
        store.undo(name, reviewer="ann")
    settled = store.reject(name, reviewer="bob")
    assert settled.status is ReviewStatus.REJECTED
    undone = store.undo(name, reviewer="bob")
    assert (undone.status, undone.opinions) == (ReviewStatus.PENDING, 1)
    assert store.approve(name, reviewer="bob").disputed


def test_one_opinion_cannot_become_a_verdict_past_guard(store: Store, clock: MovedClock) -> None:
    name = store.add(make_escalation(terms=TWO)).id
    before = store.approve(name, reviewer="ann")
    at, until = "'2026-01-02T00:01:00.000000+00:00'", "'2026-01-02T00:01:10.000000+00:00'"
    statements = (
        "INSERT INTO review_events (review_id, at, who, what, draft, final_answer) "
        f"SELECT id, {at}, 'ann', 'approved', 'right', answer FROM reviews",
        "UPDATE reviews SET status = 'approved', reviewer = 'ann', draft = 'right', final_answer = answer, "
        f"decided_at = {at}, final_at = {until}",
    )
    with pytest.raises(StoreError, match="wants a second opinion"):
        run_past_guard(store, *statements)
    assert store.review(name) == before
