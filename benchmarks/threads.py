"""Eight threads at once beside one after the other, on transformers with one slot: before any batching can help.

python benchmarks/threads.py [--model FILE.gguf] [--pairs 3]
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path

from measuring import CLOCK, arguments, compared, print_ratios, provenance, scorer_for, write

from guard.engines import embedded_model
from guard.engines.transformers import TransformersEngine
from guard.policy.policy import load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard

REQUESTS, TOKENS = 16, 16


def main() -> None:
    asked = arguments(__doc__, pairs=3).parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    numbers = count()
    with TransformersEngine.load(model, threads=asked.threads) as engine:
        guard = Guard(engine, scorer_for(engine, shipped=False), load_policy("shadow"))

        def ask(number: int) -> int:
            prompt = Prompt.chat(f"Story {number}. Tell me about a ship in the fog.")
            return guard.ask(prompt, limits=Limits(max_tokens=TOKENS)).attempts[0].completion_tokens

        def speed(clients: int) -> float:
            each = [next(numbers) for _ in range(REQUESTS)]
            started = CLOCK.now()
            with ThreadPoolExecutor(clients) as pool:
                tokens = sum(pool.map(ask, each))
            return tokens / (CLOCK.now() - started)

        found = compared(
            f"eight threads, {REQUESTS} requests of {TOKENS} tokens",
            "one after the other",
            lambda _: speed(8),
            lambda _: speed(1),
            unit="tokens/s",
            pairs=asked.pairs,
            wanted=">= 0.97",
        )
        about = provenance(engine)
    print_ratios("Threads, transformers", [found], about=about)
    write({**about, "threads": asked.threads, "found": [asdict(found)]}, asked.out)


if __name__ == "__main__":
    main()
