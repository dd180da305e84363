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

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from measuring import (
    CLOCK,
    Ratio,
    arguments,
    compared,
    itself,
    print_ratios,
    provenance,
    resident_mb,
    scorer_for,
    write,
)

from guard.engines import embedded_model
from guard.engines.base import BaseEngine
from guard.policy.policy import decide, load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard

QUESTIONS = (
    "Write a long story about a ship that is lost in the fog.",
    "Explain in detail how a steam engine works.",
    "Describe a walk through a large market, with all that one sees.",
    "Tell the history of bread from its beginnings to today, at length.",
)


def main() -> None:
    asked = _arguments()
    model = Path(asked.model) if asked.model else embedded_model()
    engine, library = _load(model, asked.engine, asked.threads)
    guard = Guard(engine, scorer_for(engine, shipped=asked.model is None), load_policy("shadow"))
    lighter = guard.with_scorer(scorer_for(engine, shipped=False, layers=False))
    limits = Limits(max_tokens=asked.tokens)
    prompts = _prompts()

    def guarded(prompt: Prompt) -> int:
        return guard.ask(prompt, limits=limits).attempts[0].completion_tokens

    def without_layers(prompt: Prompt) -> int:
        return lighter.ask(prompt, limits=limits).attempts[0].completion_tokens

    def own_loop(prompt: Prompt) -> int:
        return engine.generate(prompt, limits=limits).completion_tokens

    def library_loop(prompt: Prompt) -> int:
        return library(prompt, asked.tokens)

    single = "single request"
    at_most = "<= 1.02" if asked.engine == "transformers" else "<= 1.08" if asked.model is None else "<= 1.03"
    ratios = [
        _compare(single, "library", guarded, library_loop, prompts, asked.pairs),
        _compare(single, "guard's loop, no capture", guarded, own_loop, prompts, asked.pairs, at_most),
        _compare(
            f"{single}, scored by log-probabilities only",
            "guard's loop, no capture",
            without_layers,
            own_loop,
            prompts,
            asked.pairs,
            "<= 1.02",
        ),
        itself(single, lambda _: _ms_per_token(own_loop, next(prompts)), unit="ms/token", pairs=asked.pairs),
    ]
    report = {
        **provenance(engine),
        "tokens": asked.tokens,
        "threads": asked.threads,
        "ratios": [asdict(each) for each in ratios],
        "memory_mb": {n: _memory(guard, n) for n in asked.memory},
        "score_ms": _score_ms(guard),
        "decision_us": _decision_us(),
    }
    _print(report, ratios)
    write(report, asked.out)


def _prompts() -> Iterator[Prompt]:
    """Yield prompts that were not read before: the second of a pair must not find the first one's in the cache."""
    for number in count():
        yield Prompt.chat(f"Draft {number}. {QUESTIONS[number % len(QUESTIONS)]}")


def _arguments() -> Any:
    parser = arguments(__doc__, pairs=12)
    parser.add_argument("--engine", choices=("llama.cpp", "transformers"), default="llama.cpp")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--memory", type=int, nargs="*", default=(200, 1500), help="tokens of answers, for memory")
    return parser.parse_args()


def _load(model: Path, engine: str, threads: int | None) -> tuple[BaseEngine, Callable[[Prompt, int], int]]:
    return _llama(model, threads) if engine == "llama.cpp" else _transformers(model, threads)


def _llama(model: Path, threads: int | None) -> tuple[BaseEngine, Callable[[Prompt, int], int]]:
    import llama_cpp

    from guard.engines.cores import usable_cores
    from guard.engines.llama_cpp import LlamaCppEngine

    cores = threads or usable_cores()
    llama = llama_cpp.Llama(str(model), n_ctx=4096, n_threads=cores, n_threads_batch=cores, verbose=False)

    def run(prompt: Prompt, tokens: int) -> int:
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
    what: str,
    against: str,
    guarded: Callable[[Prompt], int],
    bare: Callable[[Prompt], int],
    prompts: Iterator[Prompt],
    pairs: int,
    wanted: str = "",
) -> Ratio:
    def timed(run: Callable[[Prompt], int]) -> Callable[[int], float]:
        return lambda _: _ms_per_token(run, next(prompts))

    return compared(what, against, timed(guarded), timed(bare), unit="ms/token", pairs=pairs, wanted=wanted)


def _ms_per_token(run: Callable[[Prompt], int], prompt: Prompt) -> float:
    started = CLOCK.now()
    tokens = run(prompt)
    return (CLOCK.now() - started) * 1000 / tokens


def _memory(guard: Guard, tokens: int) -> float:
    """Growth of the process over one guarded answer of a given number of tokens, in MB."""
    limits = Limits(max_tokens=tokens)
    prompt = Prompt.raw("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,")
    guard.ask(prompt, limits=Limits(max_tokens=8))
    gc.collect()
    before = resident_mb()
    guard.ask(prompt, limits=limits)
    return round(resident_mb() - before, 1)


def _score_ms(guard: Guard, *, times: int = 1000) -> float:
    """Median time to turn one answer's signals into a score."""
    observer = guard.scorer.observer()
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


def _print(report: dict[str, Any], ratios: list[Ratio]) -> None:
    model = report["model"]
    title = f"{model['name']}, {model['quantization']}, on {model['engine']}, {report['tokens']} tokens"
    memory = ", ".join(f"{tokens} tokens {grown} MB" for tokens, grown in report["memory_mb"].items())
    notes = (
        f"memory grown over one answer: {memory}",
        f"scoring one answer {report['score_ms']:.2f} ms, one decision {report['decision_us']:.1f} us",
    )
    print_ratios(title, [*ratios, *notes], about=report)


if __name__ == "__main__":
    main()
