"""Reads the number that an answer states, and compares numbers.

In doubt there is none: denials, alternatives, ranges, bounds, times and formulas do not state a number.
docs/reference/data.md lists the supported forms.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass

from guard.data.doubts import CONJUNCTIONS, doubted, taken_back
from guard.data.number_labels import counts_nothing, without_days
from guard.data.number_words import CHINESE, chinese_value, in_digits

#: Largest relative difference between equal numbers.
_RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class StatedNumber:
    """A number as it was written.

    Attributes:
        value: without its unit.
        percent: a percent sign follows.
        unit: that follows, in one spelling; "" for none that is known here.
    """

    value: float
    percent: bool
    unit: str


# -- how numbers are written -------------------------------------------------------------------

_MAGNITUDES: tuple[tuple[str, float], ...] = (
    (r"hundred", 1e2),
    (r"thousand|tausend|mille|mil|tusen|tysi[aą]c\w*|тысяч\w*", 1e3),
    (r"millions?|millionen|mio|mln|millón|millones|milhão|milhões|milion[ei]?|miljo\w+|миллион\w*|млн", 1e6),
    (r"billions?|milliarden?|milliards?|miliard\w*|mrd|bilhão|bilhões|миллиард\w*|млрд", 1e9),
    (r"trillions?|billionen|billones|billón", 1e12),
    (r"lakhs?", 1e5),
    (r"crores?", 1e7),
    (r"dozens?", 12.0),
)
#: Glued to the digits: "5k".
_SUFFIXES = {"k": 1e3, "K": 1e3, "mn": 1e6, "M": 1e6, "bn": 1e9, "B": 1e9, "T": 1e12, "tn": 1e12}
_CJK_MAGNITUDES = {"百": 1e2, "千": 1e3, "万": 1e4, "萬": 1e4, "만": 1e4, "億": 1e8, "亿": 1e8, "억": 1e8, "兆": 1e12}
_MAGNITUDE_WORDS = "|".join(words for words, _ in _MAGNITUDES)

NUMBER = re.compile(
    rf"""(?:(?:(?<![\w.,)])|(?<=[$€£¥]))(?P<sign>[-+−]\s?))?
    [$€£¥]?\s?
    (?:(?P<whole>\d{{1,9}})\s(?=\d{{1,9}}/\d))?
    (?P<digits>(?<!\d)\d{{1,3}}(?:,\d{{3}})+(?![\d])(?:\.\d+)?
      |(?<!\d)\d{{1,3}}(?:[ ]\d{{3}})+(?!\d)(?:[.,]\d+)?
      |(?<!\d)\d{{1,3}}(?:['’]\d{{3}})+(?!\d)(?:[.,]\d+)?
      |(?<!\d)\d{{1,3}}(?:\.\d{{3}})+,\d+
      |(?<!\d)\d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\d)
      |\d+[.,]\d+|\d+|\.\d+)
    (?P<exponent>[eE][-+]?\d+|\s?[x×*·⋅]\s?10\s?\^\s?\{{?[-+−]?\d+\}}?)?
    (?:\s?/\s?(?P<under>\d+(?:\.\d+)?)(?![\d/]))?
    (?:\s?(?P<percent>%|percent\b)|\s?(?P<magnitude>{_MAGNITUDE_WORDS})\b
      |(?P<suffix>k|K|mn|M|bn|B|tn|T)(?![^\W\d_])|\s?(?P<cjk>[百千万萬만億亿억兆]))?""",
    re.VERBOSE | re.IGNORECASE,
)
_GROUPED_BY_COMMA = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DIGIT_COMMA = re.compile(r"\d+,\d+")

_MINUS_WORD = re.compile(r"\b(?:minus|negative)\s+(?=[\d.$€£¥])", re.IGNORECASE)
_SUPERSCRIPT = re.compile(r"[⁺⁻⁰¹²³⁴-⁹]+")
_POWER_OF_TEN = re.compile(r"(?<![\d.,x×*·⋅] )(?<![\d.,x×*·⋅])10\s?\^\s?\{?([-+]?\d{1,3})\}?")


def is_number(text: str) -> bool:
    """Return whether a text is a number in digits and nothing else."""
    return NUMBER.fullmatch(text.strip()) is not None


def same_number(said: StatedNumber, gold: StatedNumber) -> bool:
    """Return whether two numbers are equal within a millionth and have no different units.

    A percent sign on one side only is taken for either meaning (50 or 0.5).
    """
    if said.unit and gold.unit and said.unit != gold.unit:
        return False
    candidates = [said.value]
    if said.percent != gold.percent:
        candidates.append(said.value / 100 if said.percent else said.value * 100)
    return any(math.isclose(value, gold.value, rel_tol=_RELATIVE_TOLERANCE) for value in candidates)


# -- which number is stated --------------------------------------------------------------------

_MARK = re.compile(r"(?:####|\\boxed\s*\{|\banswer\s*(?:is\b|:|=)|\btotal\s+is\b)", re.IGNORECASE)
_NO_ANSWER = re.compile(
    r"\b(?:i (?:do not|don['’]?t) know|no idea|i(?: a|['’])m not sure|unable to|(?:can(?:not|['’]?t)"
    r"|can not) (?:answer|say|tell))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[!?。！？]|\.(?=\s|$)")
_BETWEEN = re.compile(
    r"\b(?:nearly|almost|between|zwischen|entre|tra|fra|mellan|mellem|между|over|under|above|below)\b", re.I
)
#: Text that makes the digits after it a part of something else: a name, an exponent, an index.
_PART_BEFORE = re.compile(r"(?:[^\W\d_぀-ヿ㐀-鿿가-힣][-‐]?|[_^]\{?)$")
_JOINED = "|".join(sorted(CONJUNCTIONS))
#: Text that makes the number after it a range, a list, a bound, a time or a term.
_MORE_BEFORE = re.compile(
    rf"""(?:\d[.,:'’]|\d[^\S\n]+|[\d)}}%°][^\S\n]*[a-z%°$€£]{{0,12}}[^\S\n]*[-–—~〜+*×÷/^·⋅,;&][^\S\n]*
    |[\d)][^\S\n]*x[^\S\n]*
    |\d[^\S\n]*(?:[^\W\d]{{0,12}}[^\S\n]+)?(?:(?:{_JOINED}|to|bis|до)\b|[^\W\d]{{0,6}}(?:[和与跟とや至到]|から))[^\S\n]*
    |\bper[^\S\n]*|\d[^\S\n]+in[^\S\n]+|\b(?:step|figure|note|equation|example|log|ln|sin|cos|tan|mod)[^\S\n]*
    |[±√≠<>≤≥∓≈!][=]?\s*|\\(?:sqrt|pm|mp|neq?|leq?|geq?|lt|gt)\s*\{{?\s*)$""",
    re.VERBOSE | re.IGNORECASE,
)
_MORE_AFTER = re.compile(
    rf"""\s*(?:[+*×÷^·⋅±√π≠<>≤≥∓]|!=|\\(?:pi|sqrt|times|cdot|pm|neq?|leq?|geq?)|/)
    |[^\S\n]*[-–—~〜,;&][^\S\n]*[$€£¥]?\d
    |[:'’.]\d|\d
    |[^\S\n]*[^\W\d]{{0,12}}[^\S\n]*\b(?:{_JOINED}|to|bis|до)[^\S\n]+[$€£¥]?\d
    |[^\S\n]*x[^\S\n]*\d|[xyni]\b|[\s-]?ish\b|\s*(?:squared|cubed)\b|\s*(?:以上|以下|未満|未满|超|余|多)""",
    re.VERBOSE | re.IGNORECASE,
)


def stated_number(text: str, *, question: str | None = None) -> StatedNumber | None:
    """Return the number that a text states as its answer; None in doubt.

    It is the first after the last "answer is", "answer:", "total is", "####" or ``\\boxed{``, or else the
    last of the text. A text without digits may name one number in words.

    Args:
        text: of the answer, or an accepted value.
        question: the question; labels, ordinals and dates (`guard.data.number_labels`) count only if it asks for them.
            None for an accepted value.
    """
    text = _plain(text)
    if "year" in (question or "").casefold():
        text = without_days(text)
    if not re.search(r"\d", text):
        text = _words_in_digits(text)
        if len(_numbers(text)) != 1:
            return None
    text = _MINUS_WORD.sub("-", text)
    marks = list(_MARK.finditer(text))
    if not marks and _NO_ANSWER.search(text):
        return None
    after = _numbers(text, marks[-1].end()) if marks else []
    found = after[:1] or _numbers(text)[-1:]
    if not found or not _is_statement(found[0], text) or _is_label(found[0], text, question):
        return None
    return _value(found[0], text)


def _is_label(match: re.Match[str], text: str, question: str | None) -> bool:
    if question is None:
        return False
    before, core = _before(match, text, 60), match["digits"]
    after = "" if match["suffix"] or match["cjk"] else text[match.end() : match.end() + 60]
    return counts_nothing(before.rsplit("\n", 1)[-1], core, after.split("\n", 1)[0], question)


def _plain(text: str) -> str:
    """Return a text with unified signs, exponents written with ``^``, and without emphasis."""
    text = _SUPERSCRIPT.sub(lambda at: "^" + unicodedata.normalize("NFKC", at[0]).replace("−", "-"), text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    text = re.sub(r"[*_`]{2,}|`", "", text)
    return _POWER_OF_TEN.sub(r"1e\1", text)


def _words_in_digits(text: str) -> str:
    text = CHINESE.sub(lambda at: str(chinese_value(at[0]) or 0 if chinese_value(at[0]) is not None else at[0]), text)
    return " ".join(in_digits(re.findall(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s-]", text.casefold())))


def _numbers(text: str, start: int = 0) -> list[re.Match[str]]:
    """Yield the separate numbers from a position on."""
    return [match for match in NUMBER.finditer(text, start) if not _PART_BEFORE.search(_before(match, text, 3))]


def _before(match: re.Match[str], text: str, count: int) -> str:
    """Return the signs before a number; a space that the match begins with is one of them."""
    start = match.end() - len(match[0].lstrip())
    return text[max(0, start - count) : start]


def _is_statement(match: re.Match[str], text: str) -> bool:
    """Return whether the sentence states this number as the answer and does not withdraw it."""
    before, after = _before(match, text, 60), text[match.end() : match.end() + 60]
    if _MORE_BEFORE.search(before) or _MORE_AFTER.match(after) or _is_difference(match, before):
        return False
    start = max((end.end() for end in _SENTENCE_END.finditer(text, 0, match.start())), default=0)
    end = _SENTENCE_END.search(text, match.end())
    sentence = text[start : end.start() if end else len(text)]
    if (end and end[0] == "?") or _BETWEEN.search(sentence) or taken_back(text[end.end() :] if end else ""):
        return False
    return not doubted(sentence)


def _is_difference(match: re.Match[str], before: str) -> bool:
    """Return whether the sign is a minus between two values, or a dash: "10 - 5", "Total - 5"."""
    sign = match["sign"]
    if not sign or sign == "+":
        return False
    left = before.rstrip(" \t")[-1:]
    return left.isdigit() or left in tuple(")}%") or (left.isalpha() and sign != sign.strip())


def _value(match: re.Match[str], text: str) -> StatedNumber | None:
    value = _decimal(match["digits"])
    if match["exponent"]:
        power = re.sub(r"\s?[x×*·⋅]\s?10\s?\^|[{}\seE]", "", match["exponent"]).replace("−", "-")
        value *= math.pow(10.0, max(-400, min(300, int(power[:6])))) if power else 1.0
    if match["under"]:
        under = float(match["under"])
        value = value / under if under else math.inf
    value = (value + float(match["whole"] or 0)) * _magnitude(match)
    if match["sign"] and match["sign"][0] != "+":
        value = -value
    return StatedNumber(value, bool(match["percent"]), _unit(text[match.end() :])) if math.isfinite(value) else None


def _decimal(digits: str) -> float:
    """Return the value of digits: a comma groups by three, or else is the decimal sign."""
    digits = re.sub(r"[ '’]", "", digits)
    if _GROUPED_BY_COMMA.fullmatch(digits):
        return float(digits.replace(",", ""))
    if "," in digits or digits.count(".") > 1:  # 3,14 and 1.234,56 and 1.234.567
        return float(digits.replace(".", "").replace(",", "."))
    return float(digits)


def _magnitude(match: re.Match[str]) -> float:
    if match["suffix"]:
        return _SUFFIXES.get(match["suffix"], math.nan)  # "5m" may be metres: no number
    if match["cjk"]:
        return _CJK_MAGNITUDES[match["cjk"]]
    word = (match["magnitude"] or "").casefold()
    return next((value for words, value in _MAGNITUDES if word and re.fullmatch(words, word)), 1.0)


# -- units -------------------------------------------------------------------------------------

_UNITS = {
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), "km"),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("mile", "miles", "mi"), "mile"),
    **dict.fromkeys(("foot", "feet", "ft"), "foot"),
    **dict.fromkeys(("inch", "inches"), "inch"),
    **dict.fromkeys(("yard", "yards"), "yard"),
    **dict.fromkeys(("mph", "kmh", "kph"), "speed"),
    **dict.fromkeys(("kg", "kilogram", "kilograms"), "kg"),
    **dict.fromkeys(("g", "gram", "grams"), "g"),
    **dict.fromkeys(("mg", "milligram", "milligrams"), "mg"),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), "pound"),
    **dict.fromkeys(("ml", "milliliter", "milliliters", "millilitre", "millilitres"), "ml"),
    **dict.fromkeys(("l", "liter", "liters", "litre", "litres"), "l"),
    **dict.fromkeys(("second", "seconds", "s", "sec"), "s"),
    **dict.fromkeys(("minute", "minutes", "min"), "min"),
    **dict.fromkeys(("hour", "hours", "h"), "h"),
    **dict.fromkeys(("day", "days"), "day"),
    **dict.fromkeys(("week", "weeks"), "week"),
    **dict.fromkeys(("month", "months"), "month"),
    **dict.fromkeys(("year", "years"), "year"),
    **dict.fromkeys(("dollar", "dollars"), "dollar"),
    **dict.fromkeys(("cent", "cents"), "cent"),
    **dict.fromkeys(("euro", "euros"), "euro"),
}


def fits_question(number: StatedNumber, question: str) -> bool:
    """Return whether a number's unit, if any, is the one that the question asks for; "60 hours" does not answer "how
    many minutes".
    """
    match = re.search(r"\bhow many ([a-z]+)|\b(?:which|what) (year)\b", question, re.IGNORECASE)
    asked = _UNITS.get((match[1] or match[2]).casefold(), "") if match else ""
    return not (asked and number.unit) or asked == number.unit


def _unit(after: str) -> str:
    word = re.match(r"[ -]?([A-Za-z]+)(?![\w^/])", after)
    return _UNITS.get(word[1].casefold(), "") if word else ""
