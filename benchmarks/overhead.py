"""What guarding costs: guarded against bare generation, in alternating pairs of one run.

    python benchmarks/overhead.py                                  # SmolLM2 on llama.cpp
    python benchmarks/overhead.py --engine transformers
    python benchmarks/overhead.py --model $(python benchmarks/qwen.py)

Guarded is all of it: capture, signature, score, decision. There are two bare engines to compare with:
the library as its users call it (`Llama.create_chat_completion`, `model.generate`), and guard's own
decoding loop without capture, which is the stricter one where the library's loop is slower.
Prints a table and writes JSON with versions and machine. Nothing here is asserted in tests.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from guard.engines import embedded_model
from guard.engines.base import BaseEngine
from guard.policy.policy import decide, load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard
from guard.runtime.sources import capture_point_of
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.scorer_file import Calibration, Linear, LinearProbe, Model, Trees
from guard.scoring.signature import ACTIVATION_TOKENS, FeatureSchema, SignatureObserver

# The scorer file of the tests: its parts other than the model have no influence on time.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from scripted import tiny_artefact

QUESTIONS = (
    "Write a long story about a ship that is lost in the fog.",
    "Explain in detail how a steam engine works.",
    "Describe a walk through a large market, with all that one sees.",
    "Tell the history of bread from its beginnings to today, at length.",
)


@dataclass(frozen=True)
class Ratio:
    """Guarded time over bare time, pair by pair."""

    bare: str
    median: float
    smallest: float
    largest: float
    pairs: int
    bare_ms_per_token: float
    guarded_ms_per_token: float


def main() -> None:
    arguments = _arguments()
    model = Path(arguments.model) if arguments.model else embedded_model()
    engine, library = _load(model, arguments.engine, arguments.threads)
    guard = Guard(engine, _scorer(engine, arguments.model is None), load_policy("shadow"))
    limits = Limits(max_tokens=arguments.tokens)
    prompts = [Prompt.chat(question) for question in QUESTIONS]

    def guarded(prompt: Prompt) -> int:
        return guard.ask(prompt, limits=limits).attempts[0].completion_tokens

    def own_loop(prompt: Prompt) -> int:
        return engine.generate(prompt, limits=limits).completion_tokens

    def library_loop(prompt: Prompt) -> int:
        return library(prompt, arguments.tokens)

    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "model": asdict(engine.model),
        "tokens": arguments.tokens,
        "ratios": [
            asdict(_compare(name, bare, guarded, prompts, arguments.pairs))
            for name, bare in (("library", library_loop), ("guard's loop, no capture", own_loop))
        ],
        "memory_mb": {n: _memory(guard, n) for n in (200, 1500)},
        "score_ms": _score_ms(guard),
        "decision_us": _decision_us(),
    }
    _print(report)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="GGUF file; by default the embedded model")
    parser.add_argument("--engine", choices=("llama.cpp", "transformers"), default="llama.cpp")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, help="by default one for each physical core")
    parser.add_argument("--out", help="write the figures to this JSON file")
    return parser.parse_args()


def _load(model: Path, engine: str, threads: int | None) -> tuple[BaseEngine, Callable[[Prompt, int], int]]:
    return _llama(model, threads) if engine == "llama.cpp" else _transformers(model, threads)


def _llama(model: Path, threads: int | None) -> tuple[BaseEngine, Callable[[Prompt, int], int]]:
    import llama_cpp

    from guard.engines.llama_cpp import LlamaCppEngine, physical_cores

    cores = threads or physical_cores()
    llama = llama_cpp.Llama(str(model), n_ctx=4096, n_threads=cores, n_threads_batch=cores, verbose=False)

    def run(prompt: Prompt, tokens: int) -> int:
        llama.reset()  # or it would reuse the last prompt's cache, which guard never does
        messages: Any = list(prompt.messages or ())
        answer: Any = llama.create_chat_completion(messages, temperature=0.0, max_tokens=tokens)
        return int(answer["usage"]["completion_tokens"])

    return LlamaCppEngine.wrap(llama), run


def _transformers(model: Path, threads: int | None) -> tuple[BaseEngine, Callable[[Prompt, int], int]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from guard.engines.transformers import TransformersEngine

    if threads:
        torch.set_num_threads(threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    network: Any = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name)

    def run(prompt: Prompt, tokens: int) -> int:
        messages: Any = list(prompt.messages or ())
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            output = network.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        return int(output.shape[1] - inputs["input_ids"].shape[1])

    return TransformersEngine.wrap(network, tokenizer), run


def _compare(
    name: str,
    bare: Callable[[Prompt], int],
    guarded: Callable[[Prompt], int],
    prompts: list[Prompt],
    pairs: int,
) -> Ratio:
    """Alternate bare and guarded, the first of each pair in turn, after a warm-up of both."""
    bare(prompts[0])
    guarded(prompts[0])
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        prompt = prompts[number % len(prompts)]
        order = (bare, guarded) if number % 2 == 0 else (guarded, bare)
        taken = {run: _ms_per_token(run, prompt) for run in order}
        times.append((taken[bare], taken[guarded]))
    ratios = [with_guard / without for without, with_guard in times]
    return Ratio(
        bare=name,
        median=statistics.median(ratios),
        smallest=min(ratios),
        largest=max(ratios),
        pairs=pairs,
        bare_ms_per_token=statistics.median(without for without, _ in times),
        guarded_ms_per_token=statistics.median(with_guard for _, with_guard in times),
    )


def _ms_per_token(run: Callable[[Prompt], int], prompt: Prompt) -> float:
    started = time.perf_counter()
    tokens = run(prompt)
    return (time.perf_counter() - started) * 1000 / tokens


def _memory(guard: Guard, tokens: int) -> float:
    """Growth of the process over one guarded answer of a given number of tokens, in MB."""
    limits = Limits(max_tokens=tokens)
    prompt = Prompt.raw("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,")
    guard.ask(prompt, limits=Limits(max_tokens=8))
    gc.collect()
    before = _resident_mb()
    guard.ask(prompt, limits=limits)
    return round(_resident_mb() - before, 1)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _score_ms(guard: Guard, *, times: int = 1000) -> float:
    """Median time to turn one answer's signals into a score."""
    observer = SignatureObserver(temperatures=guard.scorer.schema.temperatures)
    prompt = Prompt.chat("What is the capital of France?")
    answer = guard.engine.generate(prompt, limits=Limits(max_tokens=16), observer=observer)
    signals = answer.signals(observer.signature())
    return statistics.median(guard.scorer.score(signals).seconds for _ in range(times)) * 1000


