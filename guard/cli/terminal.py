"""Output of text that guard did not write (answers, ids, names, errors) to a terminal.

Such text can contain terminal commands (escape sequences that move the cursor, set the title or the clipboard), reorder
text (bidirectional controls), or hide words (zero-width and tag characters). Each such character is shown by its code,
such as ``\\x1b`` or ``\\u202e``.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

#: Control characters except newline and tab, line separators, lone surrogates, and characters without a glyph
#: (Default_Ignorable_Code_Point: the bidirectional, zero-width, variation and tag characters).
_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# U+FE0F after a symbol selects its emoji form and hides nothing. Answers often contain it.
_EMOJI = "#*0-9\xa9\xae\u203c-\u2059\u2100-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_HIDDEN = re.compile(f"(?<![{_EMOJI}])\ufe0f|[{_UNSEEN}]")

#: Most combining marks on one character; a taller stack would overlap the neighbouring lines.
_MAX_MARKS = 6


def visible(text: str) -> str:
    """Return the text with control and hidden characters shown by their codes; line breaks are kept."""
    return _shown(text, _code)


def one_line(text: str) -> str:
    """Return `visible` text in one line, so that it cannot pose as a line of guard's own."""
    return visible(" ".join(text.split()))


def shown(text: object, style: str = "") -> Text:
    """Return a text for rich, laid out by its visible form; markup in it has no effect."""
    from rich.text import Text

    return Text(visible(str(text)), style)


def scores_line(scores: Mapping[str, Mapping[str, Any]], decides: str | None) -> str:
    """Return the probabilities of an answer in one line, such as ``guard 0.310 (decides), ilis 0.522``."""
    each = (f"{name} {one['p_wrong']:.3f}{' (decides)' if name == decides else ''}" for name, one in scores.items())
    return ", ".join(each)


def say(text: str) -> None:
    """Print `visible` lines on standard output, without wrapping or style."""
    sys.stdout.write(visible(text) + "\n")


def json_visible(text: str) -> str:
    """Return JSON text of the same value with the characters that `visible` would change as JSON escapes."""
    return _shown(text, lambda character: json.dumps(character)[1:-1])


def _shown(text: str, code: Callable[[str], str]) -> str:
    return _unstacked(_HIDDEN.sub(lambda found: code(found.group()), text), code)


def _unstacked(text: str, code: Callable[[str], str]) -> str:
    """Return the text with combining marks beyond `_MAX_MARKS` on one character shown by their codes."""
    if text.isascii():
        return text
    pieces, height = [], 0
    for character in text:
        height = height + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        pieces.append(character if height <= _MAX_MARKS else code(character))
    return "".join(pieces)


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
