"""How long the answers of a calibration were, and whether an answer is of another length or form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from guard.scoring.provenance import Part

#: Share of the calibration answers within the bounds; a few are always much longer than the others.
_SHARE = 0.995


class AnswerBounds(Part):
    """Bounds of the answers that a scorer was fitted on.

    Attributes:
        tokens: most tokens of an answer, the end token included.
        lines: most lines with a letter or a digit.
    """

    tokens: Annotated[int, Field(ge=1)]
    lines: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, texts: Sequence[str], tokens: Sequence[int]) -> Self:
        """Return the bounds of some answers, all but the longest few.

        Examples:
            >>> AnswerBounds.of(["Paris", "one\\ntwo"], [2, 5])
            AnswerBounds(tokens=5, lines=2)
        """
        bounds = [np.quantile(each, _SHARE, method="higher") for each in (tokens, [*map(count_lines, texts)])]
        return cls(tokens=max(1, int(bounds[0])), lines=max(1, int(bounds[1])))

    def why_unlike(self, text: str, tokens: int) -> str | None:
        """Return why an answer is unlike those of the calibration, in words, or None.

        Examples:
            >>> AnswerBounds(tokens=32, lines=1).why_unlike("a\\nb", 40)
            'it has 40 tokens, those of the calibration at most 32; it has 2 lines, those of the calibration at most 1'
        """
        found = {"tokens": (tokens, self.tokens), "lines": (count_lines(text), self.lines)}
        whys = [
            f"it has {count} {name}, those of the calibration at most {most}"
            for name, (count, most) in found.items()
            if count > most
        ]
        return "; ".join(whys) or None


def count_lines(text: str) -> int:
    """Return the number of lines that say something.

    Examples:
        >>> count_lines("a\\n\\n---\\nb")
        2
    """
    return sum(any(map(str.isalnum, line)) for line in text.splitlines())
