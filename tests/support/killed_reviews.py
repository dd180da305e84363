"""Kill tests of the review store: a process adds, claims, decides, notifies and audits until SIGKILL ends it.

    python tests/support/killed_reviews.py [--kills 200] [--seed 0] [--store postgresql://...]

Each process does one of these most of the time, so that kills hit all of them. What it had said is done must be there
afterwards, whole and once; every message must have been sent, and the audit log must verify.
``tests/review/test_killed.py`` runs a sample.
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
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa
from made_cases import make_escalation

from guard.audit.tables import CHECKPOINTS
from guard.errors import ReviewError
from guard.monitoring import CertificateWatch
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds
from guard.policy.policy import parse_policy
from guard.review import outbox, queries, results, verdicts
from guard.review.delivery import Deliverer
from guard.review.endpoints import Endpoints
from guard.review.migrations.tables import OUTBOX
from guard.review.store import ReviewStatus, Store
from guard.review_terms import AuditDraw, ReviewTerms

#: Seconds in which a decision can be undone, so that verdicts are sent while the process lives.
_UNDO_S = 0.05

_VERDICTS = ("approved", "edited", "rejected")

#: Half of the decisions are rejections, so every certificate is lost soon.
POLICY = """version: 1
name: killed
audit: {rate: 0.5}
rules: [accept: {max_error_rate: 0.05, confidence: 0.9}, abstain]
"""


def shorten_undo() -> None:
    """Let decisions be final almost at once, in this process."""
    verdicts.UNDO_S = outbox.UNDO_S = results.UNDO_S = _UNDO_S


@dataclass
class KilledWorker:
    """What one process does, step by step; it says each thing once it is done."""

    store: Store
    draw: random.Random
    deliverer: Deliverer
    number: int
    certificate: str
    logged: int = 0

    def enqueue(self) -> None:
        """Add a case; every third is an audit of this process's certificate."""
        terms = ReviewTerms(within_s=1e9, audit=AuditDraw(0.5, self.certificate))
        more = {"terms": terms} if self.number % 3 == 0 else {}
        self.store.add(make_escalation(self.number, **more))
        say("added", self.number)
        self.number += 1

    def claim(self) -> None:
        """Claim the next case, and give it back."""
        who = f"person-{self.draw.randrange(3)}"
        if (case := self.store.claim_next(reviewer=who)) is not None:
            say("claimed", case.id, who)
            self.store.release(case.id, reviewer=who)
            say("released", case.id, who)

    def decide(self) -> None:
        """Decide the next case."""
        review_one(self.store, self.draw, f"person-{self.draw.randrange(3)}")

    def notify(self) -> None:
        """Send what is due."""
        self.deliverer.deliver()

    def audit(self) -> None:
        """Log a decision and a checkpoint, and look at the evidence against the certificate, which suspends it."""
        log, self.logged = self.store.audit_log(), self.logged + 1
        name = f"{self.certificate}-{self.logged}"
        log.append("decision", name, {"action": "accept"}, texts={"answer": "An answer."})
        say("logged", name)
        if self.draw.random() < 0.3:
            log.checkpoint()
        if CertificateWatch(self.store).refresh([self.certificate])[0].suspended_at is not None:
            say("suspended", self.certificate)


#: What the processes do most of, in turn.
STEPS = (KilledWorker.enqueue, KilledWorker.claim, KilledWorker.decide, KilledWorker.notify, KilledWorker.audit)


def say(*words: object) -> None:
    print(*words, flush=True)


def work(url: str, first: int, seed: int, received: Path, most: int) -> None:
    """Do all steps in turn, and one of them more often, until somebody ends the process."""
    shorten_undo()
    store = Store.open(url)
    certificate = f"{first:064x}"
    policy = apply_thresholds(parse_policy(POLICY), {None: CertifiedThreshold(0.3, "f" * 64, certificate)})
    CertificateWatch(store).begin(policy)
    deliverer = Deliverer(store, {"file": receiver(received)})
    worker = KilledWorker(store, random.Random(seed), deliverer, first, certificate)
    while True:
        for step in (*[STEPS[most]] * 3, *STEPS):
            step(worker)


def review_one(store: Store, draw: random.Random, who: str) -> bool:
    """Decide the next case if there is one, and say each thing once it is done; return whether there was one."""
    if (case := store.claim_next(reviewer=who)) is None:
        return False
    say("claimed", case.id, who)
    decided = store.reject(case.id, reviewer=who) if draw.random() < 0.5 else store.approve(case.id, reviewer=who)
    say("decided", case.id, who, decided.status.value)
    if draw.random() < 0.2:
        with contextlib.suppress(ReviewError):  # on a slow machine it is final by now
            store.undo(case.id, reviewer=who)
            say("undone", case.id, who)
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
        arguments = [url, str((kill + 1) * 10**6), str(seed + kill), str(received), str(kill % len(STEPS))]
        process = subprocess.Popen([sys.executable, __file__, "--work", *arguments], stdout=subprocess.PIPE, text=True)
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
        suspended = _check_log(store, trails)
        _check_sent(store, [event.what for _, trail in trails.values() for event in trail], suspended, received)
        counts["cases"], counts["entries"] = len(trails), len(store.audit_log())
    return dict(counts)


def _check_said(store: Store, words: list[str]) -> None:
    if words[0] == "added":
        case, review = make_escalation(int(words[1])), store.review(f"decision-{words[1]}")
        assert (review.kind == "audit") == (int(words[1]) % 3 == 0)
        assert (review.question, review.answer, review.prompt) == (case.question, case.answer, case.prompt)
        return
    if words[0] == "logged":
        assert len([*store.audit_log().entries(subject=words[1])]) == 1, words
        return
    if words[0] == "suspended":
        assert CertificateWatch(store).suspended(words[1:]), words
        return
    what = words[3] if words[0] == "decided" else words[0]
    assert (words[2], what) in [(event.who, event.what) for event in store.history(words[1])], words


def _check_log(store: Store, trails: dict[str, Any]) -> int:
    """The audit log verifies and has every step of each case once; return how many certificates it has suspended."""
    log = store.audit_log()
    found = log.verify()
    assert found.ok, found.problems
    events = [json.loads(entry.event) for entry in log.entries()]
    logged = Counter((each["review_id"], each["what"]) for each in events if each["kind"] == "review")
    kept = Counter((name, event.what) for name, (_, trail) in trails.items() for event in trail)
    assert logged == Counter({key: count for key, count in kept.items() if key[1] in queries._LOGGED})
    suspended = [each["subject"] for each in events if each["kind"] == "certificate" and each["what"] == "suspended"]
    lost = [each.id for each in CertificateWatch(store).read() if each.suspended_at is not None]
    assert sorted(suspended) == sorted(lost), "one entry for each"
    return len(lost)


def _check_sent(store: Store, whats: list[str], suspended: int, received: Path) -> None:
    """Every event has its one message, and every message that was not taken back has arrived."""
    clock = store._database.clock
    store._database.clock = lambda connection: clock(connection) + timedelta(seconds=outbox.LEASE_S + 60)
    Deliverer(store, {"file": receiver(received)}).deliver()
    with store._database.read() as connection:
        rows = connection.execute(OUTBOX.select()).all()
        checkpoints = connection.scalar(sa.select(sa.func.count()).select_from(CHECKPOINTS))
    assert len(rows) == sum(what in outbox.EVENTS_OF_TRAIL for what in whats) + suspended + checkpoints
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
        _, _, url, first, seed, received, most = sys.argv
        work(url, int(first), int(seed), Path(received), int(most))
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
