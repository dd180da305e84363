"""The review store on real files with real processes: what was accepted is there, whole, once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import postgresql_server
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_cases import make_escalation
from moved_clock import MovedClock

from guard.data.questions import LabelledResponse, read_rows
from guard.errors import GuardError, InputError, MissingExtraError, ReviewError, StoreError
from guard.records import Prompt
from guard.review import database, migrations
from guard.review.migrations.tables import METADATA
from guard.review.records import UNDO_S
from guard.review.store import ALPHABET, ID_LENGTH, CaseFilter, Review, ReviewStatus, Store
from guard.review_terms import ReviewTerms

ON_POSTGRESQL = pytest.mark.skipif(
    not postgresql_server.is_available(), reason="no PostgreSQL server: see postgresql_server.py"
)


#: The statements of the page that says which rights an application needs.
GRANTS = re.search(
    r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs/how-to/review.md").read_text("utf-8"), re.DOTALL
)


@ON_POSTGRESQL
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_the_documented_role_can_do_the_work_and_cannot_touch_the_trail(url: str) -> None:
    assert GRANTS is not None
    with Store.open(url) as owner, owner._database.write() as connection:
        for statement in filter(str.strip, GRANTS[1].split(";")):
            connection.exec_driver_sql(statement)
    with Store.open(
        sa.make_url(url).set(username="guard_app", password="change this").render_as_string(hide_password=False)
    ) as store:
        first, second = (store.add(make_escalation(number)) for number in range(2))
        store.add(make_escalation(0, decision_id="again"))
        store.reject(second.id, reviewer="ann")
        assert store.approve(first.id, reviewer="ann").status is ReviewStatus.APPROVED
        assert len(store.repeats(first.id)) == 1
        for statement in (
            "ALTER TABLE reviews DISABLE TRIGGER USER",
            "TRUNCATE review_events",
            "DELETE FROM reviews",
            "UPDATE review_events SET who = 'bob'",
            "DROP TABLE review_repeats",
        ):
            with pytest.raises(StoreError, match="permission is denied"), store._database.write() as connection:
                connection.exec_driver_sql(statement)
    with Store.open(url) as owner, owner._database.write() as connection:
        connection.exec_driver_sql("DROP OWNED BY guard_app")
        connection.exec_driver_sql("DROP ROLE guard_app")


def raw(path: Path, statement: str, *values: Any) -> list[Any]:
    """What SQLite itself, past guard, says to a statement."""
    connection = sqlite3.connect(path)
    with connection:
        rows = connection.execute(statement, values).fetchall()
    connection.close()
    return rows


# -- adding and reading ------------------------------------------------------------------------


def test_a_case_comes_back_as_it_went_in(store: Store) -> None:
    case = make_escalation(7)
    added = store.add(case)
    review = store.review(added.id)
    assert review == added
    assert len(review.id) == ID_LENGTH
    assert set(review.id) <= set(ALPHABET)
    same = ("decision_id", "question", "answer", "p_wrong", "rule", "reason", "route", "policy", "model")
    for name in same:
        assert getattr(review, name) == getattr(case, name)
    assert review.prompt == case.prompt
    assert review.metadata == case.metadata
    assert review.created_at == "2026-01-01T00:00:07.000000+00:00"
    assert review.status is ReviewStatus.PENDING
    assert (review.final_answer, review.reviewer, review.note, review.decided_at) == (None,) * 4
    failed, scored = review.attempts
    assert (failed["answer"], failed["p_wrong"]) == (None, None)
    assert failed["error"] == "The layers were not recorded"
    assert scored["answer"] == case.answer
    assert (scored["p_wrong"], scored["calibrated"], scored["action"]) == (0.75, True, "escalate")
    assert scored["sampling"] == {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "seed": 7}


def test_adding_is_idempotent_by_decision(store: Store) -> None:
    first = store.add(make_escalation(1))
    decided = store.approve(first.id, reviewer="ann")
    assert store.add(make_escalation(1, question="changed")) == decided
    assert store.count() == 1
    assert [event.what for event in store.history(first.id)] == ["added", "approved"]


def test_a_raw_prompt_and_missing_values(store: Store) -> None:
    case = make_escalation(prompt=Prompt.raw("2+2="), answer=None, p_wrong=None, route=None, attempts=())
    review = store.review(store.add(case).id)
    assert review.prompt == Prompt.raw("2+2=")
    assert (review.answer, review.p_wrong, review.route, review.attempts) == (None, None, None, ())


def test_tools_are_kept(store: Store) -> None:
    prompt = Prompt.chat("hi", tools=[{"type": "function", "function": {"name": "f"}}])
    assert store.add(make_escalation(prompt=prompt)).prompt == prompt


def test_metadata_that_json_lacks_is_kept_as_text(store: Store) -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    metadata = {"price": Decimal("1.50"), "nan": float("nan"), 3: (1, None, True), "path": Path("a"), "c": cycle}
    kept = store.review(store.add(make_escalation(metadata=metadata)).id).metadata
    assert {name: kept[name] for name in ("price", "nan", "3", "path")} == {
        "price": "1.50",
        "nan": "nan",
        "3": [1, None, True],
        "path": "a",
    }


def test_a_case_is_kept_whatever_its_metadata_is(store: Store) -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    kept = store.review(store.add(make_escalation(metadata={"a": Mute(), "b": {Mute(): 1}})).id).metadata
    assert kept == {"a": "<Mute>", "b": {"<Mute>": 1}}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters()), number=st.integers(min_value=0))
def test_any_text_is_accepted(store: Store, text: str, number: int) -> None:
    decision_id = f"{number}-{text}"
    case = make_escalation(
        decision_id=decision_id, question=text, answer=text, prompt=Prompt.chat(text), metadata={text: text}
    )
    review = store.add(case)
    assert store.add(case) == review
    if "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        assert (review.question, review.answer, review.prompt, review.metadata) == (
            text,
            text,
            case.prompt,
            {text: text},
        )


@pytest.mark.parametrize(
    ("given_time", "kept"),
    [
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00.000000+00:00"),
        ("2026-01-01T00:00:00.5", "2026-01-01T00:00:00.500000+00:00"),
    ],
)
def test_times_have_one_form(store: Store, given_time: str, kept: str) -> None:
    assert store.add(make_escalation(created_at=given_time)).created_at == kept


def test_a_time_that_is_none_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="'yesterday'"):
        store.add(make_escalation(created_at="yesterday"))
    assert store.count() == 0


def test_listing_filters_pages_and_orders(store: Store) -> None:
    for number in (3, 1, 2, 0):
        store.add(make_escalation(number, route="even" if number % 2 == 0 else None))
    store.reject(store.reviews()[0].id, reviewer="ann")
    assert [review.decision_id for review in store.reviews()] == [f"decision-{n}" for n in range(4)]
    assert [review.decision_id for review in store.reviews(limit=2)] == ["decision-0", "decision-1"]
    assert [review.decision_id for review in store.reviews(status="pending", route="even")] == ["decision-2"]
    assert [review.decision_id for review in store.reviews(status=ReviewStatus.REJECTED)] == ["decision-0"]
    assert [store.count(CaseFilter(**chosen)) for chosen in ({}, {"status": "pending"}, {"route": "even"})] == [4, 3, 2]


@pytest.mark.parametrize(
    "options",
    [{"limit": 0}, {"status": "aproved"}, {"limit": 2**70}, {"limit": "3"}],
    ids=str,
)
def test_listing_refuses_what_makes_no_sense(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        store.reviews(**options)


def test_a_misspelt_status_gets_a_suggestion(store: Store) -> None:
    with pytest.raises(InputError, match="Did you mean 'approved'"):
        store.count(CaseFilter(status="aproved"))


# -- names -------------------------------------------------------------------------------------


def test_a_review_is_found_by_beginning_decision_and_look_alikes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter("10ab2c" + "10ab2c" + "10abz9")
    monkeypatch.setattr("guard.review.store.secrets.choice", lambda _: next(drawn))
    first = store.add(make_escalation(1))
    second = store.add(make_escalation(2))  # its first draw is taken
    assert (first.id, second.id) == ("10ab2c", "10abz9")
    for name in ("10ab2c", "10ab2", " LOAB2C ", "ioab2", "decision-1"):
        assert store.review(name) == first
    with pytest.raises(ReviewError, match="10ab2c, 10abz9"):
        store.review("10ab")
    with pytest.raises(ReviewError, match="too short"):
        store.review("10a")


@pytest.mark.parametrize("name", ["", "  ", "nothing", "%", "_", "'; DROP TABLE reviews; --", "\0", "\ud800"])
def test_an_unknown_name(store: Store, name: str) -> None:
    store.add(make_escalation())
    with pytest.raises(ReviewError):
        store.review(name)
    assert store.count() == 1


def test_an_unknown_name_gets_a_suggestion(store: Store) -> None:
    known = store.add(make_escalation()).id
    mistyped = known[:-1] + ("0" if known[-1] != "0" else "1")
    with pytest.raises(ReviewError, match=f"Did you mean '{known}'"):
        store.review(mistyped)


# -- deciding ----------------------------------------------------------------------------------


def test_the_three_decisions(store: Store) -> None:
    right, better, wrong = (store.add(make_escalation(n)).id for n in range(3))
    approved = store.approve(right, reviewer="ann", note="fine")
    edited = store.edit(better, answer="Paris", draft="wrong", reviewer="bob")
    rejected = store.reject(wrong, reviewer="cyd", answer="42")
    assert (approved.status, approved.final_answer, approved.reviewer, approved.note) == (
        ReviewStatus.APPROVED,
        approved.answer,
        "ann",
        "fine",
    )
    assert (edited.status, edited.final_answer) == (ReviewStatus.EDITED, "Paris")
    assert (rejected.status, rejected.final_answer) == (ReviewStatus.REJECTED, "42")
    for review in (approved, edited, rejected):
        assert store.review(review.id) == review
        added, decided = store.history(review.id)
        assert (added.who, added.what) == ("guard", "added")
        assert (decided.who, decided.what) == (review.reviewer, review.status)
        assert decided.at >= str(review.decided_at) >= added.at


def test_a_decision_is_final_and_says_whose_it_is(store: Store) -> None:
    review = store.approve(store.add(make_escalation()).id, reviewer="ann")
    with pytest.raises(ReviewError, match=rf"approved by ann at {review.decided_at}".replace("+", r"\+")):
        store.reject(review.id, reviewer="bob")
    assert store.review(review.id) == review


ANSWER = make_escalation().answer
DECISIONS: list[tuple[str, Callable[[Store, str], Review]]] = [
    (
        "unchanged",
        lambda store, name: store.edit(name, answer=f" {make_escalation().answer}\n", draft="right", reviewer="a"),
    ),
    ("unchanged", lambda store, name: store.reject(name, answer=make_escalation().answer, reviewer="a")),
    ("empty", lambda store, name: store.edit(name, answer=" ", draft="wrong", reviewer="a")),
    ("right or wrong", lambda store, name: store.edit(name, answer="Paris", reviewer="a")),
    ("right or wrong", lambda store, name: store.edit(name, answer="Paris", draft="maybe", reviewer="a")),  # type: ignore[arg-type]
    ("reviewer's name", lambda store, name: store.approve(name, reviewer=" ")),
]


@pytest.mark.parametrize(("says", "decide"), DECISIONS)
def test_decisions_that_would_mislabel_are_refused(
    store: Store, says: str, decide: Callable[[Store, str], Review]
) -> None:
    name = store.add(make_escalation()).id
    with pytest.raises(InputError, match=says):
        decide(store, name)
    assert store.review(name).status is ReviewStatus.PENDING


def test_no_answer_cannot_be_approved_but_edited(store: Store) -> None:
    name = store.add(make_escalation(answer=None)).id
    with pytest.raises(ReviewError, match="no answer to approve"):
        store.approve(name, reviewer="ann")
    for blank in ("", " \n", "\u200b", "\u3164"):
        with pytest.raises(ReviewError, match="must not be empty"):
            store.edit(name, answer=blank, reviewer="ann")
    assert store.edit(name, answer="Paris", reviewer="ann").final_answer == "Paris"


def _race(url: str, name: str, reviewer: str, barrier: Any, results: Any) -> None:
    with Store.open(url) as store:
        barrier.wait(timeout=30)
        try:
            results.put(
                ("won", reviewer, store.edit(name, answer=reviewer, draft="wrong", reviewer=reviewer).final_answer)
            )
        except ReviewError as error:
            results.put(("lost", reviewer, str(error)))


def test_of_reviewers_in_several_processes_one_wins(url: str, store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    name = store.add(make_escalation()).id
    barrier, results = context.Barrier(4), context.Queue()
    people = [context.Process(target=_race, args=(url, name, f"person-{n}", barrier, results)) for n in range(4)]
    for person in people:
        person.start()
    outcomes = [results.get(timeout=60) for _ in people]
    for person in people:
        person.join()
    won = [outcome for outcome in outcomes if outcome[0] == "won"]
    assert len(won) == 1
    winner = won[0][1]
    assert all(f"edited by {winner} at " in said for how, _, said in outcomes if how == "lost")
    assert store.review(name).final_answer == winner
    assert [event.who for event in store.history(name)] == ["guard", winner]


def _waits_for_a_lock(store: Store) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with store._database.read() as connection:
        return bool(connection.exec_driver_sql(query).scalar())


@ON_POSTGRESQL
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_reviewer_who_decides_while_another_does_waits_and_is_refused(url: str) -> None:
    """PostgreSQL would let both find the case pending: the second one looks while the first has yet to commit."""
    with Store.open(url) as first, Store.open(url) as second, ThreadPoolExecutor(1) as pool:
        name = first.add(make_escalation()).id
        late: list[Future[Review]] = []

        def let_the_other_come(_: Any) -> None:
            late.append(pool.submit(second.approve, name, reviewer="bob"))
            deadline = time.monotonic() + 20
            while not late[0].done() and not _waits_for_a_lock(second):
                assert time.monotonic() < deadline, "the second reviewer never came to the case"
                time.sleep(0.01)

        sa.event.listen(first._database.engine, "commit", let_the_other_come)
        assert first.reject(name, reviewer="ann").status is ReviewStatus.REJECTED
        with pytest.raises(ReviewError, match=r"is decided already.*rejected by ann"):
            late[0].result(timeout=20)
        sa.event.remove(first._database.engine, "commit", let_the_other_come)
        review = second.review(name)
        assert (review.status, review.reviewer, review.final_answer) == (ReviewStatus.REJECTED, "ann", None)
        assert [event.who for event in second.history(name)] == ["guard", "ann"]


def test_threads_share_a_store(store: Store) -> None:
    def work(number: int) -> str:
        return store.add(make_escalation(number % 40)).id

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(work, range(120)))
    assert len(set(ids)) == 40 == store.count()
    won, lost, lock = [], [], threading.Lock()

    def decide(number: int) -> None:
        try:
            review = store.reject(ids[0], reviewer=str(number))
        except ReviewError as error:
            with lock:
                lost.append(error)
        else:
            with lock:
                won.append(review)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(decide, range(16)))
    assert (len(won), len(lost)) == (1, 15)


# -- labels ------------------------------------------------------------------------------------


def test_labels_for_calibration(store: Store, clock: MovedClock) -> None:
    ids = [store.add(make_escalation(n)).id for n in range(4)]
    text = store.add(make_escalation(4, prompt=Prompt.raw("2+2="), route=None)).id
    silent = store.add(make_escalation(5, answer=None)).id
    store.edit(ids[1], answer="Paris", draft="wrong", reviewer="ann", note="the capital")
    store.approve(ids[0], reviewer="ann")
    store.reject(ids[2], reviewer="ann")
    store.reject(text, reviewer="ann")
    store.edit(silent, answer="Rome", reviewer="ann")
    assert list(store.labelled()) == []  # all of it can still be undone
    clock.move(UNDO_S)
    rows = list(store.labelled(page=2))
    assert [(row["id"], row["label"]) for row in rows] == [(ids[1], 1), (ids[0], 0), (ids[2], 1), (text, 1)]
    assert rows[0] == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Question 1?"},
        ],
        "response": make_escalation(1).answer,
        "label": 1,
        "id": ids[1],
        "route": "medical",
        "model": "tiny",
        "policy": "balanced",
        "verdict": "edited",
        "better": "Paris",
        "note": "the capital",
        "reviewer": "ann",
        "created_at": "2026-01-01T00:00:01.000000+00:00",
        "kind": "escalation",
        "weight": 1.0,
    }
    assert {key: rows[3][key] for key in ("prompt", "raw", "control_tokens")} == {
        "prompt": "2+2=",
        "raw": True,
        "control_tokens": True,
    }
    assert [row["id"] for row in store.labelled(route="medical")] == [ids[1], ids[0], ids[2]]


def test_a_right_answer_that_was_only_shortened_is_exported_as_right(store: Store, clock: MovedClock) -> None:
    for number, draft in enumerate(("right", "wrong")):
        store.edit(store.add(make_escalation(number)).id, answer="Paris", draft=draft, reviewer="ann")  # type: ignore[arg-type]
    clock.move(UNDO_S)
    assert [(row["label"], row["verdict"]) for row in store.labelled()] == [(0, "edited"), (1, "edited")]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt.chat("a\u2028b\x85c\rd\ne\u202e", system="Be brief."),
        Prompt.chat([{"role": "user", "content": "a", "name": "ann"}, {"role": "tool", "content": "5", "name": "f"}]),
        Prompt.chat("q", tools=[{"type": "function"}], template_options={"n": [1, {"a": None}]}),
        Prompt.raw("Question: x\nAnswer:"),
        Prompt.raw("Question: x\nAnswer:", plain=True),
    ],
    ids=["separators", "keys", "tools", "raw", "raw and plain"],
)
def test_what_calibration_reads_of_an_exported_case_is_the_prompt_that_the_model_had(
    store: Store, clock: MovedClock, prompt: Prompt, tmp_path: Path
) -> None:
    store.approve(store.add(make_escalation(prompt=prompt)).id, reviewer="ann")
    clock.move(UNDO_S)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in store.labelled()]
    (tmp_path / "labels.jsonl").write_text("".join(lines), "utf-8")
    (row,) = read_rows(tmp_path / "labels.jsonl").rows
    assert isinstance(row, LabelledResponse)
    assert (row.prompt, row.response, row.wrong) == (prompt, make_escalation().answer, False)


# -- durability --------------------------------------------------------------------------------

_ADD_FOR_EVER = """
import itertools, sys
sys.path.insert(0, sys.argv[2])
from made_cases import make_escalation
from guard.review.handlers import ReviewQueue, escalate
from guard.review.store import Store

