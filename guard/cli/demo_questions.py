"""The demo: a dozen questions, their outcomes, and the benefit of guarding.

The questions and their accepted answers were fixed before any model was asked. They range from what a small model knows
well to what it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guard.data.graders import grade
from guard.data.labelling import is_wrong
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
        outcome: outcome of the guarded call.
    """

    question: Question
    outcome: Outcome

    def right(self, attempt: Attempt) -> bool:
        """Return whether an attempt's answer is an accepted one."""
        return attempt.answer is not None and not is_wrong(self.question, attempt.answer, grade)

    @property
    def first_is_right(self) -> bool:
        """Whether the answer that the caller would get without guard is right."""
        return self.right(self.outcome.attempts[0])

    @property
    def given(self) -> bool:
        """Whether the caller got the model's answer."""
        return self.outcome.action is Action.ACCEPT

    @property
    def given_wrong(self) -> bool:
        """Whether that answer is wrong."""
        return self.given and not self.right(self.outcome.attempts[-1])


@dataclass(frozen=True, slots=True)
class Worth:
    """The benefit of guarding.

    Attributes:
        answers: number of the model's answers, all of which reach the caller without guard.
        wrong: number of wrong ones among these.
        given: number of answers that reach the caller with guard.
        given_wrong: number of wrong ones among these.
        held_right: number of right answers that were held back.
    """

    answers: int
    wrong: int
    given: int
    given_wrong: int
    held_right: int

    @property
    def held(self) -> int:
        """Number of answers that were held back."""
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
    """Return the benefit of guarding these questions."""
    return Worth(
        answers=len(shown),
        wrong=sum(not each.first_is_right for each in shown),
        given=sum(each.given for each in shown),
        given_wrong=sum(each.given_wrong for each in shown),
        held_right=sum(each.first_is_right and not each.given for each in shown),
    )


def run(guard: Guard) -> Iterator[Shown]:
    """Ask each question and yield its outcome."""
    for question in QUESTIONS:
        yield Shown(question, guard.ask(question.question))


def store_path() -> Path:
    """Return the path of the demo's store, apart from the user's own cases, which become labels."""
    from platformdirs import user_cache_path

    return user_cache_path("guard") / "demo-reviews.db"
