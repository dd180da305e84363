"""Kill tests of the review store: a process adds, claims, decides, undoes and notifies until SIGKILL ends it.

    python tests/support/killed_reviews.py [--kills 200] [--seed 0] [--store postgresql://...]

What it had said is done must be there afterwards, whole and once. ``tests/review/test_killed.py`` runs a sample.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from made_cases import make_escalation

from guard.errors import ReviewError
from guard.review import outbox, results, verdicts
from guard.review.delivery import Deliverer
from guard.review.endpoints import Endpoints
from guard.review.migrations.tables import OUTBOX
from guard.review.store import ReviewStatus, Store

#: Seconds in which a decision can be undone, so that verdicts are sent while the process lives.
_UNDO_S = 0.05

_VERDICTS = ("approved", "edited", "rejected")


def shorten_undo() -> None:
    """Let decisions be final almost at once, in this process."""
    verdicts.UNDO_S = outbox.UNDO_S = results.UNDO_S = _UNDO_S


def work(url: str, first: int, seed: int, received: Path) -> None:
    """Do what reviewers do, and say each thing once it is done, until somebody ends the process."""
    shorten_undo()
    draw, store = random.Random(seed), Store.open(url)
    worker = Deliverer(store, {"file": receiver(received)})
    number = first
    while True:
        store.add(make_escalation(number))
        print("added", number, flush=True)
        number += 1
        review_one(store, draw, f"person-{draw.randrange(3)}")
        if draw.random() < 0.5:
            worker.deliver()


def review_one(store: Store, draw: random.Random, who: str) -> bool:
    """Decide the next case if there is one, and say each thing once it is done; return whether there was one."""
    if (case := store.claim_next(reviewer=who)) is None:
        return False
    print("claimed", case.id, who, flush=True)
    decided = store.reject(case.id, reviewer=who) if draw.random() < 0.5 else store.approve(case.id, reviewer=who)
    print("decided", case.id, who, decided.status.value, flush=True)
    if draw.random() < 0.2:
        with contextlib.suppress(ReviewError):  # on a slow machine it is final by now
            store.undo(case.id, reviewer=who)
            print("undone", case.id, who, flush=True)
    return True


def receiver(file: Path) -> Any:
    """A receiver that keeps the ids of what it has got, on disk."""

    def receive(event: dict[str, Any]) -> None:
        with file.open("a") as opened:
            opened.write(f"{event['id']}\n")

    return receive


def run(url: str, folder: Path, *, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill a process again and again at random moments, then check everything; return what was counted.

    Raises:
        AssertionError: something was lost, or happened twice.
    """
    received = folder / "received.txt"
    received.touch()
    with Store.open(url) as store:
        Endpoints(store).add("file", "what was received", kind="python")
    draw, said = random.Random(seed), []
    for kill in range(kills):
        arguments = [sys.executable, __file__, "--work", url, str(kill * 10**6), str(seed + kill), str(received)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it works: now any moment will do
        timer = threading.Timer(draw.uniform(0, 0.4), os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        lines += process.stdout.readlines()
        assert process.wait() == -signal.SIGKILL
        said += [line.split() for line in lines if line.endswith("\n")]
    return check(url, said, received)


def check(url: str, said: list[list[str]], received: Path) -> dict[str, int]:
    """Check that all that was said is there, that nothing is decided twice, and that everything was sent."""
    counts: Counter[str] = Counter(words[0] for words in said)
    with Store.open(url) as store:
        for words in said:
            _check_said(store, words)
        trails = {review.id: (review, store.history(review.id)) for review in _everything(store)}
        for review, trail in trails.values():
            whats = [event.what for event in trail]
            standing = sum(what in _VERDICTS for what in whats) - whats.count("undone")
            assert standing == (review.status is not ReviewStatus.PENDING), (review.id, whats)
            assert whats.count("added") == 1
        _check_sent(store, [event.what for _, trail in trails.values() for event in trail], received)
        counts["cases"] = len(trails)
    return dict(counts)


def _check_said(store: Store, words: list[str]) -> None:
    if words[0] == "added":
        case, review = make_escalation(int(words[1])), store.review(f"decision-{words[1]}")
        assert (review.question, review.answer, review.prompt) == (case.question, case.answer, case.prompt)
        return
    what = words[3] if words[0] == "decided" else words[0]
    assert (words[2], what) in [(event.who, event.what) for event in store.history(words[1])], words


def _check_sent(store: Store, whats: list[str], received: Path) -> None:
    """Every event has its one message, and every message that was not taken back has arrived."""
    clock = store._database.clock
    store._database.clock = lambda connection: clock(connection) + timedelta(seconds=outbox.LEASE_S + 60)
    Deliverer(store, {"file": receiver(received)}).deliver()
    with store._database.read() as connection:
        rows = connection.execute(OUTBOX.select()).all()
    assert len(rows) == sum(what in outbox.EVENTS_OF_TRAIL for what in whats)
    sent = set(received.read_text().split())
    assert {row.id for row in rows if row.cancelled_at is None} == sent
    assert all(row.delivered_at or row.cancelled_at for row in rows)


def _everything(store: Store) -> list[Any]:
    found, after = [], None
    while True:
        page = store.page(order="oldest", after=after, limit=500)
        found += page.reviews
        if (after := page.after) is None:
            return found


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        _, _, url, first, seed, received = sys.argv
        work(url, int(first), int(seed), Path(received))
    parser = argparse.ArgumentParser(description="Kill reviews at random moments, and check what is left.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", help="an empty store; by default a file for now")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        counts = run(options.store or f"{folder}/reviews.db", Path(folder), kills=options.kills, seed=options.seed)
    print(json.dumps({"kills": options.kills, **counts}))


if __name__ == "__main__":
    main()
