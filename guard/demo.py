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
    "What is the capital of Burkina Faso?",
    "What is the currency of Burkina Faso?",
    "What language is spoken in Brazil?",
    "What is the chemical symbol for gold?",
    "What is the chemical symbol for ytterbium?",
    "What is the boiling point of water in degrees Celsius?",
    "How many legs does a spider have?",
    "What is 7 + 8?",
    "What is 47 * 83?",
    "In which year was the University of Tartu founded?",
)


def run(guard: Guard) -> Iterator[tuple[str, Outcome]]:
    """Ask each question; the outcomes are whatever the model and its policy make of it."""
    for question in QUESTIONS:
        yield question, guard.ask(question)
