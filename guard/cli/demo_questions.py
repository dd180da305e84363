"""The demo: a dozen questions, what becomes of the answers, and what guarding was worth.

The questions and their accepted answers were fixed before a model was asked. They are of several kinds, from what
a small model knows well to what it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guard.data.graders import grade
from guard.data.questions import Question
from guard.records import Action

if TYPE_CHECKING:
    from guard.records import Attempt, Outcome
    from guard.runtime.guard import Guard


def _question(number: int, question: str, *answers: str) -> Question:
    return Question(f"demo-{number}", question, answers)


QUESTIONS = (
    _question(1, "What is the capital of France?", "Paris"),
    _question(2, "What is the capital of Japan?", "Tokyo"),
    _question(3, "What is the capital of Burkina Faso?", "Ouagadougou"),
    _question(4, "What is the currency of Burkina Faso?", "CFA franc", "West African CFA franc", "franc CFA", "XOF"),
    _question(5, "What language is spoken in Brazil?", "Portuguese"),
    _question(6, "What is the chemical symbol for gold?", "Au"),
    _question(7, "What is the chemical symbol for ytterbium?", "Yb"),
    _question(8, "What is the boiling point of water in degrees Celsius?", "100"),
    _question(9, "How many legs does a spider have?", "8"),
    _question(10, "What is 7 + 8?", "15"),
    _question(11, "What is 47 * 83?", "3901"),
    _question(12, "In which year was the University of Tartu founded?", "1632"),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """One question of the demo.

    Attributes:
        question: with its accepted answers.
        outcome: what became of it.
    """

    question: Question
    outcome: Outcome

    def right(self, attempt: Attempt) -> bool:
        """Return whether an attempt's answer is one of those that were fixed beforehand."""
        return attempt.answer is not None and grade(self.question, attempt.answer)

    @property
    def first_is_right(self) -> bool:
        """Whether the answer is right that the caller would have got without guard."""
        return self.right(self.outcome.attempts[0])

    @property
    def given(self) -> bool:
        """Whether the caller got an answer of the model's."""
        return self.outcome.action is Action.ACCEPT

    @property
    def given_wrong(self) -> bool:
        """Whether that answer is wrong."""
        return self.given and not self.right(self.outcome.attempts[-1])


@dataclass(frozen=True, slots=True)
class Worth:
    """What guarding was worth.

    Attributes:
        answers: of the model, all of which reach the caller without guard.
        wrong: how many of these are wrong.
        given: how many answers reach the caller with guard.
        given_wrong: how many of these are wrong.
        held_right: how many right answers were held back.
    """

    answers: int
    wrong: int
    given: int
    given_wrong: int
    held_right: int

    @property
    def held(self) -> int:
        """How many answers were held back."""
        return self.answers - self.given

    def without(self) -> str:
        """Return what the caller gets without guard, after "Without guard: "."""
        return f"{self.answers} answers, {_count(self.wrong)} wrong"

    def with_guard(self) -> str:
        """Return what the caller gets with guard, after "With guard: "."""
        held = f"{self.held} held back ({_count(self.held_right)} right)"
        return f"{self.given} answers, {_count(self.given_wrong)} wrong; {held}"


def _count(number: int) -> str:
    return str(number) if number else "none"


def worth(shown: Sequence[Shown]) -> Worth:
    """Count what guarding was worth."""
    return Worth(
        answers=len(shown),
        wrong=sum(not each.first_is_right for each in shown),
        given=sum(each.given for each in shown),
        given_wrong=sum(each.given_wrong for each in shown),
        held_right=sum(each.first_is_right and not each.given for each in shown),
    )


def run(guard: Guard) -> Iterator[Shown]:
    """Ask each question; the outcomes are whatever the model and its policy make of it."""
    for question in QUESTIONS:
        yield Shown(question, guard.ask(question.question))


def store_path() -> Path:
    """Return where the demo keeps its cases: never among the user's own, which become labels."""
    from platformdirs import user_cache_path

    return user_cache_path("guard") / "demo-reviews.db"
