"""Output of text that guard did not write (answers, ids, names, errors) to a terminal.

Such text can contain terminal commands (escape sequences that move the cursor, set the title or the clipboard), reorder
text (bidirectional controls), or hide words (zero-width and tag characters). Each such character is shown by its code,
such as ``\\x1b`` or ``\\u202e``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from guard.hidden_characters import replace_hidden

if TYPE_CHECKING:
    from rich.text import Text


def visible(text: str) -> str:
    """Return the text with control and hidden characters shown by their codes; line breaks are kept."""
    return replace_hidden(text, _code)


def one_line(text: str) -> str:
    """Return `visible` text in one line, so that it cannot pose as a line of guard's own."""
    return visible(" ".join(text.split()))


def shown(text: object, style: str = "") -> Text:
    """Return a text for rich, laid out by its visible form; markup in it has no effect."""
    from rich.text import Text

    return Text(visible(str(text)), style)


def shaded(text: str, places: Iterable[tuple[int, int]], style: str) -> Text:
    """Return `shown` text in which some places, in order, have a style.

    Args:
        text: an answer.
        places: first characters, and those after the last, in the text as it is.
        style: of rich.
    """
    out, at = shown(""), 0
    for start, end in places:
        out.append_text(shown(text[at:start])).append_text(shown(text[start:end], style))
        at = end
    return out.append_text(shown(text[at:]))


def span_line(span: Mapping[str, Any]) -> str:
    """Return a span in one line, such as ``0.81  Capital: Sydney``."""
    return f"{span['p_wrong']:.2f}  {one_line(span['text'])}"


def scores_line(scores: Mapping[str, Mapping[str, Any]], decides: str | None) -> str:
    """Return the probabilities of an answer in one line, such as ``guard 0.310 (decides), ilis 0.522``."""
    each = (f"{name} {one['p_wrong']:.3f}{' (decides)' if name == decides else ''}" for name, one in scores.items())
    return ", ".join(each)


def say(text: str) -> None:
    """Print `visible` lines on standard output, without wrapping or style."""
    sys.stdout.write(visible(text) + "\n")


def json_visible(text: str) -> str:
    """Return JSON text of the same value with the characters that `visible` would change as JSON escapes."""
    return replace_hidden(text, lambda character: json.dumps(character)[1:-1])


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
