"""What guard costs on vLLM: tokens a second of the same requests, guarded and bare, and memory.

    python benchmarks/vllm_overhead.py --model FOLDER [--pairs 8] [--requests 32] [--only eager] [--scorer FILE.json]
                                       [--out FILE.json] [--lock FILE]

Bare is vLLM's own `LLM.generate` with its defaults, compiled, without anything of guard's; said apart, both without
compiled graphs. Guarded is the engine `vllm` with capture, signature, score and decision of every answer: by a scorer
that is given, such as the shipped one where the folder has the embedded model's weights, or by random numbers that
read all maps of every token, more than any scorer that `guard calibrate` fits.

Each side is a process of its own with the same model, type, cache, slots and step size. Both are started and warmed
up, then they answer all requests at once, greedily, in turn; the one that waits takes no processor. Pairs of rounds
that follow each other are compared by the clock, and, for a machine that others use, by the CPU time of all their
processes and by that of the worker: vLLM's processes wait for each other by spinning, so that the worker's CPU time is
that of its steps and of all that it waits for. With --lock, a file is locked while answers are measured, for programs
on the same machine that do the same.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import Figure, Ratio, machine, print_ratios, scorer_for, versions, write

from guard.engines.vllm.engine import VllmEngine
from guard.policy.policy import load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard
from guard.scoring.scorer import load_scorer

CONTEXT, BATCH_TOKENS, CACHE_TOKENS, LONGEST = 1024, 1024, 16_384, 64
#: Times that are measured, and how a token's is written.
CLOCKS = {
    "wall": "ms a token",
    "cpu": "ms of CPU time a token, all processes",
    "worker": "ms of CPU time a token, the worker",
}
TOPICS = ("bread", "rain", "ships", "glass", "trains", "maps", "clocks", "salt")


def prompts(requests: int) -> list[Prompt]:
    """Prompts of different lengths; no two begin alike."""
    asks = (f"{at}. Write some sentences on {TOPICS[at % len(TOPICS)]}. " for at in range(requests))
    return [Prompt.chat(ask + "Be precise. " * (at % 16)) for at, ask in enumerate(asks)]


# -- one side, in a process of its own ---------------------------------------------------------


def processes() -> list[Any]:
    import psutil

    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def worker() -> Any:
    """Return the process that holds the weights."""
    return max(processes()[1:], key=lambda each: each.memory_info().rss)


def cpu_seconds(of: Sequence[Any]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in of)


def answer_in_turn(answer: Callable[[], int], results: int) -> None:
    """Warm up, then answer once for each line of the standard input; write what was measured to a file descriptor."""
    answer()
    with os.fdopen(results, "w") as file:
        print("null", file=file, flush=True)
        for _ in sys.stdin:
            print(json.dumps(timed(answer)), file=file, flush=True)


def timed(answer: Callable[[], int]) -> dict[str, float]:
    """Return the seconds of each kind for a token, the tokens, and the worker's memory."""
    holder, every = worker(), processes()
    wall, cpu, own = time.perf_counter(), cpu_seconds(every), cpu_seconds([holder])
    tokens = answer()
    taken = {
        "wall": time.perf_counter() - wall,
        "cpu": cpu_seconds(every) - cpu,
        "worker": cpu_seconds([holder]) - own,
    }
    memory = holder.memory_info().rss / 2**20
    return {**{clock: seconds / tokens for clock, seconds in taken.items()}, "tokens": tokens, "worker_mb": memory}


def answer_guarded(options: argparse.Namespace) -> None:
    with VllmEngine.load(
        options.model,
        dtype="float32",
        slots=options.requests,
        prefix_caching=False,
        eager=options.eager,
        context_tokens=CONTEXT,
        batch_tokens=BATCH_TOKENS,
        cache_tokens=CACHE_TOKENS,
    ) as engine:
        scorer = load_scorer(options.scorer) if options.scorer else scorer_for(engine, shipped=False)
        guard = Guard(engine, scorer, load_policy("shadow"), force_scorer=True)

        async def ask() -> int:
            asked = (guard.aask(prompt, limits=Limits(max_tokens=LONGEST)) for prompt in prompts(options.requests))
            outcomes = await asyncio.gather(*asked)
            attempts = [attempt for outcome in outcomes for attempt in outcome.attempts]
            assert len(attempts) == options.requests, "bare vLLM asks once, too"
            assert all(attempt.score is not None for attempt in attempts)
            return sum(attempt.completion_tokens for attempt in attempts)

        answer_in_turn(lambda: asyncio.run(ask()), options.results)