handlers = {"review": ReviewQueue(Store.open(sys.argv[1]))}
for number in itertools.count(int(sys.argv[3])):
    escalate(make_escalation(number), handlers=handlers, to=["review"])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_killing_the_process_loses_no_accepted_case(path: Path) -> None:
    rng = random.Random(20260101)
    accepted: list[int] = []
    for run in range(20):
        arguments = [
            sys.executable,
            "-c",
            _ADD_FOR_EVER,
            str(path),
            str(Path(__file__).parents[1] / "support"),
            str(run * 10**6),
        ]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        # From the very first write, the migration, to well within a burst of cases.
        killer = threading.Timer(rng.uniform(0, 0.15) if run % 4 else rng.uniform(0.3, 1.0), process.kill)
        lines = []
        if run % 4:
            lines.append(process.stdout.readline())
        killer.start()
        lines += process.stdout.readlines()
        assert process.wait() == -signal.SIGKILL
        accepted += [int(line) for line in lines if line.endswith("\n")]
    assert len(accepted) >= 15, "three runs of four wait for their first case"
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]
    with Store.open(path) as store:
        for number in accepted:
            review = store.review(f"decision-{number}")
            case = make_escalation(number)
            assert (review.question, review.answer, review.prompt) == (case.question, case.answer, case.prompt)
            assert [attempt["answer"] for attempt in review.attempts] == [None, case.answer]
            assert [event.what for event in store.history(review.id)] == ["added"]
        # Killed between the commit and the print at most one case more a run.
        assert len(accepted) <= store.count() <= len(accepted) + 20


