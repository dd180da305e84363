"""Normalises texts, so that answers that differ only in case, accents, articles or punctuation are equal."""

from __future__ import annotations

import re
import unicodedata

from guard.data.number_words import in_digits

_FOLDED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "ð": "d", "þ": "th", "&": " and ", "%": " percent "}
    | {"−": "-", "–": " ", "—": " ", "_": " ", "/": " "}
)  # fmt: skip
#: Words that are dropped.
ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> str:
    """Normalise letter case, accents, articles, punctuation, number words and spacing.

    Signs with a meaning stay: decimal points, minus signs before digits, colons between digits, ``+``,
    ``#``, ``$``.
    """
    text = unicodedata.normalize("NFKD", text).casefold().translate(_FOLDED)
    text = re.sub(r"[\u0300-\u036f]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|(?<=\w)-|-(?!\d)", lambda at: "" if at[0] == "." else " ", text)
    text = re.sub(r"(?<!\d):|:(?!\d)", " ", text)
    kept = (
        character for character in text if character in ".-#:" or not unicodedata.category(character).startswith("P")
    )
    words = in_digits("".join(kept).split())
    # An answer may be nothing but signs ("*") or an article ("A").
    return " ".join([word for word in words if word not in ARTICLES] or words) or text.strip()
