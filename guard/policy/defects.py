"""What is wrong with the form of an answer: cut at a limit, or empty."""

from __future__ import annotations

from typing import Literal, get_args

from guard.records import FinishReason

#: What makes an answer unfit to be judged by its score alone.
Defect = Literal["truncated", "empty"]

DEFECTS: tuple[Defect, ...] = get_args(Defect)


def defects_of(text: str, finish_reason: FinishReason | None) -> tuple[Defect, ...]:
    """Return what is wrong with the form of an answer, whatever its score.

    Args:
        text: the whole answer; one that is blank is ``empty``.
        finish_reason: how it ended; ``length`` makes it ``truncated``. None where no engine reports it.
    """
    cut: tuple[Defect, ...] = ("truncated",) if finish_reason == "length" else ()
    return cut if text.strip() else (*cut, "empty")
