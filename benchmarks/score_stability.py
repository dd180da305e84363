"""How far scores move with what else is in the batch and in the cache, and how many decisions that changes.

    python benchmarks/score_stability.py --data QUESTIONS.jsonl.gz [--data ...] [--limit 1000] [--clients 16]

Each question is answered alone from an empty cache (`deterministic=True`), then by several clients at once, where
prompts share prefixes and passes. The first answers are also scored again in the crowd, so that the scores of the same
texts are compared where the crowd's own answers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from measuring import Figure, arguments, print_ratios, provenance, scorer_for, write
from numpy.typing import NDArray

from guard.data.prompts import question_prompt
from guard.data.question_sets import read_sets, round_robin
from guard.data.questions import Question
from guard.engines import embedded_model
from guard.engines.llama_cpp import LlamaCppEngine, physical_cores
from guard.policy.policy import decide, load_policy
from guard.records import Prompt
from guard.runtime.guard import Guard

POLICIES = ("strict", "balanced", "permissive")


def moved(alone: NDArray[np.float64], crowd: NDArray[np.float64]) -> list[Figure]:
    """Return how far the scores of the same answers are apart, and which decisions differ."""
    apart = np.abs(alone - crowd)
    figures = [
        Figure("largest change of p_wrong", float(apart.max()), ""),
        Figure("99th percentile", float(np.quantile(apart, 0.99)), ""),
        Figure("median", float(np.median(apart)), ""),
    ]
    for name in POLICIES:
        policy = load_policy(name)
        actions = [[decide(policy, p_wrong=float(each)).action for each in scores] for scores in (alone, crowd)]
        flipped = np.mean([one is not other for one, other in zip(*actions, strict=True)])
        figures.append(Figure(f"decisions that change under '{name}'", 100 * float(flipped), "%"))
    return figures


def measure(model: Path, prompts: Sequence[Prompt], *, embedded: bool, threads: int, clients: int) -> list[Figure]:
    def loaded(**options: bool | int) -> LlamaCppEngine:
        return LlamaCppEngine.load(model, threads=threads, trial_load=False, **options)  # type: ignore[arg-type]

    def guard_on(engine: LlamaCppEngine) -> Guard:
        return Guard(engine, scorer_for(engine, shipped=embedded), load_policy("shadow"))

    with loaded(deterministic=True) as engine:
        first = [_asked(guard_on(engine))(prompt) for prompt in prompts]
    with loaded(slots=clients) as engine, ThreadPoolExecutor(clients) as pool:
        crowd = guard_on(engine)
        again = list(pool.map(_asked(crowd), prompts))
        scored = list(pool.map(lambda pair: crowd.score(*pair).p_wrong, _pairs(prompts, first)))
    same = np.array([one == other for (one, _), (other, _) in zip(first, again, strict=True)])
    return [
        Figure("answers", len(prompts), ""),
        Figure("greedy answers that are the same text", 100 * float(same.mean()), "%"),
        *moved(np.array([p_wrong for _, p_wrong in first]), np.array(scored)),
    ]


def _asked(guard: Guard) -> Callable[[Prompt], tuple[str, float]]:
    def ask(prompt: Prompt) -> tuple[str, float]:
        attempt = guard.ask(prompt, limits=guard.limits).attempts[0]
        return attempt.answer, attempt.score.p_wrong if attempt.score else 1.0

    return ask


def _pairs(prompts: Sequence[Prompt], first: Sequence[tuple[str, float]]) -> list[tuple[Prompt, str]]:
    return [(prompt, answer) for prompt, (answer, _) in zip(prompts, first, strict=True)]


def main() -> None:
    parser = arguments(__doc__, pairs=1)
    parser.add_argument("--data", type=Path, action="append", required=True, help="JSON Lines of questions; repeatable")
    parser.add_argument("--limit", type=int, default=1000, help="of all sets together")
    parser.add_argument("--clients", type=int, default=16)
    asked = parser.parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    threads = asked.threads or physical_cores()
    sources = read_sets([str(each) for each in asked.data], on_bad="skip", limit=asked.limit, seed=0)
    rows = [row for _, row in round_robin(sources) if isinstance(row, Question)][: asked.limit]
    prompts = [question_prompt(row) for row in rows]
    found = measure(model, prompts, embedded=asked.model is None, threads=threads, clients=asked.clients)
    with LlamaCppEngine.load(model, threads=threads, trial_load=False) as engine:
        about = provenance(engine)
    print_ratios(f"Scores beside {asked.clients} clients", found, about=about)
    write({**about, "threads": threads, "clients": asked.clients, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
