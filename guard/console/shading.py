"""An answer with its doubt: sentences with their own p(wrong), where a score gives one, and words with their own
probability. Pure: from what the case keeps of the last attempt to what the page shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from typing import Any

#: A word, with what may stand inside one.
_WORD = re.compile(r"\w+(?:[.,'’\-]\w+)*")

#: A word of more tokens than this is shaded token by token: scripts without spaces have no other words.
_MOST_TOKENS = 8

#: A word below each of these probabilities is a level more doubtful.
_WORD_STEPS = (0.9, 0.7, 0.5, 0.3)

#: From these p(wrong) on a sentence has the level beside them.
_SENTENCE_STEPS = ((0.75, 4), (0.5, 3), (0.25, 2))

#: Rows of the table of unsure words.
LISTED = 40


@dataclass(frozen=True, slots=True)
class ShadedText:
    """A piece of an answer.

    Attributes:
        text: the piece.
        level: 0 (at least 90 % probable, or not a word) to 4 (below 30 %).
        probability: that the model gave it after what stands before it; None for what is between words.
    """

    text: str
    level: int = 0
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """A part of an answer that stands on a line of its own: a sentence, or the whole answer.

    Attributes:
        pieces: it, in order.
        p_wrong: the sentence's own; None where there is none, or it is hidden.
        level: 1 to 4 by p_wrong.
        place: of the sentence's first character and of the one after its last, by which it is marked; None where the
            answer has no sentences.
    """

    pieces: tuple[ShadedText, ...]
    p_wrong: float | None = None
    level: int = 1
    place: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Shading:
    """An answer with its doubt.

    Attributes:
        parts: the answer, in order.
        words: whether words have probabilities.
        sentences: whether sentences have a p(wrong).
        unsure: words below 90 %, the least probable first, each with the number of its part from 1.
    """

    parts: tuple[AnswerPart, ...]
    words: bool
    sentences: bool
    unsure: tuple[tuple[int, ShadedText], ...]

    @property
    def has_spans(self) -> bool:
        """Whether the answer has sentences that can be marked."""
        return any(part.place for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Token:
    begin: int
    end: int
    logprob: float


def shade(answer: str, attempts: Sequence[Mapping[str, Any]]) -> Shading:
    """Return an answer with what its last attempt says of words and sentences.

    Args:
        answer: the text that is shown; what the attempt knows of text beyond it is left out.
        attempts: of the case.

    Examples:
        >>> shading = shade("Paris, 1632", [{"tokens": [[5, -0.01], [6, -0.1], [11, -1.5]]}])
        >>> [(piece.text, piece.level) for piece in shading.parts[0].pieces]
        [('Paris', 0), (', ', 0), ('1632', 4)]
    """
    last = attempts[-1] if attempts else {}
    tokens, spans = _tokens(last.get("tokens"), len(answer)), _spans(last.get("spans"), len(answer))
    parts = tuple(_parts(answer, spans, tokens))
    words = [(number, piece) for number, part in enumerate(parts, 1) for piece in part.pieces if piece.level]
    unsure = sorted(words, key=lambda each: each[1].probability or 0.0)[:LISTED]
    return Shading(parts, bool(tokens), bool(spans), tuple(unsure))


def without_doubt(answer: str, attempts: Sequence[Mapping[str, Any]]) -> Shading | None:
    """Return an answer in its sentences, for a reviewer whom no score may lead; None without sentences.

    Args:
        answer, attempts: as for `shade`.
    """
    found = shade(answer, [{"spans": attempts[-1].get("spans")}] if attempts else [])
    parts = tuple(replace(part, p_wrong=None, level=1) for part in found.parts)
    return Shading(parts, words=False, sentences=False, unsure=()) if found.has_spans else None


def _parts(answer: str, spans: list[tuple[int, int, float]], tokens: list[_Token]) -> Iterator[AnswerPart]:
    """Yield the sentences, each with the text up to the next one; without spans the answer is one part."""
    if not spans:
        yield AnswerPart(tuple(_pieces(answer, 0, len(answer), tokens)))
        return
    begins = [0, *(_line_start(answer, end, begin) for (_, end, _), (begin, _, _) in pairwise(spans)), len(answer)]
    for (*place, p_wrong), begin, end in zip(spans, begins, begins[1:], strict=False):
        level = next((level for least, level in _SENTENCE_STEPS if p_wrong >= least), 1)
        yield AnswerPart(tuple(_pieces(answer, begin, end, tokens)), p_wrong, level, (int(place[0]), int(place[1])))


def _line_start(answer: str, end: int, begin: int) -> int:
    """Return where a sentence begins on the page: the mark of a list item stands with it, not after the one before."""
    return answer.rfind("\n", end, begin) + 1 or begin


def _pieces(answer: str, begin: int, end: int, tokens: list[_Token]) -> Iterator[ShadedText]:
    at = begin
    for place, stop, logprob in _words(answer, begin, end, tokens):
        if place > at:
            yield ShadedText(answer[at:place])
        probability = exp(logprob)
        yield ShadedText(answer[place:stop], sum(probability < step for step in _WORD_STEPS), probability)
        at = stop
    if at < end:
        yield ShadedText(answer[at:end])


def _words(answer: str, begin: int, end: int, tokens: list[_Token]) -> Iterator[tuple[int, int, float]]:
    """Yield begin, end and log-probability of each word that tokens are known of."""
    first = 0
    for word in _WORD.finditer(answer, begin, end):
        while first < len(tokens) and tokens[first].end <= word.start():
            first += 1
        own = []
        for token in tokens[first:]:
            if token.begin >= word.end():
                break
            own.append(token)
        if len(own) > _MOST_TOKENS:
            for token in own:
                yield max(token.begin, word.start()), min(token.end, word.end()), token.logprob
        elif own:
            yield word.start(), word.end(), sum(token.logprob for token in own)


def _tokens(kept: Any, length: int) -> list[_Token]:
    """Return the tokens within a text; none where what is kept has another form."""
    found: list[_Token] = []
    begin = 0
    for each in kept if isinstance(kept, Sequence) else ():
        try:
            end, logprob = int(each[0]), float(each[1])
        except (IndexError, KeyError, TypeError, ValueError):
            return []
        if begin < end and begin < length:
            found.append(_Token(begin, min(end, length), min(logprob, 0.0)))
        begin = end
    return found


def _spans(kept: Any, length: int) -> list[tuple[int, int, float]]:
    """Return begin, end and p(wrong) of the sentences within a text, in order; none where there are none."""
    found = [
        (int(each["start"]), int(each["end"]), float(each["p_wrong"]))
        for each in (kept if isinstance(kept, Sequence) else ())
        if isinstance(each, Mapping) and each.get("p_wrong") is not None
    ]
    return sorted(span for span in found if 0 <= span[0] < span[1] and span[0] < length)
