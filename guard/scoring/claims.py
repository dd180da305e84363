"""The claim of a span: its new numbers, or else its new words. The choice of tokens decides how well a score ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from guard.scoring.spans import Extent

#: A number that belongs to no word, such as 42, 1,000.5 or the 5 of 5kg, but not the 2 of H2O.
_NUMBER = re.compile(r"(?<!\w)(?:\d+(?:[.,]\d+)*)")
_WORD = re.compile(r"[^\W_]*[^\W\d_][^\W_]*(?:['\u2019-][^\W_]+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?:\D|$))")


def find_claims(text: str, spans: Sequence[Extent], question: str) -> tuple[tuple[Extent, ...], ...]:
    """Return the claim of each span: its numbers that occur neither in the question nor in the answer so far.

    Without such numbers, the claim is its words that occur in neither. The rule does not depend on the format: in
    ``6 * 7 = 42`` it finds 42, in ``Capital: Canberra`` both words.

    Args:
        text: the answer.
        spans: of the answer, in order.
        question: what was asked, and whatever else the model was given to read.

    Returns:
        one claim for each span, in order; empty where nothing is new.

    Examples:
        >>> text = "6 * 7 = 42\\nThe answer is 42"
        >>> claims = find_claims(text, [(0, 10), (11, 27)], "What is 6 times 7?")
        >>> [[text[start:end] for start, end in claim] for claim in claims]
        [['42'], ['The', 'answer']]
    """
    numbers = _new(_NUMBER, _plain_number, text, spans, question)
    words = _new(_WORD, str.casefold, text, spans, question)
    return tuple(found or other for found, other in zip(numbers, words, strict=True))


def _new(
    pattern: re.Pattern[str], form: Callable[[str], str], text: str, spans: Sequence[Extent], question: str
) -> list[tuple[Extent, ...]]:
    """Return the matches in each span that are new there."""
    known = {form(each) for each in pattern.findall(question)}
    matches = [(each.span(), form(each.group())) for each in pattern.finditer(text)]
    found, at = [], 0
    for start, end in spans:
        while at < len(matches) and matches[at][0][0] < start:
            known.add(matches[at][1])
            at += 1
        until = at
        while until < len(matches) and matches[until][0][0] < end:
            until += 1
        found.append(tuple(place for place, written in matches[at:until] if written not in known))
    return found


def _plain_number(written: str) -> str:
    return _THOUSANDS.sub("", written)
