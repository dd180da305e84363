"""What the share of wrong answers alone forces, whatever the score: some questions must go without an answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from guard.policy.bounds import lower_bound, percent


def forced_abstention(wrong: float, risk: float) -> float:
    """Return the smallest share of questions without an accepted answer at which a risk can be met.

    A perfect score accepts all right answers, and wrong ones up to the risk.

    Args:
        wrong: share of the questions that get no right answer, from 0 to 1.
        risk: largest share of wrong answers among the accepted, from 0 to below 1.

    Examples:
        >>> round(forced_abstention(0.24, 0.05), 12)
        0.2
        >>> forced_abstention(0.03, 0.05)
        0.0
    """
    return max(0.0, (wrong - risk) / (1.0 - risk))


@dataclass(frozen=True, slots=True)
class BaseRate:
    """How many of the certification questions get no right answer at any attempt.

    Attributes:
        rows: number of questions.
        never_right: number of these whose every attempt is wrong.
        risk, confidence: of the guarantee that was asked for.
    """

    rows: int
    never_right: int
    risk: float
    confidence: float

    @property
    def forced(self) -> float:
        """Share of these questions that must go without an answer."""
        return forced_abstention(self.never_right / self.rows, self.risk)

    @property
    def forced_bound(self) -> float:
        """Share of all such questions that must, at the guarantee's confidence: the lower end of a one-sided bound."""
        return forced_abstention(lower_bound(self.never_right, self.rows, self.confidence), self.risk)

    def explain(self) -> str:
        """Return what the share of wrong answers forces, in one sentence.

        Examples:
            >>> BaseRate(1000, 240, 0.05, 0.9).explain()
            'Of the 1,000 questions, 24 % get no right answer, so at least 20 % must go without an accepted one at a \
risk of 5 %, whatever the score (of all such questions at least 18.17 %, with confidence 90 %).'
        """
        share = f"Of the {self.rows:,} questions, {percent(self.never_right / self.rows)} get no right answer"
        if not self.forced:
            return f"{share}, which by itself rules out no coverage at a risk of {percent(self.risk)}."
        return (
            f"{share}, so at least {percent(self.forced)} must go without an accepted one at a risk of "
            f"{percent(self.risk)}, whatever the score (of all such questions at least {percent(self.forced_bound)}, "
            f"with confidence {percent(self.confidence)})."
        )
