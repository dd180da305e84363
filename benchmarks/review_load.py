"""The review queue with a million cases: pages, search, claims, counts, the console, and fifty reviewers at once.

    python benchmarks/review_load.py [--store reviews.db | postgresql://...] [--cases 1000000] [--fill-seconds 900]

Four of five cases are decided. Each figure is of 200 calls with varied arguments, by one caller on a warm file. The
store is filled by plain inserts of ten thousand cases and of copies with other ids, times and a word of their own,
which is not measured; a store that is not full is filled further (``--fill-only`` ends there). Milliseconds by the
clock, and of the processor's time in this process, which on SQLite is all of it; the last line says whether any case
was given to two of the fifty reviewers (in as many threads). The load is the number of processes that wanted a core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa
from starlette.testclient import TestClient

from guard.access import Access, Grant, Role
from guard.console import create_app
from guard.records import Escalation, Prompt
from guard.review.case_states import case_states
from guard.review.migrations.tables import REVIEWS
from guard.review.records import text_of_time, to_row
from guard.review.similar import find_similar
from guard.review.store import ALPHABET, CaseFilter, Store
from guard.review_terms import PRIORITIES, ReviewTerms

CALLS, REVIEWERS, CHUNK = 200, 50, 10_000
ROUTES = ("medical", "law", "public service", "general")
_WORDS = (
    *("answer", "dose", "court", "river", "month", "notice", "doctor", "permit", "school"),
    *("train", "house", "water", "paper", "money", "light", "garden"),
)
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def row(number: int) -> dict[str, Any]:
    """One case; each has a word of its own, one of a thousandth, one of a hundredth, and common ones."""
    draw = random.Random(number)
    words = draw.choices(_WORDS, k=8)
    question = f"Question {number}: {' '.join(words)} topic{number % 1000} field{number % 100} unique{number}?"
    case = Escalation(
        decision_id=f"decision-{number}",
        question=question,
        prompt=Prompt.chat(question, system="Be brief."),
        answer=f"It is {' '.join(draw.choices(_WORDS, k=12))}.",
        p_wrong=draw.random(),
        rule="rules[1]",
        reason="too likely wrong",
        route=ROUTES[number % len(ROUTES)],
        policy="balanced",
        model="tiny",
        attempts=(),
        metadata={"customer": number},
        created_at=text_of_time(_BEGIN + timedelta(seconds=10 * number)),
        terms=ReviewTerms(within_s=10.0**9 + draw.randrange(10**6), priority=draw.choice(PRIORITIES)),
    )
    name, left = "", number * 7_919 % len(ALPHABET) ** 6
    for _ in range(6):
        left, digit = divmod(left, len(ALPHABET))
        name += ALPHABET[digit]
    return {**to_row(case), "id": name, "number": number + 1}


def fill(store: Store, cases: int, seconds: float) -> int:
    """Add cases up to a number, and decide four of five; return how many there are when the time is up."""
    began = time.monotonic()
    _hurry(store)
    with store._database.read() as connection:
        begin = int(connection.scalar(sa.select(sa.func.max(REVIEWS.c.number))) or 0)
    while begin < cases and time.monotonic() < began + seconds:
        with store._database.write() as connection:
            if begin:
                connection.exec_driver_sql(copied(begin))
            else:
                connection.execute(sa.insert(REVIEWS), [row(number) for number in range(CHUNK)])
            decide(connection, begin)
        begin += CHUNK
    with store._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if connection.dialect.name == "sqlite" else "VACUUM ANALYZE")
    store._database.engine.dispose()
    return begin


def _hurry(store: Store) -> None:
    """Fill an SQLite file by a connection that keeps it in memory and does not wait for the disk."""
    if store._database.engine.dialect.name == "sqlite":
        raw = store._database.engine.raw_connection()
        raw.cursor().execute("PRAGMA cache_size = -4000000")
        raw.cursor().execute("PRAGMA synchronous = OFF")
        raw.close()


def copied(shift: int) -> str:
    """Return the statement that adds the first cases once more, as others: with ids, times and a word of their own."""
    number = f"(number - 1 + {shift})"
    left = f"({number} * 7919)"
    digits = (f"substr('{ALPHABET}', CAST((({left} >> {5 * place}) & 31) + 1 AS integer), 1)" for place in range(6))
    day = (_BEGIN + timedelta(days=shift // CHUNK)).date()
    values = {
        "id": " || ".join(digits),
        "decision_id": f"'decision-' || {number}",
        "created_at": f"'{day}' || substr(created_at, 11)",
        "number": f"number + {shift}",
        "question": f"replace(question, 'unique' || (number - 1) || '?', 'unique' || {number} || '?')",
        **dict.fromkeys(("fingerprint", "final_answer", "reviewer", "decided_at", "draft", "final_at"), "NULL"),
        "status": "'pending'",
    }
    names = REVIEWS.c.keys()
    columns = ", ".join(values.get(name, name) for name in names)
    return f"INSERT INTO reviews ({', '.join(names)}) SELECT {columns} FROM reviews WHERE number <= {CHUNK}"


def decide(connection: sa.Connection, begin: int) -> None:
    """Give the newest cases verdicts, past guard: one statement for all."""
    some = f"FROM reviews WHERE number > {begin} AND mod(number, 5) <> 0"
    connection.exec_driver_sql(
        "INSERT INTO review_events (review_id, at, who, what, draft, final_answer) "
        f"SELECT id, created_at, 'ann', 'approved', 'right', answer {some}"
    )
    connection.exec_driver_sql(
        "UPDATE reviews SET status = 'approved', reviewer = 'ann', draft = 'right', final_answer = answer, "
        f"decided_at = created_at, final_at = created_at {some.removeprefix('FROM reviews')}"
    )


def calls(store: Store, cases: int) -> Iterator[tuple[str, Callable[[int], object]]]:
    """What reviewers do, by name; each takes the number of the call."""
    pending, draw = CaseFilter(status="pending"), random.Random(0)
    middle = store.page(order="newest", limit=1000)
    for _ in range(5):
        middle = store.page(order="newest", after=middle.after, limit=1000)
    yield "page: due first", lambda _: store.page(pending)
    yield "page: most doubtful first", lambda _: store.page(pending, order="doubtful")
    yield "page: everything, after 6,000", lambda _: store.page(order="newest", after=middle.after)
    yield "page: decided, newest first", lambda _: store.page(CaseFilter(status="decided"), order="decided")
    yield (
        "page: route and priority",
        lambda number: store.page(CaseFilter(status="pending", route=ROUTES[number % 4], priority="high")),
    )
    yield "page: for you", lambda number: store.page(CaseFilter(offered=True, viewer=f"person-{number}"))
    yield "search: a word of one case", lambda _: store.page(CaseFilter(text=f"unique{draw.randrange(cases)}"))
    yield "search: a word of a thousandth", lambda _: store.page(CaseFilter(text=f"topic{draw.randrange(1000)}"))
    yield (
        "search: a word of a hundredth, waiting",
        lambda _: store.page(CaseFilter(status="pending", text=f"field{draw.randrange(100)}")),
    )
    yield (
        "search: common words, waiting",
        lambda _: store.page(CaseFilter(status="pending", text=" ".join(draw.choices(_WORDS, k=2)))),
    )
    yield "similar decided cases", lambda _: find_similar(store, store.review(f"decision-{draw.randrange(cases)}"))
    shown = [review.id for review in store.page(pending, limit=25).reviews]
    yield "who has the 25 cases of a page", lambda _: case_states(store, shown)
    yield "count: waiting", lambda _: store.count(pending)
    yield "one case by its decision", lambda _: store.review(f"decision-{draw.randrange(cases)}")
    yield "claim the next", lambda number: store.claim_next(reviewer=f"claimer-{number}")


def pages(store: Store, access: Access) -> Iterator[tuple[str, Callable[[int], object]]]:
    """What a reviewer's browser asks the console for, from the request to the last byte, without a network."""
    if "load" not in [user.id for user in access.users.all()]:
        access.users.add("load", grants=(Grant(Role.LEAD),))
    browser = TestClient(create_app(store, access), headers={"sec-fetch-site": "same-origin"})
    browser.cookies.set("guard", access.sessions.begin("load"))
    ids = [review.id for review in store.page(CaseFilter(status="pending"), order="oldest", limit=CALLS).reviews]

    def get(path: str) -> object:
        answer = browser.get(path)
        assert answer.status_code == 200, answer.text
        return answer

    yield "console: queue", lambda _: get("/queue")
    yield "console: queue, searched", lambda number: get(f"/queue?view=all&q=topic{number}")
    yield "console: an open queue asks", lambda _: get(f"/queue/live?since=2026-06-01&ids={','.join(ids[:25])}")
    yield "console: a case, claimed", lambda number: get(f"/case/{ids[number]}")