def _decision_us(*, times: int = 20_000) -> float:
    policy = load_policy("balanced")
    started = time.perf_counter()
    for number in range(times):
        decide(policy, p_wrong=number / times)
    return (time.perf_counter() - started) / times * 1e6


def _scorer(engine: BaseEngine, embedded: bool) -> Scorer:
    """Return the shipped scorer for its own model, else one of the same size with random numbers."""
    point = capture_point_of(engine)
    if embedded and engine.model.engine == "llama.cpp":
        return load_scorer(shipped_scorer()).for_model(engine.model, point)
    rng = np.random.default_rng(0)
    schema = FeatureSchema(layers=engine.model.layers)
    shape = (len(ACTIVATION_TOKENS), engine.model.layers, engine.model.width)
    start = Linear(features=list(range(7)), mean=[0.0] * 7, scale=[1.0] * 7, coefficients=[0.1] * 7, intercept=0.0)
    model = Model(
        base=start,
        probe=LinearProbe.from_array(rng.normal(size=shape).astype(np.float32)),
        trees=_stumps(200, len(schema.names), rng),
        calibration=Calibration(slope=1.0, intercept=0.0),
    )
    return Scorer(tiny_artefact(engine.model, point).model_copy(update={"model": model, "baseline": None}))


def _stumps(count: int, features: int, rng: np.random.Generator) -> Trees:
    """Trees of one split each, as many as the shipped scorer may have."""
    return Trees(
        roots=[3 * tree for tree in range(count)],
        feature=[at for _ in range(count) for at in (int(rng.integers(features)), -1, -1)],
        threshold=[0.0] * (3 * count),
        left=[at for tree in range(count) for at in (3 * tree + 1, 0, 0)],
        right=[at for tree in range(count) for at in (3 * tree + 2, 0, 0)],
        value=[0.0] * (3 * count),
    )


def _machine() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ilis-guard", "llama-cpp-python", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    screen = Console(width=110)
    screen.print(f"{report['date']}, {report['machine']}, {report['versions']}", style="dim")
    model = report["model"]
    table = Table(title=f"{model['name']}, {model['quantization']}, on {model['engine']}, {report['tokens']} tokens")
    for column in ("bare is", "guarded / bare", "smallest", "largest", "pairs", "bare ms/token", "guarded ms/token"):
        table.add_column(column, justify="left" if column == "bare is" else "right")
    for ratio in report["ratios"]:
        figures = (ratio["median"], ratio["smallest"], ratio["largest"])
        speeds = (ratio["bare_ms_per_token"], ratio["guarded_ms_per_token"])
        table.add_row(ratio["bare"], *(f"{x:.3f}" for x in figures), str(ratio["pairs"]), *(f"{x:.1f}" for x in speeds))
    screen.print(table)
    memory = ", ".join(f"{tokens} tokens {grown} MB" for tokens, grown in report["memory_mb"].items())
    screen.print(f"memory grown over one answer: {memory}")
    screen.print(f"scoring one answer {report['score_ms']:.2f} ms, one decision {report['decision_us']:.1f} us")


if __name__ == "__main__":
    main()
