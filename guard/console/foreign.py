"""Untrusted text for pages: escaped, with hidden characters made visible."""

from __future__ import annotations

import difflib
import re

from markupsafe import Markup, escape

from guard.hidden_characters import replace_hidden

#: Placeholders of a hidden character until the text is escaped. Neither can remain in a text: they are hidden
#: characters themselves.
_OPEN, _CLOSE = "\x01", "\x02"

#: Stands for invalid bytes and for NUL.
_NOT_TEXT = "\ufffd"

#: Number of characters that are shown at first.
FIRST = 20_000


def foreign(text: str | None) -> Markup:
    """Return an escaped text with a box, showing code and name, for each hidden or control character.

    The box has the code instead of the character, so copying does not copy the character.

    Examples:
        >>> str(foreign("<b>\\u202e"))
        '&lt;b&gt;<span class="esc">U+202E</span>'
    """
    marked = replace_hidden(text or "", lambda character: f"{_OPEN}U+{ord(character):04X}{_CLOSE}")
    marked = marked.replace(_NOT_TEXT, f"{_OPEN}not UTF-8{_CLOSE}")
    page = str(escape(marked)).replace(_OPEN, '<span class="esc">').replace(_CLOSE, "</span>")
    return Markup(page)


def has_hidden(*texts: str | None) -> bool:
    """Return whether a text has characters that `foreign` shows in boxes."""
    return any(text and (_NOT_TEXT in text or replace_hidden(text, lambda _: _OPEN) != text) for text in texts)


def split_long(text: str | None) -> tuple[str, str]:
    """Return the part of a text that is shown at first, and the rest."""
    text = text or ""
    return text[:FIRST], text[FIRST:]


def word_changes(before: str, after: str) -> list[tuple[str, str]]:
    """Return how one text becomes another, word by word: pieces with ``=``, ``-`` or ``+``.

    Examples:
        >>> word_changes("four hours", "six hours")
        [('-', 'four'), ('+', 'six'), ('=', ' hours')]
    """
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    found = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("=", "".join(old[a:b])))
            continue
        found += [(sign, text) for sign, text in (("-", "".join(old[a:b])), ("+", "".join(new[c:d]))) if text]
    return found
