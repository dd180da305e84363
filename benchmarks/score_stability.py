"""How far scores move with what else is in the batch and in the cache, and how many decisions that changes.

    python benchmarks/score_stability.py --data QUESTIONS.jsonl.gz [--data ...] [--limit 1000] [--journal FILE]

Each question is answered alone from an empty cache (`deterministic=True`), then by several clients at once, where
prompts share prefixes and passes. Scores are compared where both gave the same text; decisions over all questions.
With `--flash` both are answered without flash attention, too, which shows what that setting alone changes. With
`--journal` the program can be stopped and continued.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Figure, arguments, print_ratios, provenance, scorer_for, write
from numpy.typing import NDArray

from guard.data.prompts import question_prompt
from guard.data.question_sets import read_sets, round_robin
from guard.data.questions import Question
from guard.engines import embedded_model
from guard.engines.cores import usable_cores
from guard.engines.llama_cpp import LlamaCppEngine
from guard.policy.policy import decide, load_policy
from guard.records import Prompt
from guard.runtime.guard import Guard

POLICIES = ("strict", "balanced", "permissive")
#: Questions between two writes of the journal.
BLOCK = 16


@dataclass(frozen=True)
class WayToAnswer:
    """A way to answer: how the engine is loaded, and how many ask at once."""

    name: str
    options: dict[str, Any]
    clients: int


@dataclass(frozen=True)
class Answered:
    """What was answered to each question: its text, and the score."""

    texts: list[str]
    p_wrong: NDArray[np.float64]


def moved(what: str, alone: Answered, crowd: Answered) -> list[Figure]:
    """Return how far the scores of the same answers are apart, and which decisions differ."""
    same = np.array([one == other for one, other in zip(alone.texts, crowd.texts, strict=True)])
    apart = np.abs(alone.p_wrong - crowd.p_wrong)[same]
    figures = [
        Figure(f"{what}: answers", len(same), ""),
        Figure(f"{what}: greedy answers that are the same text", 100 * float(same.mean()), "%"),
        Figure(f"{what}: largest change of p_wrong", float(apart.max(initial=0)), "", "of the same texts"),
        Figure(f"{what}: 99th percentile", float(np.quantile(apart, 0.99)), ""),
        Figure(f"{what}: median", float(np.median(apart)), ""),
    ]
    for name in POLICIES:
        policy = load_policy(name)
        actions = [
            [decide(policy, p_wrong=float(each)).action for each in answered.p_wrong] for answered in (alone, crowd)
        ]
        flipped = np.mean([one is not other for one, other in zip(*actions, strict=True)])
        figures.append(Figure(f"{what}: decisions that change under '{name}'", 100 * float(flipped), "%"))
    return figures


def answered(guard: Guard, prompts: Sequence[Prompt], clients: int) -> Iterator[tuple[str, float]]:
    """Ask block by block."""

    def ask(prompt: Prompt) -> tuple[str, float]:
        attempt = guard.ask(prompt, limits=guard.limits).attempts[0]
        return attempt.answer or "", attempt.score.p_wrong if attempt.score else 1.0

    with ThreadPoolExecutor(clients) as pool:
        for start in range(0, len(prompts), BLOCK):
            yield from list(pool.map(ask, prompts[start : start + BLOCK]))


class AnswersSoFar:
    """What was answered so far, in memory and in a file, if there is one."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._kept = file, dict[str, list[tuple[str, float]]]()
        for line in file.read_text(encoding="utf-8").splitlines() if file and file.exists() else ():
            name, text, p_wrong = json.loads(line)
            self.of(name).append((text, p_wrong))

    def of(self, name: str) -> list[tuple[str, float]]:
        return self._kept.setdefault(name, [])

    def add(self, name: str, text: str, p_wrong: float) -> None:
        self.of(name).append((text, p_wrong))
        if self._file:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([name, text, p_wrong]) + "\n")

    def answers(self, name: str, count: int) -> Answered:
        texts, scores = zip(*self.of(name)[:count], strict=True)
        return Answered([*texts], np.array(scores))


def ask_all(
    model: Path, prompts: Sequence[Prompt], way: WayToAnswer, journal: AnswersSoFar, *, embedded: bool, threads: int
) -> Answered:
    """Answer what the journal does not hold yet."""
    rest = prompts[len(journal.of(way.name)) :]
    if rest:
        with LlamaCppEngine.load(model, threads=threads, trial_load=False, **way.options) as engine:
            guard = Guard(engine, scorer_for(engine, shipped=embedded), load_policy("shadow"))
            for text, p_wrong in answered(guard, rest, way.clients):
                journal.add(way.name, text, p_wrong)
    return journal.answers(way.name, len(prompts))


def ways(clients: int, *, flash: bool) -> tuple[list[WayToAnswer], list[tuple[str, str]]]:
    """Return the ways to answer, and which of them are compared."""
    plain: dict[str, Any] = {"flash_attention": False}
    alone, crowd = (
        WayToAnswer("alone", {"deterministic": True}, 1),
        WayToAnswer(f"{clients} at once", {"slots": clients}, clients),
    )
    if not flash:
        return [alone, crowd], [(alone.name, crowd.name)]
    without = [
        WayToAnswer(f"{way.name}, no flash attention", way.options | plain, way.clients) for way in (alone, crowd)
    ]
    pairs = [(alone.name, crowd.name), (alone.name, without[0].name), (without[0].name, without[1].name)]
    return [alone, crowd, *without], pairs


def main() -> None:
    parser = arguments(__doc__, pairs=1)
    parser.add_argument("--data", type=Path, action="append", required=True, help="JSON Lines of questions; repeatable")
    parser.add_argument("--limit", type=int, default=1000, help="of all sets together")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--flash", action="store_true", help="also without flash attention")
    parser.add_argument("--journal", type=Path, help="keep answers here, and continue with those that it lacks")
    asked = parser.parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    threads = asked.threads or usable_cores()
    sources = read_sets([str(each) for each in asked.data], on_bad="skip", limit=asked.limit, seed=0)
    rows = [row for _, row in round_robin(sources) if isinstance(row, Question)][: asked.limit]
    prompts, journal = [question_prompt(row) for row in rows], AnswersSoFar(asked.journal)
    each, pairs = ways(asked.clients, flash=asked.flash)
    answers = {
        way.name: ask_all(model, prompts, way, journal, embedded=asked.model is None, threads=threads) for way in each
    }
    found = [figure for one, other in pairs for figure in moved(f"{one}, {other}", answers[one], answers[other])]
    with LlamaCppEngine.load(model, threads=threads, trial_load=False) as engine:
        about = provenance(engine)
    print_ratios(f"Scores beside {asked.clients} clients", found, about=about)
    write({**about, "threads": threads, "clients": asked.clients, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
