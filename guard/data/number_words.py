"""Convert English and Chinese number words to digits: ``twenty-one`` is 21, ``three hundred million`` is 300000000.

Written here, because grading must not need a package for each language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

_UNITS = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19},
}
_TENS = {
    **{"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90},
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DIGITS = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_CHINESE_DIGITS = {sign: value for value, sign in enumerate("〇一二三四五六七八九")} | {"零": 0, "两": 2, "兩": 2}
_CHINESE_POWERS = {"十": 10, "百": 100, "千": 1000}
_CHINESE_LARGE = {"万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8, "兆": 10**12}
#: A number in Chinese numerals.
CHINESE = re.compile(f"[{''.join(_CHINESE_DIGITS | _CHINESE_POWERS | _CHINESE_LARGE)}]+")

#: Every word that can be part of a number.
WORDS = frozenset({*_UNITS, *_TENS, *_LARGE, "hundred"})


def in_digits(words: Sequence[str]) -> list[str]:
    """Return the words with each number in words, or with a magnitude ("3 million"), replaced by digits.

    Args:
        words: in lower case, hyphens taken apart.
    """
    out: list[str] = []
    at = 0
    while at < len(words):
        value, after = _number_at(words, at)
        out.append(words[at] if value is None else value)
        at = max(after, at + 1)
    return out


def _number_at(words: Sequence[str], at: int) -> tuple[str | None, int]:
    """Return the longest number that begins at a word, and where it ends; None where none begins."""
    total, last_large = Decimal(0), 10**18
    found = None
    while True:
        begin = at if found is None else _past_and(words, at)
        part, after = _below_thousand(words, begin)
        if part is None or (found is not None and words[begin] in _LARGE):
            return found, at
        large = _LARGE.get(words[after]) if after < len(words) else None
        if large is not None and large < last_large:
            total, last_large, at = total + part * large, large, after + 1
            found = _written(total)
        elif found is None or part < last_large:
            return _written(total + part), after
        else:
            return found, at


def _past_and(words: Sequence[str], at: int) -> int:
    """Return the position after the "and" of "two thousand and three"."""
    joined = words[at : at + 1] == ["and"] and at + 1 < len(words) and words[at + 1] in WORDS - set(_LARGE)
    return at + 1 if joined else at


def _below_thousand(words: Sequence[str], at: int) -> tuple[Decimal | None, int]:
    """Return a number below a thousand, or any number in digits; a bare "hundred" or "million" counts as one."""
    if at >= len(words):
        return None, at
    if _DIGITS.fullmatch(words[at]):
        value, after = Decimal(words[at]), at + 1
        if words[after : after + 1] == ["hundred"]:
            return value * 100, after + 1
        return (value, after) if after < len(words) and words[after] in _LARGE else (None, at)
    if words[at] in _LARGE:
        return Decimal(1), at
    small, after = (1, at) if words[at] == "hundred" else _below_hundred(words, at)
    if small is None or words[after : after + 1] != ["hundred"]:
        return (None, at) if small is None else (Decimal(small), after)
    rest, end = _below_hundred(words, _past_and(words, after + 1))
    return (Decimal(small * 100), after + 1) if rest is None else (Decimal(small * 100 + rest), end)


def _below_hundred(words: Sequence[str], at: int) -> tuple[int | None, int]:
    word = words[at] if at < len(words) else ""
    if word in _UNITS:
        return _UNITS[word], at + 1
    if word not in _TENS:
        return None, at
    unit = _UNITS.get(words[at + 1], 0) if at + 1 < len(words) else 0
    return (_TENS[word] + unit, at + 2) if 0 < unit < 10 else (_TENS[word], at + 1)


def _written(value: Decimal) -> str:
    return format(value.normalize(), "f")


def chinese_value(text: str) -> int | None:
    """Return the value of Chinese numerals (``二十一``); None if they are not in the standard order."""
    total = section = 0
    digit: int | None = None
    for sign in text:
        if sign in _CHINESE_DIGITS:
            if digit:
                return None
            digit = _CHINESE_DIGITS[sign]
        elif sign in _CHINESE_POWERS:
            section += (1 if digit is None else digit) * _CHINESE_POWERS[sign]
            digit = None
        else:
            total += (section + (digit or 0)) * _CHINESE_LARGE[sign]
            section, digit = 0, None
    return total + section + (digit or 0)
