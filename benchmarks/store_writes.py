"""What the store takes: decisions written to the audit log and cases added to the queue, a second, and bytes of each.

    python benchmarks/store_writes.py --store postgresql://... [--seconds 10] [--writers 1 4 16] [--out FILE.json]

Each writer is a thread with a connection of its own, as a server's requests are; a decision is what ``guard serve``
writes for an accepted answer of some sentences, a case what it adds for one that goes to a person. The store should be
empty, and the database flush to disk as in production. `docs/explanation/capacity.md` multiplies these figures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from measuring import machine, write

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from made_cases import make_escalation  # type: ignore[import-not-found]

from guard.records import Prompt
from guard.review.records import text_of_time
from guard.review.store import Store

QUESTION = (
    "Which of these medicines may be taken together with the one that the letter names, and what is the dose? " * 4
)
ANSWER = "It may be taken with the first two; the third is known to raise its level. Ask before taking it. " * 4


def add_decision(store: Store) -> Callable[[], object]:
    """A decision as the runtime writes it: hashes and numbers, no text."""
    log = store.audit_log()
    fields = {
        **{"route": "medical", "policy": "balanced", "model": "model", "rule": "rules[0]", "p_wrong": 0.1234567},
        **{"policy_sha256": "0" * 64, "mode": "enforce", "action": "accept", "source": "model", "attempts": 1},
        **{"finish_reason": "stop", "tokens": 180, "failed": False, "ood_score": 0.25, "calibrated": True},
        "scores": {"p_wrong": 0.1234567, "logprob": 0.2345678},
        "tried": [
            {"source": "model", "scores": {"p_wrong": 0.1234567}, "ood_score": 0.25, "failed": False, "defects": []}
        ],
    }
    texts = {"question": QUESTION, "answer": ANSWER}
    return lambda: log.append("decision", str(uuid4()), fields, texts=texts)


def add_case(store: Store) -> Callable[[], object]:
    """A case with its prompt and answer."""

    def add() -> object:
        texts: dict[str, Any] = {"question": QUESTION, "prompt": Prompt.chat(QUESTION), "answer": ANSWER}
        own: dict[str, Any] = {"attempts": (), "metadata": {"user": "someone"}}
        now = text_of_time(datetime.now(UTC))
        return store.add(make_escalation(decision_id=str(uuid4()), created_at=now, **texts, **own))

    return add


KINDS = {"decisions": add_decision, "cases": add_case}


def rate(store: Store, kind: str, writers: int, seconds: float) -> float:
    """Return writes a second of some threads together."""
    add, end = KINDS[kind](store), time.monotonic() + seconds

    def work(_: int) -> int:
        written = 0
        while time.monotonic() < end:
            add()
            written += 1
        return written

    began = time.monotonic()
    with ThreadPoolExecutor(writers) as pool:
        written = sum(pool.map(work, range(writers)))
    return written / (time.monotonic() - began)


def size(store: Store) -> int:
    """Return the bytes of the whole database."""
    with store._database.read() as connection:
        if connection.dialect.name == "postgresql":
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
        pages, page = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "page_size")
        )
        return int(pages * page)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    with Store.open(options.store) as store:
        for kind in KINDS:
            before, written = size(store), 0.0
            for writers in options.writers:
                each = rate(store, kind, writers, options.seconds)
                figures[f"{kind} a second, {writers} writers"] = round(each)
                written += each * options.seconds
            figures[f"bytes of each of the {kind}"] = round((size(store) - before) / written)
            print(figures, flush=True)
    write({"machine": machine(), "figures": figures}, options.out)


if __name__ == "__main__":
    main()
