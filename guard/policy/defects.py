"""Defects of an answer's form: truncated at a limit, or empty."""

from __future__ import annotations

import unicodedata
from typing import Literal, get_args

from guard.records import FinishReason

#: What makes an answer unfit to be judged by its score alone.
Defect = Literal["truncated", "empty"]

DEFECTS: tuple[Defect, ...] = get_args(Defect)

#: Unicode's categories of what draws nothing by itself: controls, formats, half surrogates, spaces, lone marks.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"})
#: Letters and signs that are drawn as nothing: Hangul fillers, the empty Braille pattern.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def find_defects(text: str, finish_reason: FinishReason | None) -> tuple[Defect, ...]:
    """Return what is wrong with the form of an answer, whatever its score.

    Args:
        text: the whole answer; one without a visible character is ``empty``.
        finish_reason: how it ended; ``length`` makes it ``truncated``. None where no engine reports it.
    """
    cut: tuple[Defect, ...] = ("truncated",) if finish_reason == "length" else ()
    return cut if any(map(_is_visible, text)) else (*cut, "empty")


def _is_visible(character: str) -> bool:
    ignorable = "\U000e0000" <= character <= "\U000e0fff"  # tags, and what is kept free beside them
    return not ignorable and character not in _BLANK and unicodedata.category(character) not in _UNSEEN