def test_a_commit_is_synced(path: Path) -> None:
    with Store.open(path) as store, store._database.write() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


APPROVED = "status = 'approved', reviewer = 'ann', draft = 'right', final_answer = answer, decided_at = '2026-01-02'"
FORGERIES = [
    "UPDATE review_events SET who = 'x'",
    "DELETE FROM review_events",
    f"UPDATE reviews SET {APPROVED} WHERE decision_id = 'decision-0'",
    "UPDATE reviews SET final_answer = 'Lyon' WHERE decision_id = 'decision-1'",
    "UPDATE reviews SET status = 'rejected' WHERE decision_id = 'decision-1'",
    "UPDATE reviews SET draft = 'wrong' WHERE decision_id = 'decision-1'",
    "UPDATE reviews SET status = 'pending', decided_at = NULL WHERE decision_id = 'decision-1'",
    "UPDATE reviews SET answer = 'Lyon' WHERE decision_id = 'decision-0'",
    "UPDATE reviews SET question = 'Why?' WHERE decision_id = 'decision-1'",
    "UPDATE reviews SET id = 'zzzzzz' WHERE decision_id = 'decision-0'",
    "DELETE FROM reviews",
    "UPDATE review_repeats SET metadata = '{}'",
    "DELETE FROM review_repeats",
]
TRUNCATIONS = ["TRUNCATE review_events", "TRUNCATE review_repeats", "TRUNCATE reviews CASCADE"]
REPLACEMENTS = [
    "REPLACE INTO review_events (number, review_id, at, who, what) SELECT number, review_id, at, 'x', what "
    "FROM review_events",
    "REPLACE INTO review_events (review_id, at, who, what) SELECT review_id, at, 'x', what FROM review_events "
    "WHERE what <> 'added'",
    "REPLACE INTO reviews (id, decision_id, created_at, policy, model, question, prompt, rule, reason, attempts, "
    "metadata, status) SELECT id, decision_id, 'x', 'x', 'x', 'x', prompt, 'x', 'x', attempts, metadata, 'pending' "
    "FROM reviews",
    "REPLACE INTO reviews (id, decision_id, created_at, policy, model, question, prompt, rule, reason, attempts, "
    "metadata, status, fingerprint) SELECT 'x', 'x', 'x', 'x', 'x', 'x', prompt, 'x', 'x', attempts, metadata, "
    "'pending', fingerprint FROM reviews WHERE status = 'pending'",
    "REPLACE INTO reviews (rowid, id, decision_id, created_at, policy, model, question, prompt, rule, reason, "
    "attempts, metadata, status) SELECT rowid, 'x', 'x', 'x', 'x', 'x', 'x', prompt, 'x', 'x', attempts, metadata, "
    "'pending' FROM reviews WHERE status = 'approved'",
    "REPLACE INTO review_repeats (rowid, decision_id, review_id, created_at, rule, reason, attempts, metadata) "
    "SELECT rowid, 'x', review_id, 'x', 'x', 'x', attempts, metadata FROM review_repeats",
    "REPLACE INTO review_repeats SELECT decision_id, review_id, 'x', p_wrong, 'x', reason, attempts, metadata "
    "FROM review_repeats",
    "UPDATE OR REPLACE reviews SET rowid = (SELECT rowid FROM reviews WHERE status = 'approved') "
    "WHERE status = 'pending'",
]


