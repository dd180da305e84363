"""Pages of the queue: every case once, in order, whatever the filter and the way one goes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import postgresql_server
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_cases import make_escalation
from moved_clock import MovedClock
from sqlalchemy import event

from guard.errors import InputError
from guard.review.pages import ORDERS, CaseFilter, Order, counted
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


#: Limits under which a search of the few cases here looks matches up, walks with the set of them, or reads texts on
#: SQLite, and starts from the index of words or not on PostgreSQL.
WAYS = {"looked up": (12_000, 50_000, 50_000), "walked": (0, 50_000, 0), "read": (0, 0, 0)}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    few, many, indexed = WAYS[request.param]
    monkeypatch.setattr("guard.review.words._FEW", few)
    monkeypatch.setattr("guard.review.words._MANY", many)
    monkeypatch.setattr("guard.review.words._INDEXED", indexed)
    return str(request.param)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "decided"])
def test_common_and_rare_words_are_found_alike(filled: Store, way: str, order: Order) -> None:
    chosen = CaseFilter(text="ljubljana", status="pending")
    assert numbers(filled, chosen, order=order) == numbers(filled, CaseFilter(status="pending"), order=order)
    assert filled.count(chosen) == 9
    assert numbers(filled, replace(chosen, route="law", claimed="free", viewer="ann"), order=order) == [
        number for number in numbers(filled, CaseFilter(status="pending"), order=order) if number % 2
    ]
    assert numbers(filled, CaseFilter(text="number7"), order=order) == [7]
    assert numbers(filled, CaseFilter(text="ljubljana"), order="decided") == [3, 2, 1]


def test_pages_of_a_search_follow_each_other(filled: Store, way: str) -> None:
    chosen, found, after = CaseFilter(text="plus says"), list[int](), None
    for _ in range(4):
        page = filled.page(chosen, after=after, limit=3)
        found += [int(review.decision_id.removeprefix("decision-")) for review in page.reviews]
        after = page.after
    assert found == numbers(filled, CaseFilter())
    assert after is None


@pytest.mark.parametrize(
    "wanted", ["ziga", "Žiga", "ŽIGA", "kovač 7", "foo_bar", "foo", "straße", "strasse", "ABC", "x", "who ziga", "7"]
)
def test_however_common_a_word_is_the_same_cases_have_it(store: Store, way: str, wanted: str) -> None:
    """Texts with accents, of other cases and of words that are two for the index are found by all ways of search."""
    answers = ("Žiga Kovač, 7", "ZIGA kovac 7", "ziga", "foo, bar", "foo_bar", "Straße", "strasse", "abc ABCD", "Abc")
    for number, answer in enumerate((*answers, "", "zigazaga 17", "ziga-7", None)):
        store.add(make_escalation(number, question=f"Who is x{number}?", answer=answer))
    found = {
        "ziga": {0, 1, 2, 11}, "Žiga": {0, 1, 2, 11}, "ŽIGA": {0, 1, 2, 11}, "kovač 7": {0, 1}, "foo_bar": {3, 4},
        "foo": {3, 4}, "straße": {5}, "strasse": {6}, "ABC": {7, 8}, "x": set(), "who ziga": {0, 1, 2, 11},
        "7": {0, 1, 11},
    }  # fmt: skip
    if store._database.engine.dialect.name == "sqlite":  # PostgreSQL's dictionary tells accents apart
        assert set(numbers(store, CaseFilter(text=wanted))) == found[wanted]


def test_a_search_for_more_words_than_are_read_finds_all_of_them(store: Store, way: str) -> None:
    words = " ".join(f"w{number}" for number in range(60))
    store.add(make_escalation(0, question=words))
    store.add(make_escalation(1, question=words.replace(" w59", "")))
    assert numbers(store, CaseFilter(text=words)) == [0]


def plan_of_a_search(path: Path, order: Order) -> list[str]:
    """The steps by which SQLite finds the cases of a page, of three that have the word."""
    with Store.open(path) as store:
        for number in range(3):
            store.add(make_escalation(number, question="one word"))
        statements: list[tuple[str, Any]] = []
        event.listen(store._database.engine, "before_cursor_execute", lambda *seen: statements.append(seen[2:4]))
        chosen = CaseFilter(text="word", status=None if order == "decided" else "pending")
        assert len(store.page(chosen, order=order).reviews) == (0 if order == "decided" else 3)
        (asked,) = [each for each in statements if "MATCH" in each[0] and "count" not in each[0]]
        with store._database.read() as connection:
            return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked[0]}", asked[1])]


@pytest.mark.parametrize("order", ORDERS)
def test_a_search_for_a_rare_word_looks_its_cases_up(path: Path, order: Order) -> None:
    words, cases, *_ = plan_of_a_search(path, order)
    assert words.startswith("SCAN review_words VIRTUAL TABLE")
    assert cases == "SEARCH reviews USING INDEX reviews_by_number (number=?)"


@pytest.mark.parametrize("order", ORDERS)
def test_a_search_for_a_usual_word_walks_through_an_order_without_reading_cases(
    path: Path, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    """Of a million cases, ten thousand have such a word: reading each takes far longer than a page may take."""
    monkeypatch.setattr("guard.review.words._FEW", 0)
    steps = plan_of_a_search(path, order)
    assert any("USING COVERING INDEX reviews_by_" in step for step in steps), steps
    assert not any("B-TREE" in step for step in steps), steps


@pytest.mark.skipif(not postgresql_server.is_available(), reason="PostgreSQL cannot be started here")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("limit", [0, 50_000])
def test_postgresql_starts_from_its_index_of_words_up_to_a_number_of_matches(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """To find a usual word by splitting the texts of waiting cases in their order takes it seconds."""
    monkeypatch.setattr("guard.review.words._INDEXED", limit)
    store.add(make_escalation(0, question="one word"))
    statements: list[str] = []
    event.listen(store._database.engine, "before_cursor_execute", lambda *seen: statements.append(seen[2]))
    chosen = CaseFilter(text="word", status="pending")
    assert (numbers(store, chosen), store.count(chosen)) == ([0], 1)
    settings = [each.removeprefix("SET LOCAL enable_indexscan = ") for each in statements if each.startswith("SET")]
    assert settings == ["off", "on"] * (2 if limit else 0), "and what follows in the transaction is planned as usual"


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
