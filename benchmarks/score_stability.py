"""How far scores move with what else is in the batch and in the cache, and how many decisions that changes.

    python benchmarks/score_stability.py --data QUESTIONS.jsonl.gz [--data ...] [--limit 1000] [--clients 16]

Each question is answered alone from an empty cache (`deterministic=True`), then by several clients at once, where
prompts share prefixes and passes. Scores are compared where both gave the same text; decisions over all questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Answered:
    """What was answered to each question: its text, and the score."""

    texts: list[str]
    p_wrong: NDArray[np.float64]


def moved(alone: Answered, crowd: Answered) -> list[Figure]:
    """Return how far the scores of the same answers are apart, and which decisions differ."""
    same = np.array([one == other for one, other in zip(alone.texts, crowd.texts, strict=True)])
    apart = np.abs(alone.p_wrong - crowd.p_wrong)[same]
    figures = [
        Figure("answers", len(same), ""),
        Figure("greedy answers that are the same text", 100 * float(same.mean()), "%"),
        Figure("largest change of p_wrong", float(apart.max(initial=0)), "", "of the same texts"),
        Figure("99th percentile", float(np.quantile(apart, 0.99)), ""),
        Figure("median", float(np.median(apart)), ""),
    ]
    for name in POLICIES:
        policy = load_policy(name)
        actions = [
            [decide(policy, p_wrong=float(each)).action for each in answered.p_wrong] for answered in (alone, crowd)
        ]
        flipped = np.mean([one is not other for one, other in zip(*actions, strict=True)])
        figures.append(Figure(f"decisions that change under '{name}'", 100 * float(flipped), "%"))
    return figures


def answered(guard: Guard, prompts: Sequence[Prompt], clients: int) -> Answered:
    def ask(prompt: Prompt) -> tuple[str, float]:
        attempt = guard.ask(prompt, limits=guard.limits).attempts[0]
        return attempt.answer or "", attempt.score.p_wrong if attempt.score else 1.0

    with ThreadPoolExecutor(clients) as pool:
        texts, scores = zip(*pool.map(ask, prompts), strict=True)
    return Answered([*texts], np.array(scores))


def measure(model: Path, prompts: Sequence[Prompt], *, embedded: bool, threads: int, clients: int) -> list[Figure]:
    found = []
    for options, asking in (({"deterministic": True}, 1), ({"slots": clients}, clients)):
        with LlamaCppEngine.load(model, threads=threads, trial_load=False, **options) as engine:
            guard = Guard(engine, scorer_for(engine, shipped=embedded), load_policy("shadow"))
            found.append(answered(guard, prompts, asking))
    return moved(*found)


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
