"""Parts of a longer answer that can be right or wrong on their own: lines, list items and sentences.

This module finds lines; the library sentencex finds sentences within a line (the extra ``spans``): rules for some 300
languages, maintained by Wikimedia, positions in characters, tens of microseconds an answer.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

from guard.errors import missing_extra

#: First character, and the one after the last.
Extent = tuple[int, int]

#: Version of the rules by which spans and claims are found; a fitted model belongs to one.
RULES: Literal[1] = 1

_LINE = re.compile(r"[^\n\r\x0b\x0c\x85\u2028\u2029]+")
_WHOLE_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_MARKER = re.compile(r"\s*(?:(?:[-*+\u2022\u2013]|\d{1,3}[.)]|[A-Za-z][.)]|\(\w{1,3}\)|#{1,6}|>+)\s+)*")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_ENDS_WITHIN = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u061f\u0964](?=.*\w)", re.DOTALL)


@cache
def can_find_spans() -> bool:
    """Return whether the extra ``spans`` is installed.

    Examples:
        >>> can_find_spans()
        True
    """
    return importlib.util.find_spec("sentencex") is not None


def find_spans(text: str) -> tuple[Extent, ...]:
    """Return the spans of an answer, in order, as positions of their first character and after their last.

    Each line is a span; a line of prose has one span per sentence. The marks of lists, headings and quotations are left
    out, and so is what has no letter and no digit. Lines of code and of tables are not split.

    Raises:
        GuardError: the extra ``spans`` is not installed, and there is prose.

    Examples:
        >>> text = "Australia:\\n- Capital: Canberra\\nIt has 26 million people. Dr. Smith lives there."
        >>> [text[start:end] for start, end in find_spans(text)]
        ['Australia:', 'Capital: Canberra', 'It has 26 million people.', 'Dr. Smith lives there.']
    """
    found = (span for line in _lines(text) for span in (_sentences(text, *line[:2]) if line[2] else [line[:2]]))
    return tuple(span for span in (_trimmed(text, *each) for each in found) if _says_something(text, *span))


def without_spans(text: str, spans: Sequence[Extent]) -> str:
    """Return a text without some of its spans: whole lines with their marks, and sentences with the space behind them.

    Examples:
        >>> text = "1. Paris. It is big.\\n2. Lyon.\\n3. Nice."
        >>> without_spans(text, [(10, 20), (24, 29)])
        '1. Paris.\\n3. Nice.'
    """
    kept = []
    for line in _WHOLE_LINE.finditer(text):
        start, end = line.span()
        cut = [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
        rest = _without(line.group(), cut)
        if not cut or _says_more(rest):
            kept.append(rest)
    return "".join(kept).rstrip() if len(kept) < len(_WHOLE_LINE.findall(text)) else "".join(kept)


def _without(line: str, places: Sequence[Extent]) -> str:
    """Return a line without these places and the space around them."""
    for start, end in sorted(places, reverse=True):
        after = line[end:]
        line = line[:start] + (after.lstrip(" ") if line[:start].endswith(" ") or not line[:start] else after)
    ending = line[len(line.rstrip("\r\n")) :]
    return line.removesuffix(ending).rstrip(" ") + ending if places else line


def _says_more(line: str) -> bool:
    """Return whether a line has more than the mark of a list."""
    marker = _MARKER.match(f"{line.rstrip()} ")
    return any(character.isalnum() for character in line[marker.end() if marker else 0 :])


def _lines(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield lines without their marks, and whether each is prose that may have several sentences."""
    in_code = False
    for line in _LINE.finditer(text):
        if _FENCE.match(line.group()):
            in_code = not in_code
            continue
        marker = _MARKER.match(line.group())
        begin = line.start() + (marker.end() if marker and not in_code else 0)
        is_table = line.group().lstrip().startswith("|")
        yield begin, line.end(), not in_code and not is_table and bool(_ENDS_WITHIN.search(text, begin, line.end()))


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    try:
        from sentencex import get_sentence_boundaries
    except ImportError as error:
        raise missing_extra("sentencex", "spans") from error
    for sentence in get_sentence_boundaries("en", text[start:end]):
        yield start + sentence["start_index"], start + sentence["end_index"]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    within = text[start:end]
    return start + len(within) - len(within.lstrip()), start + len(within.rstrip())


def _says_something(text: str, start: int, end: int) -> bool:
    return any(character.isalnum() for character in text[start:end])