@pytest.fixture
def kept(store: Store) -> list[Any]:
    """One case that waits and has a repeat, and one that is decided; gives all that is known of them."""
    store.add(make_escalation(0))
    store.add(make_escalation(0, decision_id="again"))
    store.add(make_escalation(1))
    store.approve("decision-1", reviewer="bob")
    return known(store)


def known(store: Store) -> list[Any]:
    reviews = store.reviews()
    return [(review, store.history(review.id), store.repeats(review.id)) for review in reviews]


@pytest.mark.parametrize("statement", FORGERIES)
def test_what_was_decided_and_by_whom_cannot_be_rewritten(store: Store, kept: list[Any], statement: str) -> None:
    refused = pytest.raises(StoreError, match=r"append-only|changed|audit trail|foreign key")
    with refused, store._database.write() as connection:
        connection.exec_driver_sql(statement)
    assert known(store) == kept


def test_the_trail_cannot_be_emptied_or_replaced(store: Store, kept: list[Any]) -> None:
    for statement in TRUNCATIONS if "://" in store.place else REPLACEMENTS:
        with contextlib.suppress(StoreError), store._database.write() as connection:
            connection.exec_driver_sql(statement)
        assert known(store) == kept, statement


@pytest.mark.parametrize("statement", REPLACEMENTS)
def test_another_program_cannot_replace_a_case(path: Path, statement: str) -> None:
    """Without foreign keys, which only guard's own connections switch on, nothing but the triggers holds a row."""
    with Store.open(path) as store:
        store.add(make_escalation(0))
        store.add(make_escalation(0, decision_id="again"))
        store.approve(store.add(make_escalation(1)).id, reviewer="bob")
        kept = known(store)
        with contextlib.closing(sqlite3.connect(path)) as other, contextlib.suppress(sqlite3.Error), other:
            other.execute(statement)
        assert known(store) == kept


