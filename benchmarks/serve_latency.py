"""Measure what `guard serve` adds to a request: HTTP, the verdict and the recording, over the guarded call itself.

    python benchmarks/serve_latency.py --requests 200

The same question is asked of a guard in this process and of a server in a process of its own on loopback, over the
same scripted engine, one request at a time and in turns, so that a busy machine slows both. A model's own time is the
same on both sides and left out. Prints medians and 95th percentiles in milliseconds, what is added at the median, and
the processor time of a request in the server and in the client, as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from processes import processor_seconds  # type: ignore[import-not-found]
from scripted import AnsweringEngine, confidence_scorer, scripted_model
from served import POLICY, said  # type: ignore[import-not-found]
from served_child import child  # type: ignore[import-not-found]

from guard.policy.policy import parse_policy
from guard.records import Limits, Prompt
from guard.review.store import Store
from guard.runtime.guard import Guard

ANSWER = "The capital of France is Paris."
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
WARM_UP = 10

TimedCall = Callable[[], object]


def in_turns(calls: Mapping[str, TimedCall], count: int) -> dict[str, list[float]]:
    """Return how many milliseconds each call takes, some times each, after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + count):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number >= WARM_UP:
                taken[name].append((time.perf_counter() - started) * 1000)
    return taken


def processor_time(call: TimedCall, count: int, server: int) -> dict[str, float]:
    """Return the milliseconds of processor time that a call takes, on average, in this process and in the server."""
    before = time.process_time(), processor_seconds(server)
    for _ in range(count):
        call()
    spent = time.process_time() - before[0], processor_seconds(server) - before[1]
    return {name: round(each * 1000 / count, 2) for name, each in zip(("here", "server"), spent, strict=True)}


def summary(taken: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {"median": round(statistics.median(taken), 2), "p95": round(statistics.quantiles(taken, n=20)[-1], 2)}


def added(taken: Mapping[str, list[float]], name: str) -> float:
    """Return the median of what a call takes over the direct one beside it."""
    return round(statistics.median(ours - own for ours, own in zip(taken[name], taken["direct"], strict=True)), 2)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    count = parser.parse_args().requests
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder) / "own.db") as store,
        child(Path(folder) / "served.db", p_wrong=0.1, answer=ANSWER) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        engine = AnsweringEngine(said(ANSWER), model=scripted_model(context_tokens=2000))
        guard = Guard(engine, confidence_scorer(), parse_policy(POLICY), store=store)
        prompt = Prompt.chat(BODY["messages"])  # type: ignore[arg-type]

        def asked(**options: object) -> TimedCall:
            return lambda: client.post("/v1/chat/completions", json={**BODY, **options}).raise_for_status()

        calls: dict[str, TimedCall] = {
            "direct": lambda: guard.ask(prompt, limits=Limits(200)),
            "chat": asked(),
            "held stream": asked(stream=True),
        }
        taken = in_turns(calls, count)
        figures = {name: summary(each) for name, each in taken.items()}
        spent = {name: processor_time(call, count, process.pid) for name, call in calls.items()}
    over = {name: added(taken, name) for name in calls if name != "direct"}
    found = {"requests": count, "milliseconds": figures, "added_median": over, "processor_milliseconds": spent}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
