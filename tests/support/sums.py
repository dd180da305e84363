"""Questions about sums, and a model's answers to them that are wrong as often as their score says, more or less."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product

import numpy as np

from guard.records import Prompt


def sum_rows(numbers: Iterable[int]) -> str:
    """Rows of a file of questions: what each number and 1 make."""
    rows = [{"id": f"q{n}", "question": f"What is {n} + 1?", "answers": [str(n + 1)]} for n in numbers]
    return "\n".join(map(json.dumps, rows))


def addition_rows() -> str:
    """Rows of a file of questions for a real small model, which is right about some of them."""
    pairs = product(range(1, 20, 2), range(1, 46, 3))
    rows = [{"question": f"What is {a} plus {b}?", "answers": [str(a + b)], "grader": "number"} for a, b in pairs]
    return "\n".join(map(json.dumps, rows))


def half_right(prompt: Prompt, number: int) -> tuple[str, float]:
    """Right where the score is low, mostly; the same for the same question."""
    n = int(prompt.question.split()[2])
    p_wrong = float(np.random.default_rng(n).uniform(0.05, 0.95))
    wrong = np.random.default_rng(n + 10_000).random() < p_wrong**2
    return (str(n + 1 + wrong), p_wrong)