def test_a_case_cannot_come_in_decided(store: Store, kept: list[Any]) -> None:
    columns = "decision_id, created_at, policy, model, question, prompt, rule, reason, attempts, metadata, decided_at"
    statement = f"INSERT INTO reviews (id, {columns}, status) SELECT 'zzzzzz', 'new', {columns[13:]}, 'approved' "
    with pytest.raises(StoreError, match="begins pending"), store._database.write() as connection:
        connection.exec_driver_sql(f"{statement} FROM reviews WHERE status = 'approved'")
    assert known(store) == kept


@pytest.mark.parametrize(
    "forgery",
    [
        f"UPDATE reviews SET {APPROVED} WHERE decision_id = 'decision-0'",
        "UPDATE reviews SET reviewer = 'ann' WHERE decision_id = 'decision-1'",
        "UPDATE reviews SET draft = 'wrong' WHERE decision_id = 'decision-1'",
        "UPDATE reviews SET status = 'pending', decided_at = NULL WHERE decision_id = 'decision-1'",
    ],
)
def test_a_forged_verdict_is_found_when_it_is_read(store: Store, kept: list[Any], forgery: str) -> None:
    """Whoever owns the database can drop the triggers; a verdict that is not in the trail is then refused."""
    assert kept
    with store._database.write() as connection:
        on = " ON reviews" if "://" in store.place else ""
        connection.exec_driver_sql(f"DROP TRIGGER reviews_keep_verdicts{on}")
        connection.exec_driver_sql(forgery)
    for read in (lambda: store.reviews(), lambda: list(store.labelled()), lambda: known(store)):
        with pytest.raises(StoreError, match="not the one in its audit trail"):
            read()


def test_the_trail_has_the_whole_verdict(store: Store) -> None:
    name = store.add(make_escalation()).id
    store.edit(name, answer="Paris", draft="right", reviewer="ann", note="shorter")
    verdict = store.history(name)[-1]
    assert (verdict.what, verdict.who, verdict.draft, verdict.final_answer, verdict.note) == (
        *("edited", "ann", "right", "Paris", "shorter"),
    )


# -- identical cases ---------------------------------------------------------------------------


def test_an_identical_case_is_counted_and_kept_on_the_one_that_waits(store: Store) -> None:
    first = store.add(make_escalation(0))
    for number in range(3):
        again = make_escalation(0, decision_id=f"again-{number}", metadata={"customer": number + 7})
        assert store.add(again).id == first.id
        assert store.add(again).repeats == number + 1  # idempotent by its decision too
    assert store.count() == 1
    assert store.review("again-1").id == first.id
    assert [(repeat.decision_id, repeat.metadata) for repeat in store.repeats(first.id)] == [
        (f"again-{number}", {"customer": number + 7}) for number in range(3)
    ]
    decided = store.approve("again-2", reviewer="ann")
    assert (decided.id, decided.repeats) == (first.id, 3)


@pytest.mark.parametrize(
    "other",
    [
        {"answer": "Lyon"},
        {"prompt": Prompt.chat("Question 0?", system="Be long.")},
        {"policy": "strict"},
        {"model": "large"},
        {"route": None},
        {"answer": None},
    ],
)
def test_a_case_that_differs_in_anything_that_matters_is_one_of_its_own(store: Store, other: dict[str, Any]) -> None:
    store.add(make_escalation(0))
    assert store.add(make_escalation(0, decision_id="other", **other)).decision_id == "other"
    assert store.count(CaseFilter(status="pending")) == 2


def test_an_identical_case_waits_again_once_the_first_is_decided(store: Store, clock: MovedClock) -> None:
    first = store.add(make_escalation(0))
    store.reject(first.id, reviewer="ann")
    clock.move(UNDO_S)
    again = store.add(make_escalation(0, decision_id="again"))
    assert (again.status, again.id != first.id) == (ReviewStatus.PENDING, True)
    assert [len(store.repeats(name)) for name in (first.id, again.id)] == [0, 0]


