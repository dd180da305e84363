"""Measure what `guard serve` adds to a request: HTTP, the verdict and the recording, over the guarded call itself.

    python benchmarks/serve_latency.py --requests 200

The same question is asked of a guard in the process and of a server on loopback over the same engine, one at a time.
The engine is scripted, so that the difference is the server's: a model's own time is the same on both sides. Prints
medians and 95th percentiles in milliseconds, and the processor time of a request, client included, as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from served import said, serving  # type: ignore[import-not-found]

from guard.records import Limits, Prompt

ANSWER = "The capital of France is Paris."
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


def milliseconds(work: Callable[[], object], count: int) -> list[float]:
    """Return how long each of some calls takes, after ten that are not counted."""
    for _ in range(10):
        work()
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def processor_time(work: Callable[[], object], count: int) -> float:
    """Return the milliseconds of processor time that a call takes in this process, on average."""
    started = time.process_time()
    for _ in range(count):
        work()
    return round((time.process_time() - started) * 1000 / count, 2)


def summary(taken: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {"median": round(statistics.median(taken), 2), "p95": round(statistics.quantiles(taken, n=20)[-1], 2)}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    count = parser.parse_args().requests
    with serving(said(ANSWER)) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        guard = next(iter(served.server.models)).guard(None)
        prompt = Prompt.chat(BODY["messages"])  # type: ignore[arg-type]
        streamed = {**BODY, "stream": True}
        calls: dict[str, Callable[[], object]] = {
            "direct": lambda: guard.ask(prompt, limits=Limits(200)),
            "chat": lambda: client.post("/v1/chat/completions", json=BODY).raise_for_status(),
            "stream": lambda: client.post("/v1/chat/completions", json=streamed).raise_for_status(),
        }
        figures = {name: summary(milliseconds(call, count)) for name, call in calls.items()}
        for name, call in calls.items():
            figures[name]["processor"] = processor_time(call, count)
    added = {name: round(figures[name]["median"] - figures["direct"]["median"], 2) for name in ("chat", "stream")}
    print(json.dumps({"requests": count, "milliseconds": figures, "added_median": added}, indent=2))


if __name__ == "__main__":
    main()
