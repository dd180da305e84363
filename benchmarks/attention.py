"""What passes cost with and without flash attention, alone, in a crowd, and with other conversations in the cache.

    python benchmarks/attention.py [--model FILE.gguf] [--threads 1] [--cpu-time]

A prompt of some 600 tokens is in the cache; a turn adds a short question, and 24 tokens are generated. Then several
short ones are asked at once. Milliseconds are those of the model's passes alone, with every layer read.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from measuring import CLOCK, Figure, arguments, print_ratios, provenance, write

from guard.engines import embedded_model
from guard.engines.batch import Feed
from guard.engines.cores import usable_cores
from guard.engines.llama_cpp import LlamaCppEngine
from guard.records import Limits, Prompt
from guard.scoring.signature import SignatureObserver

#: Lines of the prompt that is in the cache, tokens that are generated, and other conversations in the cache. The last
#: fill the default one.
LINES, TOKENS, OTHERS = 40, 24, (0, 2, 5)
#: How many ask at once, and lines of their prompts.
CROWDS, CROWD_LINES = (1, 2, 4, 8, 16), 8
QUESTION = "And now tell me in a few words what this long list is about, please."


def conversation(number: int, question: str = "", *, lines: int = LINES) -> list[dict[str, Any]]:
    text = " ".join(f"{number}.{line} is a line of a long list of things." for line in range(lines))
    before = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    return [*before, {"role": "user", "content": question}] if question else before


def timed(engine: LlamaCppEngine) -> list[tuple[int, float]]:
    """Return a list that gets the tokens and the milliseconds of each pass."""
    passes: list[tuple[int, float]] = []
    evaluate = engine._evaluate

    def run(feeds: Sequence[Feed]) -> Any:
        started = CLOCK.now()
        rows = evaluate(feeds)
        passes.append((sum(len(feed.tokens) for feed in feeds), 1000 * (CLOCK.now() - started)))
        return rows

    engine._evaluate = run  # type: ignore[method-assign]
    return passes


def measure(engine: LlamaCppEngine, how: str) -> list[Figure]:
    """Return what the prompt's new part and each further token cost, beside more and more other conversations."""
    found, passes = list[Figure](), timed(engine)
    for others in range(max(OTHERS) + 1):
        read(engine, conversation(others))
        passes.clear()
        read(engine, conversation(others, QUESTION), tokens=TOKENS)
        (tokens, first), *_ = passes
        where = f"{how}, {others} other conversations in the cache"
        if others in OTHERS:
            found += [
                Figure(f"{where}: reading a turn's {tokens} new tokens", first, "ms"),
                Figure(f"{where}: each further token", of_steps(passes, 1), "ms"),
            ]
    return [*found, *crowds(engine, how, passes)]


def crowds(engine: LlamaCppEngine, how: str, passes: list[tuple[int, float]]) -> Iterator[Figure]:
    """What a step of several answers at once costs, for each of them."""
    numbers = count(1000)
    for crowd in CROWDS:
        passes.clear()
        turns = [conversation(next(numbers), QUESTION, lines=CROWD_LINES) for _ in range(crowd)]
        with ThreadPoolExecutor(crowd) as pool:
            list(pool.map(lambda turn: read(engine, turn, tokens=2 * TOKENS), turns))
        step = of_steps(passes, crowd) / crowd
        yield Figure(f"{how}: a token of each of {crowd} answers at once, by their number", step, "ms")


def read(engine: LlamaCppEngine, messages: Sequence[dict[str, Any]], *, tokens: int = 1) -> None:
    engine.generate(
        Prompt.chat(list(messages)), limits=Limits(max_tokens=tokens), observer=SignatureObserver(aggregates=())
    )


def of_steps(passes: Sequence[tuple[int, float]], tokens: int) -> float:
    return statistics.median(ms for each, ms in passes if each == tokens)


def main() -> None:
    asked = arguments(__doc__, pairs=1).parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    threads, found = asked.threads or usable_cores(), list[Figure]()
    for how, flash in (("with flash attention", None), ("without flash attention", False)):
        with LlamaCppEngine.load(model, threads=threads, trial_load=False, flash_attention=flash) as engine:
            found += measure(engine, how)
            about = provenance(engine)
    print_ratios(f"Attention, {threads} threads", found, about=about)
    write({**about, "threads": threads, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
