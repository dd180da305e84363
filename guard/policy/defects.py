"""Defects of an answer's form: truncated at a limit, empty, or stopped by the policy before its end."""

from __future__ import annotations

import unicodedata
from typing import Literal

from guard.records import FinishReason

#: Defects that keep the score alone from deciding about an answer.
Defect = Literal["truncated", "empty", "stopped"]

#: Those that a policy has a section of the same name for; ``early`` decides about stopped answers.
DEFECTS: tuple[Defect, ...] = ("truncated", "empty")

#: Unicode categories of characters that draw nothing by themselves: controls, formats, surrogates, spaces, marks.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"})
#: Invisible letters and symbols: Hangul fillers, the empty Braille pattern.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def find_defects(text: str, finish_reason: FinishReason | None) -> tuple[Defect, ...]:
    """Return the defects of an answer's form, which do not depend on its score.

    Args:
        text: the whole answer; one without a visible character is ``empty``.
        finish_reason: how it ended; ``length`` makes it ``truncated``, ``early`` makes it ``stopped``, however little
            there is of it. None where no engine reports it.
    """
    if finish_reason == "early":
        return ("stopped",)
    cut: tuple[Defect, ...] = ("truncated",) if finish_reason == "length" else ()
    return cut if any(map(_is_visible, text)) else (*cut, "empty")


def _is_visible(character: str) -> bool:
    ignorable = "\U000e0000" <= character <= "\U000e0fff"  # tags and the unassigned code points beside them
    return not ignorable and character not in _BLANK and unicodedata.category(character) not in _UNSEEN