def timed(work: Callable[[int], object]) -> dict[str, float]:
    """Milliseconds of a call: the median and the 95th percentile, by the clock and of the processor's time."""
    times, worked = [], []
    for number in range(CALLS):
        began, busy = time.perf_counter(), time.process_time()
        work(number)
        worked.append(1000 * (time.process_time() - busy))
        times.append(1000 * (time.perf_counter() - began))
    found = {"": quantiles(times, n=20), "cpu ": quantiles(worked, n=20)}
    return {f"{name}{what}": cuts[at] for name, cuts in found.items() for what, at in (("median", 9), ("p95", 18))}


def claim_at_once(store: Store) -> dict[str, Any]:
    """Fifty reviewers, each of whom takes a case ten times and gives an opinion by deciding it."""
    times: list[float] = []

    def work(number: int) -> list[str]:
        got = []
        for _ in range(10):
            began = time.perf_counter()
            case = store.claim_next(reviewer=f"reviewer-{number}")
            times.append(1000 * (time.perf_counter() - began))
            assert case is not None
            got.append(case.id)
            store.approve(case.id, reviewer=f"reviewer-{number}")
        return got

    with ThreadPoolExecutor(REVIEWERS) as pool:
        got = [name for names in pool.map(work, range(REVIEWERS)) for name in names]
    cuts = quantiles(times, n=20)
    return {"claims": len(got), "twice": len(got) - len(set(got)), "median": cuts[9], "p95": cuts[18]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--store", help="an empty store, or one that this has filled; by default a file for now")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--fill-seconds", type=float, default=float("inf"), help="measure at what there is by then")
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        place = options.store or f"{stack.enter_context(TemporaryDirectory())}/reviews.db"
        store = stack.enter_context(Store.open(place, timeout_s=120))
        access = stack.enter_context(Access.open(place))
        began = time.perf_counter()
        cases = fill(store, options.cases, options.fill_seconds)
        print(f"{cases:,} cases, filled in {time.perf_counter() - began:.0f} s", flush=True)
        if options.fill_only:
            return
        figures: dict[str, Any] = {}
        load = [os.getloadavg()[0]]
        print(f"{'':40} {'median':>8} {'p95':>8} {'cpu':>8} {'cpu p95':>8}")
        for name, work in chain(calls(store, cases), pages(store, access)):
            figures[name] = timed(work)
            print(f"{name:40}", *(f"{value:8.1f}" for value in figures[name].values()), flush=True)
        figures["fifty at once"] = claim_at_once(store)
        load.append(os.getloadavg()[0])
        print("fifty at once:", figures["fifty at once"], "load at the beginning and the end:", load)
    if options.out:
        database = store._database.engine.dialect.name
        found = {"cases": cases, "database": database, "cores": os.cpu_count(), "load": load, "figures": figures}
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
