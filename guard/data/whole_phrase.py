"""Checks whether an accepted answer stands alone in a sentence or is part of a longer name.

"Paris" is a part of "Paris, Texas", "Port Paris", "Treaty of Paris" and "Paris Hilton"; "iron" of "iron oxide".
Its neighbours must be punctuation, function words, titles or words of the question; in doubt the name is longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from guard.data.normalised import ARTICLES, normalise
from guard.data.phrase_words import (
    BEFORE,
    COMPOUNDS,
    CONTINENTS,
    COPULAS,
    COUNTRIES,
    DESCRIPTIONS,
    FOLLOWING,
    HARMLESS,
    KINDS,
    MADE_OF,
    NO_ADVERBS,
    OTHER_COUNTRIES,
    OTHER_ONES,
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
        text: the word as written.
        plain: normalised; "" for an article.
        gap: text between the previous word and this one.
        first: whether it begins the sentence.
    """

    text: str
    plain: str
    gap: str
    first: bool

    @property
    def is_name(self) -> bool:
        """Whether it begins with a capital or is a number."""
        return self.text[:1].isupper() or self.text[:1].isdigit()


def is_whole_phrase(sentence: str, words: Sequence[str], *, asked: str) -> bool:
    """Return whether an accepted answer stands in a sentence as a whole phrase, at least once.

    Args:
        sentence: as the model wrote it.
        words: of the accepted answer, normalised.
        asked: the question; its words do not turn the answer into another name.

    Examples:
        >>> is_whole_phrase("It is Paris.", ["paris"], asked="")
        True
        >>> is_whole_phrase("It is Paris, Texas.", ["paris"], asked="")
        False
    """
    if any(word[0].isdigit() for word in words):  # number words are read across words; see `_has_neighbour`
        return True
    said, context = _split_words(sentence), frozenset(normalise(asked).split())
    around = _places_around(words, context)
    places = list(_places(said, words))
    return not places or any(
        _left_is_free(said, start, context) and _right_is_free(said, start, end, context, around)
        for start, end in places
    )


def _places_around(words: Sequence[str], asked: frozenset[str]) -> frozenset[str]:
    """Return the countries and continents that may follow an answer as the place where it is: "Málaga, Spain".

    None follows a continent, and no country another country: "Georgia, France" names two places.
    """
    name = " ".join(words)
    if name in CONTINENTS or "continent" in asked:
        return frozenset()
    if name in COUNTRIES | OTHER_COUNTRIES or "country" in asked:
        return CONTINENTS | ({"usa"} if name == "georgia" and "country" not in asked else set())
    return COUNTRIES | CONTINENTS | {"usa"}


@lru_cache(maxsize=64)
def _split_words(sentence: str) -> tuple[_Word, ...]:
    sentence = sentence.replace("&", " and ").replace("%", " percent ")
    found: list[_Word] = []
    end = 0
    for match in _WORD.finditer(sentence):
        plain = normalise(match[0])
        found.append(_Word(match[0], "" if plain in ARTICLES else plain, sentence[end : match.start()], not found))
        end = match.end()
    return (*found, _Word("", "", sentence[end:], False))


def _places(said: Sequence[_Word], words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the positions of the words: the first word's and the one after the last."""
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
    if _JOINED.fullmatch(word.gap):
        return at > 0 and _is_compound(said[at - 1].plain, word.plain)
    return (has_article and not word.is_name) or (
        _may_stand_before(word, said[start], asked) and not _is_another(said, at)
    )


def _is_compound(first: str, second: str) -> bool:
    """Return whether two joined words describe a name: "the well-known Mozart", "the German-born Einstein"."""
    return second == "born" or f"{first} {second}" in COMPOUNDS


def _is_another(said: Sequence[_Word], at: int) -> bool:
    """Return whether a word of the phrase that ends at a place says that it is another one: "the other composer"."""
    while at >= 0 and said[at].plain and said[at].plain not in COPULAS:
        if said[at].plain in OTHER_ONES:
            return True
        at -= 1
    return False


def _is_no_list(said: Sequence[_Word], at: int, gap: str, asked: frozenset[str]) -> bool:
    """Return whether the text before a comma or dash is not the first of two names."""
    word = said[at]
    known = word.plain in REPLIES | KINDS | asked or _is_adverb(word)
    return not word.is_name or known or ":" in gap or "." in gap or (at > 0 and not said[at - 1].plain)


def _may_stand_before(word: _Word, gold: _Word, asked: frozenset[str]) -> bool:
    plain = word.plain
    if plain in PREFIXES and plain not in asked and not (word.text.islower() and plain.endswith("ern")):
        return False
    if plain in BEFORE | COPULAS | KINDS | HARMLESS | REPLIES | asked or _is_adverb(word):
        return True
    # What a small word before a name says of it: "the gifted Mozart". An unknown one may make another of it.
    return gold.is_name and plain in DESCRIPTIONS and (word.text.islower() or word.first)


def _is_adverb(word: _Word) -> bool:
    return word.plain.endswith("ly") and word.plain not in NO_ADVERBS


# -- what stands behind ------------------------------------------------------------------------


def _right_is_free(said: Sequence[_Word], start: int, end: int, asked: frozenset[str], around: frozenset[str]) -> bool:
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
        return not re.search("[,;(]", gap) or has_article or in_brackets or _may_follow_comma(word, asked, around)
    if word.plain in PARTICLES:
        place = next((other for other in said[at + 1 :] if other.plain not in PARTICLES), said[-1])
        return (not place.text[:1].isupper() and word.plain != "of") or place.plain in around | asked
    if has_article:
        return not word.text[:1].isupper()
    return _may_follow(said, start, at, asked)


def _may_follow_comma(word: _Word, asked: frozenset[str], around: frozenset[str]) -> bool:
    """Return whether a word after "Paris," is neither a second name nor the name of another place: "Paris, Texas"."""
    is_formula = len(word.text) < 4 and word.text[-1:].isdigit() and not word.text.isdigit()
    known = (FOLLOWING - OTHER_COUNTRIES) | KINDS | REPLIES | around | asked
    return not word.is_name or is_formula or word.plain in known


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