def test_identical_cases_that_come_in_at_once_are_one(store: Store) -> None:
    cases = [make_escalation(0, decision_id=f"d{number}") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        ids = {review.id for review in pool.map(store.add, cases)}
    assert len(ids) == 1 == store.count()
    (one,) = store.reviews()
    assert {one.decision_id, *(repeat.decision_id for repeat in store.repeats(one.id))} == {f"d{n}" for n in range(24)}


# -- a decision needs the whole id -------------------------------------------------------------


def test_a_part_of_an_id_decides_nothing(store: Store) -> None:
    review = store.add(make_escalation())
    for name in (review.id[:1], review.id[:5], "decision"):
        for decide in (
            lambda name: store.approve(name, reviewer="a"),
            lambda name: store.reject(name, reviewer="a"),
            lambda name: store.edit(name, answer="x", draft="wrong", reviewer="a"),
        ):
            with pytest.raises(ReviewError):
                decide(name)
    assert store.review(review.id) == review


# -- forking -----------------------------------------------------------------------------------


def _in_a_fork(work: Callable[[], object]) -> int:
    """Do something in a forked child; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_store_that_was_used_before_a_fork_serves_parent_and_children(store: Store) -> None:
    store.add(make_escalation(0))
    for number in (1, 2):
        assert _in_a_fork(lambda number=number: store.add(make_escalation(number))) == 0
        assert store.count() == number + 1  # the child has closed nothing of ours
    assert store.approve("decision-2", reviewer="ann").status is ReviewStatus.APPROVED


def test_a_fork_in_the_middle_of_a_transaction_harms_nothing(store: Store) -> None:
    with store._database.read() as connection:
        query = sa.select(sa.func.count()).select_from(METADATA.tables["reviews"])
        assert connection.scalar(query) == 0
        assert _in_a_fork(lambda: store.add(make_escalation(1))) == 0
        assert connection.scalar(query) in (0, 1)
    assert store.count() == 1


def test_a_fork_while_a_thread_writes_leaves_the_child_its_own_turn(path: Path) -> None:
    with Store.open(path) as store, store._database._turn:
        assert _in_a_fork(lambda: store.add(make_escalation(1))) == 0


# -- opening and migrating ---------------------------------------------------------------------


def _open_and_add(url: str, number: int, barrier: Any) -> None:
    barrier.wait(timeout=30)
    with Store.open(url) as store:
        store.add(make_escalation(number))


def test_processes_open_a_fresh_database_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    openers = [context.Process(target=_open_and_add, args=(url, n, barrier)) for n in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(timeout=60)
    assert [opener.exitcode for opener in openers] == [0, 0, 0]
    with Store.open(url) as store:
        assert store.count() == 3


def test_threads_open_a_fresh_database_at_once(url: str) -> None:
    def work(number: int) -> None:
        with Store.open(url) as store:
            store.add(make_escalation(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    with Store.open(url) as store:
        assert store.count() == 8


def test_opening_waits_for_another_process_that_sets_the_file_up(path: Path) -> None:
    Store.open(path).close()
    raw(path, "PRAGMA journal_mode = DELETE")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        Store.open(path, timeout_s=0.1)
    threading.Timer(0.3, other.execute, ["ROLLBACK"]).start()
    with Store.open(path) as store:
        assert store.count() == 0
    other.close()


def test_a_database_of_revision_1_is_brought_up_to_date(url: str) -> None:
    opened = database._open_sqlite if "://" not in url else None
    parsed = database._parse(url)
    old = opened(parsed, create=True, timeout_s=5) if opened else database._open_postgresql(parsed, timeout_s=5)
    with old.write() as connection:
        migrations.upgrade(connection, to="0001")
        assert migrations.current(connection) == "0001"
        for number, status in enumerate(["pending", "rejected"]):
            decided = {"reviewer": "ann", "decided_at": "2025-02-01"} if status == "rejected" else {}
            row = {
                "id": f"k0000{number}", "decision_id": f"d{number}", "created_at": f"2025-01-0{number + 1}",
                "policy": "p", "model": "m", "question": "q", "answer": "a", "rule": "r", "reason": "x",
                "prompt": {"messages": None, "text": "q", "tools": []}, "attempts": [], "metadata": {},
                "status": status, **decided,
            }  # fmt: skip
            connection.execute(METADATA.tables["reviews"].insert().values(row))
    old.close()
    with Store.open(url) as store:
        assert [review.id for review in store.reviews()] == ["k00000", "k00001"]
        assert [(event.who, event.what) for event in store.history("k00000")] == [("guard", "added")]
        assert [(event.at, event.who, event.what) for event in store.history("k00001")] == [
            ("2025-01-02", "guard", "added"),
            ("2025-02-01", "ann", "rejected"),
        ]
        assert store.approve("k00000", reviewer="bob").status is ReviewStatus.APPROVED


def _filled_with_every_kind(store: Store) -> None:
    """Cases that wait, are claimed, skipped, late, decided, undone, and have one opinion or two."""
    late = ReviewTerms(within_s=1.0)
    for number in range(7):
        terms = ReviewTerms(reviews=2) if number > 4 else late if number == 4 else ReviewTerms()
        store.add(make_escalation(number, terms=terms))
    store.add(make_escalation(0, decision_id="again"))
    store.claim("decision-0", reviewer="ann")
    store.skip("decision-1", reviewer="ann")
    store.approve("decision-2", reviewer="ann", note="fine")
    store.approve("decision-3", reviewer="ann")
    store.undo("decision-3", reviewer="ann")
    store.mark_late()
    store.add(make_escalation(4, decision_id="after the late one"))
    store.approve("decision-5", reviewer="ann")
    store.approve("decision-6", reviewer="ann")
    store.approve("decision-6", reviewer="bob")


def _kept_by_0004(store: Store) -> dict[str, tuple[Any, ...]]:
    names = ("status", "question", "answer", "prompt", "draft", "final_answer", "reviewer", "note", "decided_at")
    return {review.decision_id: tuple(getattr(review, name) for name in names) for review in store.reviews()}


def test_a_filled_store_goes_back_to_0004_and_forwards_again(store: Store) -> None:
    _filled_with_every_kind(store)
    before = _kept_by_0004(store)
    with store._database.write() as connection:
        migrations.downgrade(connection, to="0004")
        assert migrations.current(connection) == "0004"
        kinds = set(connection.exec_driver_sql("SELECT what FROM review_events").scalars())
        assert kinds == {"added", "approved"}
    for statement in ("DELETE FROM review_events", "UPDATE reviews SET question = 'x'"):
        with pytest.raises(StoreError, match=r"append-only|changed"), store._database.write() as connection:
            connection.exec_driver_sql(statement)
    with store._database.write() as connection:
        migrations.upgrade(connection)
    assert _kept_by_0004(store) == before
    assert store.review("again").id == store.review("decision-0").id
    assert [review.decision_id for review in store.page(CaseFilter(text="question 3")).reviews] == ["decision-3"]
    assert store.claim("decision-3", reviewer="ann").claimed_by == "ann"
    assert store.approve("decision-3", reviewer="ann").status is ReviewStatus.APPROVED
    store.add(make_escalation(9))
    assert store.count() == len(before) + 1


def test_migrations_tables_and_head_agree(store: Store) -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_heads() == [migrations.HEAD]
    with store._database.read() as connection:
        options = {
            "version_table": migrations.VERSION_TABLE,
            "compare_type": True,
            # The index of words is each database's own, and SQLAlchemy knows neither.
            "include_name": lambda name, kind, _: not str(name).startswith("review_words"),
            "include_object": lambda _, name, *rest: name != "review_words",
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []


def test_a_failed_migration_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = migrations.upgrade

    def fail_after_the_first(connection: sa.Connection) -> None:
        upgrade(connection, to="0001")
        connection.exec_driver_sql("SELECT * FROM no_such_table")

    monkeypatch.setattr(migrations, "upgrade", fail_after_the_first)
    with pytest.raises(StoreError, match="no_such_table"):
        Store.open(path)
    assert raw(path, "SELECT name FROM sqlite_master") == []
    monkeypatch.undo()
    Store.open(path).close()


def test_opening_an_up_to_date_store_needs_no_alembic(path: Path) -> None:
    Store.open(path).close()
    code = "import sys; from guard.review.store import Store; Store.open(sys.argv[1]); print('alembic' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_newer_guards_database_is_refused(store: Store, url: str) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE guard_version SET version_num = '0099'")
    with pytest.raises(StoreError, match=r"schema 0099.*up to.*newer guard.*Upgrade guard"):
        Store.open(url)


def test_a_schema_that_no_guard_has_is_refused(path: Path) -> None:
    Store.open(path).close()
    raw(path, "UPDATE guard_version SET version_num = 'x'")
    with pytest.raises(StoreError, match="schema 'x', which no guard has"):
        Store.open(path)


@pytest.mark.parametrize("loss", ["DELETE FROM guard_version", "DROP TABLE guard_version"])
def test_a_store_without_its_version_says_so(store: Store, url: str, loss: str) -> None:
    store.add(make_escalation())
    with store._database.write() as connection:
        connection.exec_driver_sql(loss)
    store.close()
    with pytest.raises(StoreError, match=r"version of its schema is missing.*backup"):
        Store.open(url)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can enter; pytest's own they cannot."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def read_only(path: Path, *, folder: bool) -> Iterator[None]:
    """A file, or its folder too, is not ours to write; root is somebody else meanwhile."""
    path.chmod(0o444)
    path.parent.chmod(0o555 if folder else 0o777)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)
        path.parent.chmod(0o755)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("in_use", [True, False])
def test_a_read_only_store_can_be_read(shared_folder: Path, folder: bool, in_use: bool) -> None:
    path = shared_folder / "reviews.db"
    with Store.open(path) as writer:
        for number in range(3):
            writer.add(make_escalation(number))
        writer.approve("decision-0", reviewer="ann")
        if in_use:
            for file in shared_folder.iterdir():
                file.chmod(0o444)
        else:
            writer.close()
        with read_only(path, folder=folder), Store.open(path) as store:
            assert [review.decision_id for review in store.reviews()] == [f"decision-{n}" for n in range(3)]
            MovedClock(store).move(10**9)
            assert [row["label"] for row in store.labelled()] == [0]
            assert len(store.history("decision-0")) == 2
            for change in (
                lambda: store.add(make_escalation(5)),
                lambda: store.approve("decision-1", reviewer="x"),
            ):
                with pytest.raises(StoreError, match="it is read-only"):
                    change()
            assert store.count() == 3


@pytest.mark.parametrize("more", ["?mode=ro", "?mode=ro&uri=true"])
def test_a_url_can_ask_for_reading_only(tmp_path: Path, more: str) -> None:
    path = tmp_path / "reviews.db"
    url = f"sqlite:///{path}{more}"
    with pytest.raises(StoreError, match="There is no review store"):
        Store.open(url)
    with Store.open(path) as writer:
        writer.add(make_escalation())
    with Store.open(url) as store:
        assert store.count() == 1
        with pytest.raises(StoreError, match="it is read-only"):
            store.approve("decision-0", reviewer="ann")


@pytest.mark.parametrize(
    "more", ["?mode=rw", "?immutable=1", "?mode=ro&timeout=5", "?mode=ro&mode=rw", "?uri=true", "?mode=RO"]
)
def test_what_nobody_would_read_of_an_sqlite_url_is_refused(tmp_path: Path, more: str) -> None:
    with pytest.raises(StoreError, match="says more than a file"):
        Store.open(f"sqlite:///{tmp_path}/reviews.db{more}")
    with pytest.raises(StoreError, match="says more than a file"):
        Store.open(f"sqlite://somewhere/{tmp_path}/reviews.db")
    assert not [*tmp_path.iterdir()]


def test_a_read_only_store_of_an_older_schema_is_refused(shared_folder: Path) -> None:
    path = shared_folder / "reviews.db"
    old = database._open_sqlite(database._parse(path), create=True, timeout_s=5)
    with old.write() as connection:
        migrations.upgrade(connection, to="0002")
    old.close()
    with read_only(path, folder=True), pytest.raises(StoreError, match=r"schema 0002.*writable"):
        Store.open(path)
    Store.open(path).close()


def test_the_file_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new 100%" / "däta" / "reviews.db"
    with Store.open(path) as store:
        store.add(make_escalation())
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert store.place == str(path)


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARD_STORE", raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / name)
    with Store.open() as store:
        assert store.place == str(tmp_path / "guard" / "reviews.db")
    monkeypatch.setenv("GUARD_STORE", f"sqlite:///{tmp_path}/named.db")
    with Store.open() as store:
        assert store.place == str(tmp_path / "named.db")


# -- what can go wrong -------------------------------------------------------------------------


def test_a_missing_file_that_must_not_be_made(path: Path) -> None:
    with pytest.raises(StoreError, match="There is no review store"):
        Store.open(path, create=False)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"no database at all, but some text " * 100, b"\0" * 5000])
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not an SQLite database"):
        Store.open(path)
    assert path.read_bytes() == content


def test_a_damaged_database(path: Path) -> None:
    with Store.open(path) as store:
        for number in range(50):
            store.add(make_escalation(number))
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"), Store.open(path) as store:
        store.reviews()


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """A store's file with one review."""
    path = tmp_path / "whole.db"
    with Store.open(path) as store:
        store.add(make_escalation())
    return path.read_bytes()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_after_any_damage_what_is_accepted_can_be_read(path: Path, whole: bytes, data: st.DataObject) -> None:
    for leftover in path.parent.glob("reviews.db*"):
        leftover.unlink()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(GuardError), Store.open(path, timeout_s=0.2) as store:
        store.add(make_escalation(1))
        found = {review.decision_id: review.answer for review in store.reviews(limit=10)}
        assert found[make_escalation(1).decision_id] == make_escalation(1).answer


@pytest.mark.parametrize(
    ("column", "value"), [("prompt", "{"), ("prompt", "[]"), ("attempts", "3"), ("metadata", 5), ("prompt", b"\x80")]
)
def test_a_damaged_value(path: Path, column: str, value: Any) -> None:
    with Store.open(path) as store:
        store.add(make_escalation())
        raw(path, "DROP TRIGGER reviews_keep_verdicts")
        raw(path, f"UPDATE reviews SET {column} = ?", value)
        with pytest.raises(StoreError, match="damaged"):
            store.reviews()


def test_another_programs_database_is_left_alone(path: Path) -> None:
    raw(path, "CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_path_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/a\0b", "~no such user/reviews.db"):
        with pytest.raises(StoreError, match="path cannot be used"):
            Store.open(path)


@pytest.mark.parametrize("name", ["", "  ", "\t", "\u200b", "folder/ ", "sqlite:///", "sqlite:/// "])
def test_a_blank_path_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that nobody sees in a folder, such as of GUARD_STORE=' ', would be lost, or committed by mistake."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="is blank"):
        Store.open(name)
    assert not list(tmp_path.iterdir())


def test_a_blank_default_store_is_refused_and_an_empty_one_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("GUARD_STORE", "  ")
    with pytest.raises(StoreError, match="is blank"):
        Store.open()
    monkeypatch.setenv("GUARD_STORE", "")
    Store.open().close()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path)


