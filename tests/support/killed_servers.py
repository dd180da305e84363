"""Kill tests of two ``guard serve`` on one PostgreSQL: under load, one of them is ended with SIGKILL, again and again.

    python tests/support/killed_servers.py --store postgresql://... [--kills 100] [--seed 0]

Each process serves a scripted model with keys, an audit log and a watched certificate, and lets a reviewer and a
notifying worker run. What a caller or a reviewer was told must be there afterwards, once, and so must be the evidence
about the certificate. ``tests/serve/test_shared_servers.py`` runs a sample.
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
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import sqlalchemy as sa
from killed_reviews import check, receiver, review_one, shorten_undo
from made_certificates import certificate, certificates, engine

from guard.access import Access, Grant, KeyLimits, Role
from guard.monitoring.certificate_watch import CertificateWatch
from guard.monitoring.risk_test import risk_evidence
from guard.monitoring.sampling import is_drawn
from guard.policy.guarantee import trial_policy
from guard.policy.policy import parse_policy
from guard.review.delivery import Deliverer
from guard.review.endpoints import Endpoints
from guard.review.migrations.tables import REVIEWS
from guard.review.store import Store
from guard.runtime.guard import Guard

ROOT = Path(__file__).parents[2]
CALLERS = 3
#: Requests a minute of a key that asks more often.
LIMIT = 10
#: Of accepted answers, the share that is audited. Reviewers reject half of all cases, fewer than the guarantee allows.
AUDITED, RISK, FALSE_ALARMS = 0.3, 0.6, 0.01

POLICY = f"""
version: 1
name: served
audit: {{rate: {AUDITED}, false_alarms: {FALSE_ALARMS}}}
rules:
  - accept: {{max_error_rate: {RISK}, confidence: 0.9}}
  - escalate: {{to: [review], reply: A person will look.}}
"""


def script(prompt: Any, number: int) -> tuple[str, float]:
    """Half of the answers go to a person."""
    return "A short answer", 0.9 if "doubtful" in prompt.question else 0.1


# -- one server --------------------------------------------------------------------------------


def serve(config: str, who: str, seed: int, received: str) -> None:
    """Serve until the process is ended, while a reviewer and a worker use the same store."""
    from scripted import AnsweringEngine, scripted_model

    import guard.runtime.guard
    from guard.serve.config import load_config
    from guard.serve.running import run_server

    info = scripted_model()
    guard.runtime.guard.load_engine = lambda *_, **__: AnsweringEngine(script, model=info)  # type: ignore[assignment]
    shorten_undo()
    loaded = load_config(config)
    threading.Thread(target=review, args=(loaded.store, who, seed, Path(received)), daemon=True).start()
    run_server(loaded)


def review(url: str, who: str, seed: int, received: Path) -> None:
    """Decide cases and send notifications, and say each thing once it is done."""
    draw, store = random.Random(seed), Store.open(url)
    worker = Deliverer(store, {"file": receiver(received)})
    while True:
        if not review_one(store, draw, who):
            time.sleep(0.02)
        if draw.random() < 0.5:
            worker.deliver()


@dataclass
class ServerSlot:
    """A place for a server: a process, its address, and what its reviewer said."""

    number: int
    process: subprocess.Popen[str] | None = None
    url: str = ""
    said: list[list[str]] = field(default_factory=list)
    reader: threading.Thread | None = None
    started: int = 0

    def start(self, config: Path, seed: int, received: Path) -> None:
        self.started += 1
        who = f"person-{self.number}-{self.started}"
        arguments = [sys.executable, __file__, "--serve", str(config), who, str(seed), str(received)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        announced = threading.Event()
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout, announced))
        self.reader.start()
        assert announced.wait(120), "the server did not start"

    def _read(self, lines: Any, announced: threading.Event) -> None:
        for line in lines:
            if line.startswith("guard serve listens on "):
                self.url = line.split()[-1]
                announced.set()
            elif line.endswith("\n") and (
                words := line.split()
            ):  # a kill between text and line end leaves an empty line
                self.said.append(words)

    def end(self, how: signal.Signals) -> None:
        assert self.process is not None
        assert self.reader is not None
        self.url = ""
        self.process.send_signal(how)
        self.process.wait(60)
        self.reader.join(60)


# -- the load ----------------------------------------------------------------------------------


class Load:
    """Callers that ask whichever server there is, and keep what they were told."""

    def __init__(self, slots: list[ServerSlot], secret: str, limited: str) -> None:
        self.slots, self.answers = slots, list[tuple[str, dict[str, Any]]]()
        self.lost, self.looked_up, self.seconds = 0, 0, 0.0
        self.limited: Counter[int] = Counter()
        self._headers = {"authorization": f"Bearer {secret}"}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        self._threads.append(threading.Thread(target=self._call_limited, args=(limited,)))

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        self.seconds = time.monotonic() - self._began

    def _call_limited(self, secret: str) -> None:
        """Ask more often than the key may, and count the answers' status codes; 0 where there was no answer."""
        draw, number = random.Random(LIMIT), 0
        with httpx.Client(timeout=30, headers={"authorization": f"Bearer {secret}"}) as client:
            while not self._over.is_set():
                number += 1
                body = {"model": "tiny", "messages": [{"role": "user", "content": f"A clear question, {number}"}]}
                try:
                    url = draw.choice([slot.url for slot in self.slots if slot.url])
                    self.limited[client.post(f"{url}/v1/chat/completions", json=body).status_code] += 1
                except (httpx.HTTPError, IndexError):
                    self.limited[0] += 1
                time.sleep(0.1)

    def _call(self, caller: int) -> None:
        draw, number = random.Random(caller), 0
        with httpx.Client(timeout=30, headers=self._headers) as client:
            while not self._over.is_set():
                number += 1
                doubt = draw.choice(["doubtful", "clear"])
                self._ask(client, draw, f"A {doubt} question, {caller}-{number}")
                time.sleep(0.01)

    def _ask(self, client: httpx.Client, draw: random.Random, question: str) -> None:
        urls = [slot.url for slot in self.slots if slot.url]
        body = {"model": "tiny", "messages": [{"role": "user", "content": question}]}
        try:
            answered = client.post(f"{draw.choice(urls)}/v1/chat/completions", json=body)
        except (httpx.HTTPError, IndexError):  # killed while it answered
            self.lost += 1
            return
        assert answered.status_code == 200, answered.text
        with self._lock:
            self.answers.append((question, answered.json()))
        self._look_up(client, draw.choice(urls), answered.json()["guard"])

    def _look_up(self, client: httpx.Client, url: str, said: dict[str, Any]) -> None:
        """Any server knows the verdict."""
        with contextlib.suppress(httpx.HTTPError):
            found = client.get(f"{url}/v1/guard/decisions/{said['decision_id']}")
            assert found.json() == {"object": "guard.decision", **said}
            self.looked_up += 1


