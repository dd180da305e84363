"""What a turn of a conversation costs with and without flash attention, and with other conversations in the cache.

    python benchmarks/attention.py [--model FILE.gguf] [--threads 1] [--cpu-time]

A prompt of some 600 tokens is in the cache; a turn adds a short question, and 24 tokens are generated. Milliseconds are
those of the model's passes alone, with every layer read.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import CLOCK, Figure, arguments, print_ratios, provenance, write

from guard.engines import embedded_model
from guard.engines.batch import Feed
from guard.engines.llama_cpp import LlamaCppEngine, physical_cores
from guard.records import Limits, Prompt
from guard.scoring.signature import SignatureObserver

#: Lines of the prompt that is in the cache, tokens that are generated, and other conversations in the cache.
LINES, TOKENS, OTHERS = 40, 24, (0, 1, 2)
QUESTION = "And now tell me in a few words what this long list is about, please."


def conversation(number: int) -> list[dict[str, Any]]:
    text = " ".join(f"{number}.{line} is a line of a long list of things." for line in range(LINES))
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]


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
    for others in OTHERS:
        engine.generate(Prompt.chat(conversation(others)), limits=Limits(max_tokens=1))
        passes.clear()
        turn = Prompt.chat([*conversation(others), {"role": "user", "content": QUESTION}])
        engine.generate(turn, limits=Limits(max_tokens=TOKENS), observer=SignatureObserver(aggregates=()))
        (count, read), *_ = passes
        step = statistics.median(ms for tokens, ms in passes if tokens == 1)
        where = f"{how}, {others} other conversations in the cache"
        found += [
            Figure(f"{where}: reading a turn's {count} new tokens", read, "ms"),
            Figure(f"{where}: each further token", step, "ms"),
        ]
    return found


def main() -> None:
    asked = arguments(__doc__, pairs=1).parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    threads, found = asked.threads or physical_cores(), list[Figure]()
    for how, flash in (("with flash attention", None), ("without flash attention", False)):
        with LlamaCppEngine.load(model, threads=threads, trial_load=False, flash_attention=flash) as engine:
            found += measure(engine, how)
            about = provenance(engine)
    print_ratios(f"Attention, {threads} threads", found, about=about)
    write({**about, "threads": threads, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
