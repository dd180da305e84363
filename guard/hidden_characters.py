"""Characters that steer what shows a text, or hide in it: one list, for the terminal and for the browser.

Text that guard did not write can hold commands to a terminal (escape sequences), reorder what is read (bidirectional
controls), or hide words (zero-width and tag characters).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

#: Controls but newline and tab, line separators, lone surrogates, and what Unicode says to draw as nothing
#: (Default_Ignorable_Code_Point: the bidirectional, zero-width, variation and tag characters).
_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# U+FE0F after a symbol asks for its emoji form, and hides nothing there. Answers are full of it.
_EMOJI = "#*0-9\xa9\xae\u203c-\u2059\u2100-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_HIDDEN = re.compile(f"(?<![{_EMOJI}])\ufe0f|[{_UNSEEN}]")

#: Most combining marks on one character; a stack of more draws over the lines above and below.
_MAX_MARKS = 6


def replace_hidden(text: str, code: Callable[[str], str]) -> str:
    """Return the text with each character that steers or hides, and each mark too many, replaced by its code.

    Args:
        text: any text.
        code: what to show for one such character.

    Examples:
        >>> replace_hidden("a\\u202eb", lambda character: f"<{ord(character):X}>")
        'a<202E>b'
    """
    return _unstacked(_HIDDEN.sub(lambda found: code(found.group()), text), code)


def is_blank(text: str) -> bool:
    r"""Return whether nothing of a text can be seen: it is empty, or has blanks and hidden characters only.

    Examples:
        >>> is_blank(" \u200b"), is_blank("reviews.db")
        (True, False)
    """
    return not _HIDDEN.sub("", text).strip()


def _unstacked(text: str, code: Callable[[str], str]) -> str:
    if text.isascii():
        return text
    pieces, height = [], 0
    for character in text:
        height = height + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        pieces.append(character if height <= _MAX_MARKS else code(character))
    return "".join(pieces)
