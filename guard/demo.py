"""The demo's questions: several kinds, from what a small model knows well to what it cannot know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guard.guard import Guard
    from guard.records import Outcome

QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is the currency of Burkina Faso?",
    "Which planet is known as the Red Planet?",
    "What is the chemical symbol for gold?",
    "What is the chemical symbol for ytterbium?",
    "What is 2 + 3?",
    "What is 47 * 83?",
    "What gas do plants take in from the air?",
    "Who wrote the novel 'The Leopard'?",
    "In which year was the University of Tartu founded?",
    "Who won the Nobel Prize in Literature in 1955?",
)


def run(guard: Guard) -> Iterator[tuple[str, Outcome]]:
    """Ask each question; the outcomes are whatever the model and its policy make of it."""
    for question in QUESTIONS:
        yield question, guard.ask(question)
