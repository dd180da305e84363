"""Where an answer was cut, and whether a retry could get more of it."""

from __future__ import annotations

from dataclasses import dataclass

from guard.policy.document import Retry


@dataclass(frozen=True, slots=True)
class Truncation:
    """Where an answer was cut, and how much room a retry could have.

    Attributes:
        tokens: tokens of the answer.
        limit: token limit of the attempt, within the budget.
        wanted: the same without the budget; a retry has no lower limit.
        left: most tokens that the budget and the context leave for another answer.
        repeats: whether a greedy retry without an instruction would begin with the same tokens.
    """

    tokens: int
    limit: int
    wanted: int
    left: int
    repeats: bool = False

    @property
    def reason(self) -> str:
        """What cut the answer, in words."""
        if self.tokens < self.limit:
            return f"The answer is cut after {self.tokens} tokens, where the context of the model ends"
        return f"The answer is cut at its limit of {self.limit} tokens"

    @property
    def fix(self) -> str:
        """What makes room for a whole answer."""
        if self.tokens < self.limit:
            return "shorten the prompt, or raise context_tokens"
        return "raise max_tokens" if self.limit >= self.wanted else "raise the policy's budget.tokens"

    def why_in_vain(self, retry: Retry) -> str | None:
        """Return why a retry would not get more of the answer, or None.

        Examples:
            >>> cut = Truncation(tokens=200, limit=200, wanted=200, left=9000, repeats=True)
            >>> cut.why_in_vain(Retry(temperature=0, max_tokens=128))
            'would repeat it with no more room'
            >>> cut.why_in_vain(Retry(temperature=0, max_tokens=400)) is None
            True
        """
        same = self.repeats and retry.temperature == 0 and retry.instruction is None
        room = min(max(self.wanted, retry.max_tokens or 0), self.left)
        return "would repeat it with no more room" if same and room <= self.tokens else None
