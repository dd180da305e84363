"""Several clients at once: tokens a second, longest waits, and memory.

    python benchmarks/clients.py [--model FILE.gguf] [--pairs 2] [--server LLAMA_SERVER] [--only 8 | 16 | rest]

64 requests by 8 and by 16 clients, guarded, against a bare batched loop (`bare_batch.py`), against one at a time
from an empty cache (16 of the requests, since its speed does not depend on their number), and against llama.cpp's own
server with as many slots, where `--server` names the program that `llama_server.sh` builds. No two requests begin
alike, so that nothing is gained by a shared prefix. Then the longest wait of a short request beside seven long prompts,
and memory. `--only` runs a part: that of 8 clients with one pair took SmolLM2 three and a half minutes (135 s of CPU
time) on two cores that others used too. How long all of it takes has not been measured.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from bare_batch import BareBatch
from llama_server import LlamaServer
from measuring import (
    CLOCK,
    Figure,
    Ratio,
    arguments,
    compared,
    print_ratios,
    provenance,
    resident_mb,
    scorer_for,
    write,
)

from guard.engines import embedded_model
from guard.engines.base import BaseEngine
from guard.engines.cores import usable_cores
from guard.engines.llama_cpp import LlamaCppEngine
from guard.policy.policy import load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard

#: Requests of a round, tokens of the context that its clients share, and the shortest and the longest answer.
REQUESTS, CELLS, SHORTEST, LONGEST = 64, 8192, 16, 48
#: Requests that are enough where they are answered one at a time, and to warm up.
ONE_BY_ONE, WARM_UP = 16, 2
TOPICS = ("bread", "rain", "ships", "glass", "trains", "maps", "clocks", "salt")


@dataclass(frozen=True)
class Round:
    """Requests that nobody has made before: prompts, their tokens, and how long each answer may get."""

    prompts: Sequence[Prompt]
    tokens: Sequence[list[int]]
    lengths: Sequence[int]

    def first(self, count: int) -> Round:
        return Round(self.prompts[:count], self.tokens[:count], self.lengths[:count])


@dataclass
class Crowd:
    """A model, and the ways to ask it for many answers."""

    model: Path
    embedded: bool
    threads: int
    requests: int = REQUESTS
    _numbers: Iterator[int] = field(default_factory=count)

    def loaded(self, **options: object) -> LlamaCppEngine:
        return LlamaCppEngine.load(self.model, threads=self.threads, trial_load=False, **options)  # type: ignore[arg-type]

    def guard(self, engine: BaseEngine) -> Guard:
        return Guard(engine, scorer_for(engine, shipped=self.embedded), load_policy("shadow"))

    def round(self, engine: BaseEngine, pair: int) -> Round:
        """Return the requests of a pair; the warm-up, number -1, has few."""
        numbers = [next(self._numbers) for _ in range(self.requests if pair >= 0 else WARM_UP)]
        prompts = [_prompt(number) for number in numbers]
        lengths = [SHORTEST + 7 * number % (LONGEST - SHORTEST + 1) for number in numbers]
        return Round(prompts, [engine.encode(prompt) for prompt in prompts], lengths)


def _prompt(number: int) -> Prompt:
    topic = TOPICS[number % len(TOPICS)]
    system = f"{number} is the number of this conversation. You tell long stories."
    return Prompt.chat(
        [
            {"role": "system", "content": system},
            {"role": "user", "content": f"Tell me all about the history of {topic}."},
        ]
    )


def asked(guard: Guard, asks: Round, clients: int) -> float:
    """Let clients ask; return tokens a second."""

    def ask(prompt: Prompt, length: int) -> int:
        return guard.ask(prompt, limits=Limits(max_tokens=length)).attempts[0].completion_tokens

    started = CLOCK.now()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(ask, asks.prompts, asks.lengths))
    return tokens / (CLOCK.now() - started)


def timed(run: Callable[[], int]) -> float:
    """Return tokens a second."""
    started = CLOCK.now()
    return run() / (CLOCK.now() - started)


def throughput(crowd: Crowd, clients: int, *, pairs: int, server: Path | None) -> list[Ratio | Figure | str]:
    """Guarded against the bare loop, one at a time and the server, all of this many clients."""
    what, unit = f"{clients} clients, {crowd.requests} requests", "tokens/s"
    common = {"slots": clients, "cells": CELLS, "threads": crowd.threads}
    found: list[Ratio | Figure | str] = []
    with ExitStack() as open_:
        engine = open_.enter_context(crowd.loaded(slots=clients, cache_tokens=CELLS))
        guard = crowd.guard(engine)

        def guarded(pair: int) -> float:
            return asked(guard, crowd.round(engine, pair), clients)

        def against(name: str, other: Callable[[Round], float], wanted: str) -> Ratio:
            return compared(
                what,
                name,
                guarded,
                lambda pair: other(crowd.round(engine, pair)),
                unit=unit,
                pairs=pairs,
                wanted=wanted,
            )

        bare = BareBatch(crowd.model, **common)
        found.append(
            against(
                "bare batched loop", lambda asks: timed(lambda: _total(bare.run(asks.tokens, asks.lengths))), ">= 0.90"
            )
        )
        bare.close()
        single = open_.enter_context(crowd.loaded(deterministic=True))
        one = crowd.guard(single)
        wanted = {8: ">= 1.6", 16: ">= 2.0"}[clients] if crowd.embedded else ""
        found.append(against("one at a time", lambda asks: asked(one, asks.first(ONE_BY_ONE), 1), wanted))
        if server is None:
            found.append(f"{what}: not compared with llama.cpp's own server, since no --server is named")
        else:
            other = open_.enter_context(LlamaServer(server, crowd.model, **common))
            found.append(
                against(
                    "llama.cpp's own server",
                    lambda asks: timed(lambda: other.run(asks.tokens, asks.lengths, clients=clients)),
                    ">= 0.95",
                )
            )
    return found


def _total(answers: Sequence[Sequence[int]]) -> int:
    return sum(map(len, answers))


def longest_wait(crowd: Crowd, *, times: int) -> list[Figure]:
    """How long a short request takes beside seven long prompts, and alone."""
    with crowd.loaded(slots=8, cache_tokens=CELLS * 2) as engine:
        guard = crowd.guard(engine)
        alone = [_short(guard, number) for number in range(times)]
        beside = [_beside_long_prompts(guard, number) for number in range(times)]
    return [
        Figure("short request of 8 tokens, alone", statistics.median(alone), "s", f"longest {max(alone):.2f}"),
        Figure("the same beside seven long prompts", statistics.median(beside), "s", f"longest {max(beside):.2f}"),
    ]


def _short(guard: Guard, number: int) -> float:
    prompt = Prompt.chat([{"role": "system", "content": f"{number} short."}, {"role": "user", "content": "Say hello."}])
    started = time.perf_counter()
    guard.ask(prompt, limits=Limits(max_tokens=8))
    return time.perf_counter() - started


def _beside_long_prompts(guard: Guard, number: int) -> float:
    def ask(which: int) -> None:
        text = " ".join(f"{number}.{which}.{line} is a line of a long list." for line in range(100))
        guard.ask(Prompt.chat(text), limits=Limits(max_tokens=8))

    others = [threading.Thread(target=ask, args=(which,)) for which in range(7)]
    for other in others:
        other.start()
    time.sleep(0.2)
    seconds = _short(guard, number + 1000)
    for other in others:
        other.join()
    return seconds


def memory(crowd: Crowd, *, requests: int = 500) -> list[Figure]:
    """What slots and context take, and what further requests add."""
    before = resident_mb()
    with crowd.loaded(slots=16, cache_tokens=CELLS) as engine:
        guard = crowd.guard(engine)
        sizes = [before, resident_mb()]
        for asks in (50, requests):
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda n: guard.ask(_prompt(10**6 + n), limits=Limits(max_tokens=4)), range(asks)))
            sizes.append(resident_mb())
    note = f"16 slots share {CELLS} tokens; weights included"
    return [
        Figure("memory after loading", sizes[1] - sizes[0], "MB", note),
        Figure("memory after the first 50 requests", sizes[2] - sizes[0], "MB"),
        Figure(f"memory that {requests} further requests add", sizes[3] - sizes[2], "MB"),
    ]


def main() -> None:
    parser = arguments(__doc__, pairs=2)
    parser.add_argument("--server", type=Path, help="program that llama_server.sh built")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--only", choices=("8", "16", "rest"), help="the clients of one number, or waits and memory")
    wanted = parser.parse_args()
    model = Path(wanted.model) if wanted.model else embedded_model()
    threads = wanted.threads or usable_cores()
    crowd = Crowd(model, wanted.model is None, threads, wanted.requests)
    found: list[Ratio | Figure | str] = []
    for clients in (8, 16):
        if wanted.only in (None, str(clients)):
            found += throughput(crowd, clients, pairs=wanted.pairs, server=wanted.server)
    if wanted.only in (None, "rest"):
        found += longest_wait(crowd, times=wanted.pairs)
        found += memory(crowd)
    with crowd.loaded() as engine:
        about = provenance(engine)
    print_ratios(f"Several clients, {threads} threads", found, about=about)
    kept = [each if isinstance(each, str) else asdict(each) for each in found]
    write({**about, "threads": threads, "found": kept}, wanted.out)


if __name__ == "__main__":
    main()
