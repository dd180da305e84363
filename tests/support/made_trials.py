"""A scripted model, its fallback and questions, to try a policy that guarantees an error rate on."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scripted import AnsweringEngine, Script, confidence_scorer

from guard.data.questions import Question, Row
from guard.policy.policy import Policy
from guard.records import Prompt
from guard.review.handlers import Handler
from guard.runtime.guard import Guard
from guard.runtime.sources import Source

LADDER = """rules:
  - accept: {max_error_rate: 0.1, confidence: 0.9}
  - retry: {below: 0.7, times: 2, temperature: 0}
  - fallback: {below: 0.9, to: other}
  - escalate: {to: [desk]}
budget: {attempts: 4}
"""
RETRY_ONLY = """rules:
  - accept: {max_error_rate: 0.1, confidence: 0.9}
  - retry: {below: 0.8, times: 3, temperature: 0}
  - abstain
budget: {tokens: 40}  # room for one retry
"""
ONCE = "rules:\n  - accept: {max_error_rate: 0.1, confidence: 0.9}\n  - abstain\n"


def questions(count: int) -> list[tuple[str, Row]]:
    return [
        ("set", Question(id=f"q{number}", question=f"Question {number}?", answers=("yes",))) for number in range(count)
    ]


def script(seed: int, name: str) -> Script:
    """Scores and answers that depend on the question and how often it was asked, in any order of questions."""
    asked: Counter[str] = Counter()

    def answer(prompt: Prompt, number: int) -> tuple[str, float]:
        asked[prompt.question] += 1
        rng = np.random.default_rng([seed, asked[prompt.question], *f"{name} {prompt.question}".encode()])
        return ("yes" if rng.random() < 0.6 else "no"), float(rng.uniform(0.03, 0.97))

    return answer


def guard(chosen: Policy, seed: int, handler: Handler | None = None) -> Guard:
    def never(_: object) -> None:
        raise AssertionError("a trial run must hand nothing to anybody")

    return Guard(
        AnsweringEngine(script(seed, "own")),
        confidence_scorer(),
        chosen,
        fallbacks={"other": Source("other", AnsweringEngine(script(seed, "other")), confidence_scorer())},
        handlers={"desk": handler or never},
    )
