"""What `guard serve` costs beside its requests, and how many tokens it serves: against the guard in this process.

    python benchmarks/serve_load.py [--pairs 2] [--clients 8] [--requests 32] [--threads 2] [--idle 30]

Starts `guard serve` with the embedded model and prints the seconds until it is ready, its memory before and after the
requests, and the processor time that it takes while nobody asks. Then clients ask as in `clients.py`, no two requests
alike: of the guard in this process and over HTTP, in turns. Tokens are counted per second, and per second of processor
time of both processes together, clients included, by which a machine that others use can be compared on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from clients import CELLS, Crowd, Round
from measuring import arguments, provenance, write

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from processes import processor_seconds, resident_mb  # type: ignore[import-not-found]

from guard.engines import embedded_model
from guard.engines.cores import usable_cores
from guard.records import Limits
from guard.runtime.guard import Guard


class GuardServer:
    """`guard serve` in a process of its own.

    Attributes:
        start_s: seconds until it said that requests should be sent.
        client: sends them.
    """

    def __init__(self, *, clients: int, threads: int) -> None:
        options = ["--slots", clients, "--cache-tokens", CELLS, "--threads", threads, "--no-trial-load"]
        command = [sys.executable, "-m", "guard", "serve", "--policy", "shadow", "--port", "0", *map(str, options)]
        started = time.monotonic()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        url = self._process.stdout.readline().split()[-1]
        limits = httpx.Limits(max_connections=clients)
        self.client = httpx.Client(base_url=url, timeout=600, limits=limits, trust_env=False)
        while not self._ready():
            time.sleep(0.02)
        self.start_s = time.monotonic() - started

    def _ready(self) -> bool:
        try:
            return self.client.get("/ready").is_success
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait()

    @property
    def processor_s(self) -> float:
        """Seconds of processor time so far."""
        return float(processor_seconds(self._process.pid))

    @property
    def memory_mb(self) -> float:
        """Memory in RAM, in MB."""
        return round(float(resident_mb(self._process.pid)))

    def ask(self, messages: Any, length: int) -> int:
        """Ask for an answer of some tokens at most; return how many came."""
        body = {"model": "smollm2", "messages": list(messages), "max_tokens": length}
        answer = self.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return int(answer["usage"]["completion_tokens"])


def in_process(guard: Guard) -> Callable[[Any, int], int]:
    """Return what asks a guard of this process as `GuardServer.ask` asks a server."""

    def ask(messages: Any, length: int) -> int:
        return guard.ask(messages, limits=Limits(max_tokens=length)).attempts[0].completion_tokens

    return ask


def speed(ask: Callable[[Any, int], int], asks: Round, clients: int, server: GuardServer) -> dict[str, float]:
    """Let clients ask; return tokens a second, by the clock and by processor time of both processes."""
    spent = time.process_time() + server.processor_s
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(ask, [prompt.messages for prompt in asks.prompts], asks.lengths))
    taken, spent = time.monotonic() - started, time.process_time() + server.processor_s - spent
    return {"tokens": tokens, "per_second": tokens / taken, "per_processor_second": tokens / spent}


def compared(crowd: Crowd, server: GuardServer, *, clients: int, pairs: int) -> dict[str, Any]:
    """Ask both in turns; return medians, and the ratios of served over in this process."""
    with crowd.loaded(slots=clients, cache_tokens=CELLS) as engine:
        ways = {"engine": in_process(crowd.guard(engine)), "served": server.ask}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for pair in range(-1, pairs):
            for name in sorted(ways, reverse=pair % 2 == 1):
                got = speed(ways[name], crowd.round(engine, pair), clients, server)
                if pair >= 0:
                    found[name].append(got)
        about = provenance(engine)
    result: dict[str, Any] = {"about": about}
    for by in ("per_second", "per_processor_second"):
        both = [(ours[by], own[by]) for ours, own in zip(found["served"], found["engine"], strict=True)]
        result[f"tokens_{by}"] = {
            "served": round(statistics.median(ours for ours, _ in both), 1),
            "engine": round(statistics.median(own for _, own in both), 1),
            "ratios": [round(ours / own, 3) for ours, own in both],
        }
    return result


def idle(server: GuardServer, seconds: float) -> float:
    """Return the share of one processor that a server takes while nobody asks, in percent."""
    before = server.processor_s
    time.sleep(seconds)
    return round(100 * (server.processor_s - before) / seconds, 2)


def main() -> None:
    parser = arguments(__doc__, pairs=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds without a request, before and after the rest")
    wanted = parser.parse_args()
    threads = wanted.threads or usable_cores()
    crowd = Crowd(embedded_model(), True, threads, wanted.requests)
    with GuardServer(clients=wanted.clients, threads=threads) as server:
        found: dict[str, Any] = {"clients": wanted.clients, "requests": wanted.requests, "threads": threads}
        found |= {"seconds_to_start": round(server.start_s, 1), "memory_mb": [server.memory_mb]}
        found["idle_percent"] = [idle(server, wanted.idle)]
        found |= compared(crowd, server, clients=wanted.clients, pairs=wanted.pairs)
        found["memory_mb"].append(server.memory_mb)
        found["idle_percent"].append(idle(server, wanted.idle))
    print(json.dumps(found, indent=2))
    write(found, wanted.out)


if __name__ == "__main__":
    main()