def test_a_file_in_place_of_a_folder(path: Path) -> None:
    path.write_text("")
    with pytest.raises(StoreError, match="a file, not a folder"):
        Store.open(path / "reviews.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    with pytest.raises(StoreError, match=r"read-only|cannot be opened"):
        Store.open(path)


def test_a_read_only_connection(path: Path) -> None:
    with Store.open(path) as store:
        sa.event.listen(store._database.engine, "begin", lambda c: c.exec_driver_sql("PRAGMA query_only = ON"))
        with pytest.raises(StoreError, match=r"read-only.*writable"):
            store.add(make_escalation())


def test_a_locked_database(path: Path) -> None:
    with Store.open(path, timeout_s=0.2) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.add(make_escalation())
        assert store.reviews() == []  # readers are not kept out
        other.execute("ROLLBACK")
        other.close()
        assert store.add(make_escalation()).status is ReviewStatus.PENDING


def test_threads_wait_for_their_turn_to_write_without_a_connection(path: Path) -> None:
    with Store.open(path, timeout_s=0.2) as store, ThreadPoolExecutor(1) as pool:
        made: list[object] = []
        sa.event.listen(store._database.engine, "connect", lambda *seen: made.append(seen))
        with store._database.write(), pytest.raises(StoreError, match="locked"):
            pool.submit(store.add, make_escalation()).result()
        assert made == []
        assert pool.submit(store.add, make_escalation()).result().status is ReviewStatus.PENDING


@ON_POSTGRESQL
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_locked_postgresql_database(url: str) -> None:
    with Store.open(url, timeout_s=0.2) as store, Store.open(url) as other:
        name = store.add(make_escalation()).id
        with other._database.write() as connection:
            connection.exec_driver_sql("LOCK TABLE reviews IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreError, match="locked"):
                store.review(name)


def test_a_full_disk(path: Path) -> None:
    with Store.open(path) as store:
        store.add(make_escalation())
        used = raw(path, "PRAGMA page_count")[0][0]
        full = f"PRAGMA max_page_count = {used}"
        sa.event.listen(store._database.engine, "begin", lambda c: c.exec_driver_sql(full))
        with pytest.raises(StoreError, match="disk is full"):
            store.add(make_escalation(1, answer="x" * 100_000))
        assert store.count() == 1


@pytest.mark.parametrize(
    "url", ["sqlite://", ":memory:", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_memory_is_no_place_for_reviews(url: str) -> None:
    with pytest.raises(StoreError, match="outlive"):
        Store.open(url)


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite+aiosqlite:///x.db", "nonsense://x", "https://example.org"])
def test_databases_that_are_not_supported(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be kept in"):
        Store.open(url)


def test_a_url_that_cannot_be_read_does_not_show_the_password() -> None:
    with pytest.raises(StoreError, match="cannot be read") as caught:
        Store.open("postgresql://ann:hunter2@host:port/reviews")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_postgresql_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [module for module in sys.modules if module.partition(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"psycopg is not installed.*guard\[postgresql\]"):
        Store.open("postgresql://localhost/reviews")


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="psycopg is not installed")
def test_a_postgresql_server_that_is_not_there() -> None:
    with pytest.raises(StoreError, match=r"ann:\*\*\*@127.0.0.1.*server runs") as caught:
        Store.open("postgresql://ann:hunter2@127.0.0.1:1/reviews", timeout_s=1)
    assert "hunter2" not in str(caught.value)


def test_errors_show_no_prompt(store: Store) -> None:
    secret = "the patient's name"
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE review_events")
    with pytest.raises(StoreError) as caught:
        store.add(make_escalation(question=secret, answer=secret))
    error: BaseException | None = caught.value
    while error:
        assert secret not in str(error)
        error = error.__cause__