def run(url: str, folder: Path, *, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill one of two servers again and again, then check everything; return what was counted.

    Raises:
        AssertionError: something was lost, or happened twice.
    """
    config, received, secret, limited = prepare(url, folder)
    draw, slots = random.Random(seed), [ServerSlot(0), ServerSlot(1)]
    starting = [threading.Thread(target=slot.start, args=(config, seed, received)) for slot in slots]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    try:
        with Load(slots, secret, limited) as load:
            for kill in range(kills):
                time.sleep(draw.uniform(0.3, 1.0))
                slot = draw.choice(slots)
                slot.end(signal.SIGKILL)
                slot.start(config, seed + kill + 1, received)
            time.sleep(0.5)
    finally:
        for slot in slots:
            slot.end(signal.SIGTERM)
    said = [line for slot in slots for line in slot.said]
    return check_all(url, said, received, load) | {"kills": kills}


def prepare(url: str, folder: Path) -> tuple[Path, Path, str, str]:
    """Write a server's file with policy, scorer and certificate; make an endpoint and two keys, one with a limit."""
    from scripted import confidence_scorer

    received = folder / "received.txt"
    received.touch()
    confidence_scorer().save(folder / "scorer.json")
    (folder / "served.yaml").write_text(POLICY)
    with Store.open(url) as store, Access.open(url) as access:
        policy = parse_policy(POLICY)
        made = Guard(engine(), confidence_scorer(), trial_policy(policy), store=store)
        certificates(certificate(policy, guard=made)).save(folder / "certificate.json")
        Endpoints(store).add("file", "what was received", kind="python")
        _, secret = access.keys.add("load", grants=[Grant(Role.CALLER)])
        few = KeyLimits(requests_per_minute=LIMIT)
        _, limited = access.keys.add("limited", grants=[Grant(Role.CALLER)], limits=few)
    model = {"model": "scripted.gguf", "scorer": "./scorer.json", "policy": "./served.yaml"}
    model["certificate"] = "./certificate.json"
    server = {"version": 1, "models": {"tiny": model}, "store": url, "keys": True, "audit_log": True}
    server["listen"] = {"port": 0}
    config = folder / "server.yaml"
    config.write_text(json.dumps(server))  # JSON is YAML
    return config, received, secret, limited


# -- what must hold ----------------------------------------------------------------------------


def check_all(url: str, said: list[list[str]], received: Path, load: Load) -> dict[str, int]:
    """Check cases, claims, messages, log, limits and the certificate's evidence."""
    counts: Counter[str] = Counter(check(url, said, received))
    with Store.open(url) as store, Access.open(url) as access:
        for question, answer in load.answers:
            verdict = answer["guard"]
            if verdict["review_id"] is not None:
                case = store.review(verdict["review_id"])
                assert (case.question, case.decision_id) == (question, verdict["decision_id"])
        check_log(store, [answer["guard"]["decision_id"] for _, answer in load.answers])
        check_claims(store)
        used = next(key.used_tokens for key in access.keys.all() if key.name == "load")
        assert used >= sum(answer["usage"]["total_tokens"] for _, answer in load.answers), "tokens were not charged"
        counts["audited"] = check_evidence(store, [answer["guard"] for _, answer in load.answers])
    counts["refused"] = check_limit(load)
    return dict(counts) | {"answered": len(load.answers), "lost": load.lost, "looked_up": load.looked_up}


def check_limit(load: Load) -> int:
    """The key that asked too often was let in as often as it may, and no more; return how often it was refused.

    A minute begins with a request, so that a time touches as many minutes as it has, and one more.
    """
    answered, lost, refused = (load.limited[status] for status in (200, 0, 429))
    assert answered + lost + refused == load.limited.total(), load.limited
    assert answered <= LIMIT * (load.seconds // 60 + 1), load.limited
    assert answered + lost >= LIMIT, load.limited
    assert refused > 0, load.limited
    return refused


def check_evidence(store: Store, verdicts: list[dict[str, Any]]) -> int:
    """Every accepted answer that is drawn has its case, no other has; evidence is what the trails say.

    Returns:
        the number of audit cases.
    """
    watch = CertificateWatch(store)
    (found,) = watch.read()
    cases = REVIEWS.c
    query = sa.select(cases.id, cases.decision_id).where(cases.certificate == found.id).order_by(cases.number)
    with store._database.read() as connection:
        audits = connection.execute(query).all()
    drawn, key = Counter(case.decision_id for case in audits), watch.sampling_key()
    assert max(drawn.values()) == 1
    for verdict in verdicts:
        if verdict["action"] == "accept":
            assert (verdict["decision_id"] in drawn) == is_drawn(key, verdict["decision_id"], AUDITED)
    wrong = [last_verdict(store, case.id) == "rejected" for case in audits]
    assert found.evidence == risk_evidence(wrong, risk=RISK, false_alarms=FALSE_ALARMS)
    assert found.right + found.wrong + found.waiting == len(audits)
    events = [json.loads(entry.event)["what"] for entry in store.audit_log().entries(subject=found.id)]
    assert events == ["watched"], f"both servers began to watch it, once: {events}"
    return len(audits)


def last_verdict(store: Store, case: str) -> str | None:
    """What a case's trail says, without what was undone."""
    verdict = None
    for event in store.history(case):
        if event.what in ("approved", "edited", "rejected"):
            verdict = event.what
        elif event.what == "undone":
            verdict = None
    return verdict


def check_log(store: Store, decisions: list[str]) -> None:
    """Every decision that a caller got is in the log, once; the log is whole."""
    log = store.audit_log()
    assert log.verify().problems == ()
    logged = Counter(
        event["subject"] for entry in log.entries() if (event := json.loads(entry.event))["kind"] == "decision"
    )
    assert max(logged.values()) == 1
    assert not {*decisions} - logged.keys()


def check_claims(store: Store) -> None:
    """Nobody got a case that somebody else had."""
    page, after = store.page(order="oldest", limit=500), None
    while True:
        for case in page.reviews:
            holder = None
            for event in store.history(case.id):
                if event.what == "claimed":
                    assert holder in (None, event.who), (case.id, holder, event.who)
                    holder = event.who
                elif event.what == "released":
                    holder = None
        if (after := page.after) is None:
            return
        page = store.page(order="oldest", after=after, limit=500)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        _, _, config, who, seed, received = sys.argv
        serve(config, who, int(seed), received)
        return
    parser = argparse.ArgumentParser(description="Kill servers at random moments, and check what is left.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", help="an empty PostgreSQL database; by default one on a server for now")
    options = parser.parse_args()
    import postgresql_server

    with TemporaryDirectory() as folder:
        url = options.store or postgresql_server.emptied()
        counts = run(url, Path(folder), kills=options.kills, seed=options.seed)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
