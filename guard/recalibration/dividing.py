"""Which reviewed answers fit a scorer, and which are held out for its certificate. Pure.

Audits check a share of the accepted answers, people decide all that are escalated: together the verdicts are a sample
of the answers in which escalated ones are too many. The held-out part undoes that. An answer is drawn for it with a
probability in proportion to the number of answers that it stands for, so every answer had the same chance to get there,
and the part can be counted without weights: an exact binomial test holds for it.

The draw is a hash of the question, so rows that come later do not move others. All other answers fit the scorer, except
those to a held-out question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.data.questions import LabelledResponse, position, question_identity

#: Share of the questions whose answers may be held out.
HELD_OUT = 0.5


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer with a verdict.

    Attributes:
        content: the row as `guard.review.store.Store.labelled` gives it.
        row: the same, read as labelled data.
    """

    content: Mapping[str, Any]
    row: LabelledResponse

    @property
    def route(self) -> str | None:
        """Route of the call, or None."""
        route: str | None = self.content["route"]
        return route

    @property
    def is_audit(self) -> bool:
        """Whether the answer was accepted and drawn to be checked; otherwise it was escalated."""
        return bool(self.content["kind"] == "audit")


@dataclass(frozen=True, slots=True)
class DividedAnswers:
    """Reviewed answers by their use; no question is in two parts.

    Attributes:
        fit: answers that fit the scorer.
        held_out: by route, a random sample of the answers that got verdicts or could have.
        known: number of answers to questions of the old labels; they are in neither part.
        undrawn: number of answers to held-out questions that were not drawn; they are in neither part.
    """

    fit: tuple[JudgedAnswer, ...]
    held_out: Mapping[str | None, tuple[JudgedAnswer, ...]]
    known: int
    undrawn: int


def divide(
    answers: Sequence[JudgedAnswer], *, known: Collection[str] = (), share: float = HELD_OUT, seed: int = 0
) -> DividedAnswers:
    """Divide reviewed answers into those that fit a scorer and those that are held out.

    Args:
        answers: of any routes.
        known: `guard.data.questions.question_identity` of the old labels, which fit the scorer.
        share: of the questions whose answers may be held out, above 0 and below 1.
        seed: of the draw.

    Examples:
        >>> divide([]).fit
        ()
    """
    fresh = [each for each in answers if question_identity(each.row) not in known]
    largest = _largest_weights(fresh)
    drawn = [each for each in fresh if _place(each, seed) < share * each.row.weight / largest[each.route]]
    questions = {question_identity(each.row) for each in drawn}
    fit = tuple(each for each in fresh if question_identity(each.row) not in questions)
    held_out = {route: tuple(each for each in drawn if each.route == route) for route in largest}
    return DividedAnswers(fit, held_out, len(answers) - len(fresh), len(fresh) - len(fit) - len(drawn))


def _largest_weights(answers: Iterable[JudgedAnswer]) -> dict[str | None, float]:
    found: dict[str | None, float] = {}
    for each in answers:
        found[each.route] = max(each.row.weight, found.get(each.route, 0.0))
    return found


def _place(answer: JudgedAnswer, seed: int) -> float:
    """Return the place of an answer's question in the draw, independent of its place among fit and test questions."""
    return position(seed, f"held out\0{question_identity(answer.row)}")
