"""Pages of the queue: every case once, in order, whatever the filter and the way one goes."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_cases import make_escalation
from moved_clock import MovedClock

from guard.errors import InputError
from guard.review.pages import ORDERS, CaseFilter, counted
from guard.review.store import Store
from guard.review_terms import ReviewTerms

TERMS = [ReviewTerms(), ReviewTerms(within_s=9 * 86_400), ReviewTerms(within_s=90_000, priority="high")]


@pytest.fixture
def filled(store: Store, clock: MovedClock) -> Store:
    """Twelve cases: half of them on a route of law, some without a score, three decided."""
    for number in range(12):
        store.add(
            make_escalation(
                number,
                route="law" if number % 2 else "medical",
                model="large" if number > 8 else "tiny",
                p_wrong=None if number == 4 else number / 20,
                question=f"How much is {number} plus Ljubljana?",
                answer=f"It is number{number}, the Žaba says.",
                terms=TERMS[number % 3],
            )
        )
    for number in (1, 2, 3):
        store.approve(f"decision-{number}", reviewer="ann" if number < 3 else "bob")
    return store


def numbers(store: Store, chosen: CaseFilter, **options: object) -> list[int]:
    page = store.page(chosen, **options)  # type: ignore[arg-type]
    return [int(review.decision_id.removeprefix("decision-")) for review in page.reviews]


@pytest.mark.parametrize("order", ORDERS)
def test_paging_by_key_gives_every_case_once_forwards_and_backwards(filled: Store, order: str) -> None:
    everything = [review.id for review in filled.page(order=order, limit=100).reviews]  # type: ignore[arg-type]
    assert len(everything) == len(set(everything)) == (3 if order == "decided" else 12)
    forwards, backwards, after = [], [], None
    while True:
        page = filled.page(order=order, after=after, limit=5)  # type: ignore[arg-type]
        forwards += [review.id for review in page.reviews]
        assert (page.before is None) == (after is None)
        if page.after is None:
            break
        after = page.after
    before = page.before
    while before is not None:
        page = filled.page(order=order, before=before, limit=5)  # type: ignore[arg-type]
        backwards = [review.id for review in page.reviews] + backwards
        before = page.before
    assert forwards == everything
    assert backwards == everything[: len(backwards)]
    assert len(backwards) >= len(everything) - 5


def test_orders(filled: Store) -> None:
    pending = CaseFilter(status="pending")
    assert numbers(filled, pending, order="due") == [5, 8, 11, 4, 7, 10, 0, 6, 9]
    assert numbers(filled, pending, order="doubtful") == [4, 11, 10, 9, 8, 7, 6, 5, 0]
    assert numbers(filled, pending, order="oldest") == sorted(numbers(filled, pending))
    assert numbers(filled, pending, order="newest") == sorted(numbers(filled, pending), reverse=True)
    assert numbers(filled, CaseFilter(), order="decided") == [3, 2, 1]


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        (CaseFilter(status="decided"), {1, 2, 3}),
        (CaseFilter(status="approved", decided_by="bob"), {3}),
        (CaseFilter(route="law", status="pending"), {5, 7, 9, 11}),
        (CaseFilter(model="large"), {9, 10, 11}),
        (CaseFilter(policy="strict"), set()),
        (CaseFilter(priority="high"), {2, 5, 8, 11}),
        (CaseFilter(late=True), set()),
        (CaseFilter(late=False), set(range(12))),
        (CaseFilter(since="2026-01-01T00:00:03", until="2026-01-01T00:00:05"), {3, 4}),
        (CaseFilter(claimed="free", viewer="ann", status="pending"), {0, 4, 5, 6, 8, 9, 10, 11}),
        (CaseFilter(claimed="mine", viewer="cyd"), {7}),
        (CaseFilter(claimed="others", viewer="ann"), {7}),
        (CaseFilter(claimed="free or mine", viewer="cyd", status="pending"), {0, 4, 5, 6, 7, 8, 9, 10, 11}),
        (CaseFilter(offered=True, viewer="dan"), {0, 4, 5, 8, 9, 10, 11}),
        (CaseFilter(offered=True, viewer="eva"), {0, 4, 5, 6, 8, 9, 10, 11}),
        (CaseFilter(text="ljubljana"), set(range(12))),
        (CaseFilter(text="number7"), {7}),
        (CaseFilter(text="žaba NUMBER1"), {1}),
        (CaseFilter(text="plus 4 nothing"), set()),
        (CaseFilter(text="5 plus", route="law"), {5}),
    ],
    ids=str,
)
def test_filters(filled: Store, chosen: CaseFilter, wanted: set[int]) -> None:
    filled.claim("decision-7", reviewer="cyd")
    filled.skip("decision-6", reviewer="dan")
    assert set(numbers(filled, chosen)) == wanted
    assert filled.count(chosen) == len(wanted)


def test_common_and_rare_words_are_found_alike(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.review.words._MANY", 3)
    assert set(numbers(filled, CaseFilter(text="ljubljana", status="pending"))) == {0, *range(4, 12)}
    assert numbers(filled, CaseFilter(text="number7")) == [7]


@pytest.mark.parametrize(
    "wanted", ["ziga", "Žiga", "ŽIGA", "kovač 7", "foo_bar", "foo", "straße", "strasse", "ABC", "x"]
)
def test_however_common_a_word_is_the_same_cases_have_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """Texts with accents, of other cases and of words that are two for the index are found by both ways of search."""
    for number, answer in enumerate(
        ("Žiga Kovač, 7", "ZIGA kovac 7", "ziga", "foo, bar", "foo_bar", "Straße", "strasse", "abc ABCD", "Abc", "")
    ):
        store.add(make_escalation(number, question=f"Who is x{number}?", answer=answer))
    few = numbers(store, CaseFilter(text=wanted))
    monkeypatch.setattr("guard.review.words._MANY", 1)
    assert numbers(store, CaseFilter(text=wanted)) == few


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters()))
def test_any_text_can_be_searched_for(filled: Store, text: str) -> None:
    if re.search(r"\w", text):
        assert len(filled.page(CaseFilter(text=text)).reviews) <= 12
    else:
        with pytest.raises(InputError, match="no word"):
            filled.page(CaseFilter(text=text))


@pytest.mark.parametrize(
    "options",
    [
        {"order": "age"},
        {"after": "x"},
        {"after": "x,y", "before": "x,y"},
        {"after": "x,y", "order": "doubtful"},
        {"chosen": CaseFilter(priority="urgent")},  # type: ignore[arg-type]
        {"chosen": CaseFilter(status="aproved")},
        {"chosen": CaseFilter(claimed="mine")},
        {"chosen": CaseFilter(claimed="hers", viewer="ann")},  # type: ignore[arg-type]
        {"chosen": CaseFilter(text="?!")},
        {"limit": 1001},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(filled: Store, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        filled.page(**options)  # type: ignore[arg-type]


def test_a_page_of_nothing_leads_nowhere(store: Store) -> None:
    page = store.page()
    assert (page.reviews, page.before, page.after) == ((), None, None)


def test_counts_are_capped(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.review.pages.COUNTED", 4)
    assert filled.count() == 5
    assert counted(5) == "more than 4"
