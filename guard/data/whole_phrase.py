"""Whether an accepted answer stands in a sentence on its own, or is a part of a longer name.

"Paris" is a part of "Paris, Texas", "Port Paris", "Treaty of Paris" and "Paris Hilton"; "iron" of "iron oxide".
What stands beside it must be a sign, a word of grammar, a title or a word of the question; in doubt the name is longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from guard.data.normalised import ARTICLES, normalise
from guard.data.phrase_words import (
    BEFORE,
    COPULAS,
    COUNTRIES,
    FOLLOWING,
    HARMLESS,
    KINDS,
    MADE_OF,
    NO_ADVERBS,
    OTHERS,
    PARTICLES,
    PREFIXES,
    REPLIES,
    SUFFIXES,
    TOWARDS,
    VERBS,
)

_WORD = re.compile(r"\w(?:[\w'’ʼ]|\.(?=\w))*")
_SPACES = re.compile(r"[\s\"“”„«»‘’'`*\]\[「」『』!]*")
_JOINED = re.compile(r"[-‐‑/_]")


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a sentence.

    Attributes:
        text: as it is written.
        plain: normalised; "" for an article.
        gap: what stands between the word before and this one.
        first: it begins the sentence.
    """

    text: str
    plain: str
    gap: str
    first: bool

    @property
    def is_name(self) -> bool:
        """It begins with a capital, or is a number."""
        return self.text[:1].isupper() or self.text[:1].isdigit()


def is_whole_phrase(sentence: str, words: Sequence[str], *, asked: str) -> bool:
    """Return whether an accepted answer stands in a sentence as a whole phrase, at least once.

    Args:
        sentence: as the model wrote it.
        words: of the accepted answer, normalised.
        asked: the question, whose words make no other name of the answer.

    Examples:
        >>> is_whole_phrase("It is Paris.", ["paris"], asked="")
        True
        >>> is_whole_phrase("It is Paris, Texas.", ["paris"], asked="")
        False
    """
    if any(word[0].isdigit() for word in words):  # number words are read across words; see `_has_neighbour`
        return True
    said, context = _words_of(sentence), frozenset(normalise(asked).split())
    places = list(_places(said, words))
    return not places or any(
        _left_is_free(said, start, context) and _right_is_free(said, start, end, context) for start, end in places
    )


@lru_cache(maxsize=64)
def _words_of(sentence: str) -> tuple[_Word, ...]:
    sentence = sentence.replace("&", " and ").replace("%", " percent ")
    found: list[_Word] = []
    end = 0
    for match in _WORD.finditer(sentence):
        plain = normalise(match[0])
        found.append(_Word(match[0], "" if plain in ARTICLES else plain, sentence[end : match.start()], not found))
        end = match.end()
    return (*found, _Word("", "", sentence[end:], False))


def _places(said: Sequence[_Word], words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the words stand: the first word's place and the place behind the last."""
    for start, word in enumerate(said):
        end, left = start, list(words)
        while word.plain and left and end < len(said):
            plain = said[end].plain.split()
            if left[: len(plain)] != plain:
                break
            left, end = left[len(plain) :], end + 1
        if word.plain and not left:
            yield start, end


# -- what stands before ------------------------------------------------------------------------


def _left_is_free(said: Sequence[_Word], start: int, asked: frozenset[str]) -> bool:
    gap, at = said[start].gap, start - 1
    while at >= 0 and not said[at].plain:
        gap, at = said[at].gap + gap, at - 1
    if at < 0:
        return True
    word, has_article = said[at], at < start - 1
    if _JOINED.search(said[start].gap.strip(" ")) and " " not in said[start].gap:
        return False
    if not _SPACES.fullmatch(gap) and not (gap.strip() == "." and len(word.text) < 4):
        return _is_no_list(said, at, gap, asked)
    if word.plain in {"of", "de", "von", "di", "du"}:
        return at == 0 or said[at - 1].plain in MADE_OF | asked
    if word.plain == "to":
        return at == 0 or said[at - 1].plain in TOWARDS | asked
    if word.plain == "like":
        return at > 0 and said[at - 1].plain in {"looks", "seems", "sounds", "feels"}
    if word.plain in OTHERS and not (word.plain == "as" and at > 0 and said[at - 1].text.islower()):
        return False
    return (has_article and not word.is_name) or _may_stand_before(word, said[start], asked)


def _is_no_list(said: Sequence[_Word], at: int, gap: str, asked: frozenset[str]) -> bool:
    """Return whether what stands before a comma or dash is not the first of two names."""
    word = said[at]
    known = word.plain in REPLIES | KINDS | asked or _is_adverb(word)
    return not word.is_name or known or ":" in gap or "." in gap or (at > 0 and not said[at - 1].plain)


def _may_stand_before(word: _Word, gold: _Word, asked: frozenset[str]) -> bool:
    plain = word.plain
    if plain in PREFIXES and plain not in asked and not (word.text.islower() and plain.endswith("ern")):
        return False
    if plain in BEFORE | COPULAS | KINDS | HARMLESS | REPLIES | asked or _is_adverb(word):
        return True
    # A small word before a name is an adjective or a profession: "the great Mozart".
    is_verb = plain in VERBS or (plain.endswith("ed") and plain not in {"renowned", "famed", "celebrated"})
    return gold.is_name and not gold.first and word.text.islower() and not is_verb


def _is_adverb(word: _Word) -> bool:
    return word.plain.endswith("ly") and word.plain not in NO_ADVERBS


# -- what stands behind ------------------------------------------------------------------------


def _right_is_free(said: Sequence[_Word], start: int, end: int, asked: frozenset[str]) -> bool:
    at, gap = end, said[end].gap
    while at < len(said) - 1 and not said[at].plain:
        at += 1
        gap += said[at].gap
    word, has_article = said[at], at > end
    if not word.text:
        return not _JOINED.match(said[end].gap)
    if not has_article and _JOINED.search(gap) and not gap.startswith(" "):
        return False
    if not _SPACES.fullmatch(gap):
        if "+" in gap:
            return False
        in_brackets = "(" in gap and word.text[:1].isdigit()  # "(1564-1616)"
        return not re.search("[,;(]", gap) or has_article or in_brackets or _may_follow_comma(word, asked)
    if word.plain in PARTICLES:
        place = next((other for other in said[at + 1 :] if other.plain not in PARTICLES), said[-1])
        return (not place.text[:1].isupper() and word.plain != "of") or place.plain in COUNTRIES | asked
    if has_article:
        return not word.text[:1].isupper()
    return _may_follow(said, start, at, asked)


def _may_follow_comma(word: _Word, asked: frozenset[str]) -> bool:
    """Return whether a word behind "Paris," is neither a second name nor another place's: "Paris, Texas"."""
    is_formula = len(word.text) < 4 and word.text[-1:].isdigit() and not word.text.isdigit()
    return not word.is_name or is_formula or word.plain in FOLLOWING | KINDS | REPLIES | COUNTRIES | asked


def _may_follow(said: Sequence[_Word], start: int, at: int, asked: frozenset[str]) -> bool:
    word = said[at]
    if word.plain in SUFFIXES or word.text[:1].isdigit():
        return False
    if word.plain in FOLLOWING | COPULAS | asked:
        return True
    if word.is_name or any(other.plain in COPULAS | {"in"} for other in said[:start]):
        return False
    behind = said[at + 1]
    is_verb = word.plain in VERBS or word.plain.endswith(("ed", "s"))
    return is_verb and bool(behind.text) and behind.plain not in COPULAS