def answer_bare(options: argparse.Namespace) -> None:
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM, SamplingParams

    from guard.engines import checkpoint
    from guard.engines.hub_tokenizer import HubTokenizer
    from guard.engines.vllm.settings import cache_bytes

    read = checkpoint.read_settings(options.model)
    size = int(read.config.vocab_size)
    tokens = HubTokenizer(read.tokenizer, read, name=read.name, template_date=None, rows=lambda: size)
    llm = LLM(
        model=options.model,
        dtype="float32",
        max_model_len=CONTEXT,
        max_num_seqs=options.requests,
        max_num_batched_tokens=BATCH_TOKENS,
        kv_cache_memory_bytes=cache_bytes(read.config, CACHE_TOKENS, "float32"),
        enable_prefix_caching=False,
        enforce_eager=options.eager,
    )
    params = SamplingParams(temperature=0.0, max_tokens=LONGEST, stop_token_ids=sorted(tokens.ends))
    asked = [{"prompt_token_ids": tokens.encode(prompt)} for prompt in prompts(options.requests)]

    def answer() -> int:
        outputs = llm.generate(asked, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    answer_in_turn(answer, options.results)


SIDES = {"bare": answer_bare, "guarded": answer_guarded}


# -- both sides --------------------------------------------------------------------------------


class Side:
    """One side in its process, which answers when it is asked to."""

    def __init__(self, which: str, options: argparse.Namespace, *, eager: bool) -> None:
        """Start it, and wait until it has warmed up."""
        reads, writes = os.pipe()
        own = ["--model", options.model, "--requests", str(options.requests), "--side", which, "--results", str(writes)]
        own += [*(["--scorer", options.scorer] if options.scorer else []), *(["--eager"] if eager else [])]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *own], stdin=subprocess.PIPE, pass_fds=[writes], text=True
        )
        os.close(writes)
        self._results = os.fdopen(reads)
        self._read()

    def answer(self) -> dict[str, float]:
        """Answer all requests once; return what was measured."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        found: dict[str, float] = self._read()
        return found

    def _read(self) -> Any:
        line = self._results.readline()
        if not line:
            raise RuntimeError("a side has ended; see what it wrote")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def locked(file: str | None) -> Iterator[None]:
    """Lock a file, if one is given."""
    if file is None:
        yield
        return
    with Path(file).open("a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def compare(options: argparse.Namespace, *, eager: bool) -> list[Ratio | Figure]:
    """Alternate rounds of both sides, the first of each pair in turn; by the clock, and by CPU time."""
    sides, rounds = {}, {which: list[dict[str, float]]() for which in SIDES}
    with ExitStack() as stack:
        for which in SIDES:
            sides[which] = Side(which, options, eager=eager)
            stack.callback(sides[which].close)
        for number in range(options.pairs):
            for which in SIDES if number % 2 == 0 else reversed(SIDES):
                with locked(options.lock):
                    rounds[which].append(sides[which].answer())
                print(f"{which}, load {os.getloadavg()[0]:.1f}: {rounds[which][-1]}", flush=True)
    how = "eager" if eager else "compiled"
    figures = [
        Figure(f"{what}, {which}, {how}", max(each[key] for each in found), unit)
        for which, found in rounds.items()
        for key, what, unit in (("worker_mb", "a worker's resident memory", "MB"), ("tokens", "a round", "tokens"))
    ]
    return [*(ratio_of(rounds, clock, how) for clock in CLOCKS), *figures]


def ratio_of(rounds: dict[str, list[dict[str, float]]], clock: str, how: str) -> Ratio:
    """Return the time of a token, guarded over bare, pair by pair."""
    ours, theirs = ([1000 * each[clock] for each in rounds[which]] for which in ("guarded", "bare"))
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Ratio(
        f"all requests at once, {how}",
        f"vLLM's LLM.generate, {'eager' if how == 'eager' else 'its defaults'}",
        CLOCKS[clock],
        guarded=statistics.median(ours),
        bare=statistics.median(theirs),
        median=statistics.median(ratios),
        smallest=min(ratios),
        largest=max(ratios),
        pairs=len(ratios),
        wanted="<= 1.05" if how == "compiled" else "",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder with weights in safetensors")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--only", choices=("compiled", "eager"), help="one of the two comparisons")
    parser.add_argument("--scorer", help="scorer file for the guarded side, by force where it is not this model's")
    parser.add_argument("--out", help="write the figures to this JSON file")
    parser.add_argument("--lock", help="lock this file while answers are measured")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--results", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--eager", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        SIDES[options.side](options)
        return
    about: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    about["versions"] = versions()
    kinds = (False, True) if options.only is None else (options.only == "eager",)
    found = [each for eager in kinds for each in compare(options, eager=eager)]
    print_ratios(f"guard on vLLM, {options.requests} requests", found, about=about)
    asked = {"requests": options.requests, "scorer": Path(options.scorer).name if options.scorer else "all maps"}
    report = {**about, "model": Path(options.model).name, **asked}
    write({**report, "figures": [asdict(each) for each in found]}, options.out)


if __name__ == "__main__":
    main()
