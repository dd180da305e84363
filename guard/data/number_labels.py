"""Numbers that are not quantities: ordinals, labels, dates and times ("5th", "Question 5", "May 5", "5 pm").

They are answers only if the question asks for them: "Chapter 5" if it has the word "chapter", "the 21st century" if it
has the word "century".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guard.data.normalised import normalise
from guard.data.phrase_words import BEFORE, COPULAS, HARMLESS, REPLIES, words

MONTHS = (
    r"jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni|july?|juli|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|okt(?:ober)?|nov(?:ember)?|dec(?:ember)?|dez(?:ember)?|enero|febrero|marzo"
    r"|abril|mayo"
    r"|junio|julio|agosto|septiembre|octubre|noviembre|diciembre|janvier|février|mars|avril|juin|juillet|août"
    r"|septembre"
    r"|octobre|novembre|décembre"
)
_LABELS = words(
    """
    question no nr number num chapter page part section item table grade level room line day version exercise
    problem phase rank lesson exhibit verse appendix formula channel route highway interstate war article volume
    class type unit task case building floor gate platform episode season book act scene stage round game lot size
    model series zone district area week month option point paragraph clause rule law theorem lemma equation
    figure fig step example ex answer note footnote ref row column col index id code key track disc bus flight
    train bullet position place seat box apartment apt suite block mile kilometer exit junction age lap heat group
    team player agent squadron division regiment psalm sonnet symphony opus op frage seite kapitel nummer aufgabe
    teil chapitre numéro capítulo página número pregunta parte capitolo pagina numero domanda вопрос глава
    страница номер
    """
)
#: Parts of books, laws and plays, which have a numeral or letter of their own before the number: "Chapter VIII, 8".
_LOCATORS = words(
    """
    chapter part section item table question exercise lesson exhibit verse appendix volume book act scene article
    canto sura surah psalm proposition definition axiom theorem lemma corollary clause paragraph figure fig problem
    case unit schedule annex footnote note kapitel teil abschnitt buch frage aufgabe chapitre partie livre article
    capitulo parte libro capitolo sezione глава часть книга ch sec vol art app para pt no rule law sonnet
    """
)
#: Words that may stand before a number with a capital: "About 5", "USD 5".
_OPENINGS = words(
    """
    about around approximately roughly exactly precisely just only all some total totals sum result count there
    about circa altogether together ergebnis antwort resultado résultat réponse respuesta risposta resposta usd
    eur gbp chf jpy cny inr the der die das le la el los il de rs us cad aud hkd over under equals equal gives
    makes leaves year area volume speed price cost
    """
)
_WORD_BEFORE = re.compile(r"([^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+)\.?[^\S\n]*[#№]?[^\S\n]*$")
_LOCATOR = re.compile(
    r"([^\W\d_]+)\.?[^\S\n]+(?:(?P<roman>(?-i:[IVXLCDM]+))|[ivxlcdm]+|[a-z]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
    r"[^\S\n]*[,;:(\[–—-][^\S\n]*$",
    re.IGNORECASE,
)
_HASH = re.compile(r"(?:(?<!#)[#№]|\bn[°º])[^\S\n]*$", re.IGNORECASE)
_MULTIPLE = re.compile(
    r"\b(?:double|triple|quadruple|twice|thrice|multiples? of|divisible by|(?:root|third|quarter|half|fifth"
    r"|tenth|fraction) of"
    r"|logarithm of|factorial of|every|\d of|group of|power of|by|as of|before|after|since|until|till|past"
    r"|beyond|pre|post"
    r"|maximum of|minimum of|vor|nach|seit|bis|avant|après|depuis|antes de|después de"
    r"|hasta)[^\S\n]*(?:the[^\S\n]+)?$",
    re.IGNORECASE,
)
_MONTH_BEFORE = re.compile(rf"\b(?:{MONTHS})\.?[^\S\n]*(?:the[^\S\n]*)?$", re.IGNORECASE)
_MONTH_AFTER = re.compile(rf"(?:st|nd|rd|th|er|\.)?[^\S\n]*(?:of[^\S\n]+|de[^\S\n]+)?(?:{MONTHS})\b", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:st|nd|rd|ths?|ème|e|er|º|ª)\b[^\S\n]*([^\W\d_]*)", re.IGNORECASE)
#: Letters that may touch a number: units.
_GLUED = re.compile(r"[A-Za-z]+")
_WHICH = re.compile(
    r"\b(?:which|what|welche\w*|quel\w*|qué|cuál|quale|как\w+)\s+((?:[^\W\d_]+\s+){0,2}[^\W\d_]+)", re.IGNORECASE
)
_UNITS = words(
    """
    km m cm mm nm kg g mg lb lbs oz l ml dl ft yd in mi h hr hrs min sec ms kmh kph mph w kw mw v mv a ma hz khz
    mhz ghz kb mb gb tb j kj n pa kpa c f kcal cal usd eur pct k mn bn tn b t ha sqm ppm mol atm bar px pt
    """
)
_TIME = re.compile(r"[^\S\n]*(?:[ap]\.?m\b|o['’ ]?clock|noon|midnight|uhr\b|heures?\b)", re.IGNORECASE)
_EARLY = re.compile(r"[^\S\n]*(?:b\.?c\.?(?:e\.?)?)(?!\w)", re.IGNORECASE)
_QUALIFIED = re.compile(
    r"[^\S\n]*(?:[^\W\d_]+[^\S\n]+){0,2}?(each|per|apiece|times|fold|pairs?|couples?|sets?|groups?|plus|minus"
    r"|divided|multiplied|ago|short|too|extra|at|left|factorial|below|a|an|or|onwards?)\b"
    r"[^\S\n]*(many|much|few|little|a time|day|week|month|year|hour|minute|piece|time|person|so)?(?=[^\w]|$)",
    re.IGNORECASE,
)
_NEEDS_MORE = frozenset({"a", "an", "at"})


def counts_nothing(before: str, digits: str, after: str, question: str) -> bool:
    """Return whether a number is a label, an ordinal or a part of a date or term that the question does not ask for.

    Args:
        before: text before the number, on its line.
        digits: the number.
        after: text after the number.
        question: the question's text.

    Examples:
        >>> counts_nothing("Chapter ", "5", "", "How many are there?")
        True
        >>> counts_nothing("Chapter ", "5", "", "In which chapter does the whale appear?")
        False
    """
    asked = _AskedFor(frozenset(normalise(question).split()), frozenset(_sought(question)))
    dated = _is_date_or_time(before, digits, after, asked.words)
    return dated or _is_label(before, asked) or _is_term(after, asked)


@dataclass(frozen=True, slots=True)
class _AskedFor:
    """The words of a question, and those behind "which" or "what"."""

    words: frozenset[str]
    sought: frozenset[str]


def _sought(question: str) -> list[str]:
    return [word for match in _WHICH.finditer(question) for word in normalise(match[1]).split()]


def _is_label(before: str, asked: _AskedFor) -> bool:
    if _HASH.search(before) or _MULTIPLE.search(before):
        return True
    if _is_locator(before, asked.words):
        return True
    match = _WORD_BEFORE.search(before)
    if match is None:
        return False
    word = normalise(match[1])
    if word in asked.sought:
        return False
    if word in _LABELS or f"{word}s" in asked.words:
        return True
    known = word in _OPENINGS | BEFORE | COPULAS | HARMLESS | REPLIES or word.endswith("ly")
    is_month = _MONTH_BEFORE.search(before) is not None
    return not match[1].islower() and not known and not is_month


def _is_locator(before: str, asked: frozenset[str]) -> bool:
    """Return whether a number stands behind a place in a text: "Chapter VIII, 8", "Genesis I:12"."""
    match = _LOCATOR.search(before)
    if match is None or normalise(match[1]) in asked:
        return False
    return normalise(match[1]) in _LOCATORS or (match["roman"] is not None and match[1].istitle())


def _is_date_or_time(before: str, digits: str, after: str, asked: frozenset[str]) -> bool:
    month = _MONTH_AFTER.match(after) or _MONTH_BEFORE.search(before)
    if month and len(digits) < 3 and asked.isdisjoint({"day", "date", "when"}):
        return True
    if _EARLY.match(after):
        return asked.isdisjoint({"bc", "bce"})
    return _TIME.match(after) is not None and asked.isdisjoint({"time", "hour", "when", "oclock", "clock"})


def _is_term(after: str, asked: _AskedFor) -> bool:
    ordinal = _ORDINAL.match(after)
    if ordinal:
        return not ordinal[1] or normalise(ordinal[1]) not in asked.sought
    glued = _GLUED.match(after)
    if glued and (glued[0].casefold() not in _UNITS or glued[0] == "G") and not _TIME.match(after):
        return True
    qualified = _QUALIFIED.match(after)
    if qualified is None:
        return False
    word, tail = qualified[1].casefold(), (qualified[2] or "").casefold()
    tail = "" if tail in {"many", "much", "few", "little"} and word == "too" else tail
    return asked.words.isdisjoint({word, tail}) and (bool(tail) or word not in _NEEDS_MORE)


def has_month(text: str) -> bool:
    """Return whether a text names a month."""
    return re.search(rf"\b(?:{MONTHS})\b", text, re.IGNORECASE) is not None


def without_days(text: str) -> str:
    """Return a text whose dates are a month and a year: "8 May 1945" and "May 8, 1945" become "May 1945".

    Examples:
        >>> without_days("It ended on 8 May 1945."), without_days("July 20, 1969")
        ('It ended on May 1945.', 'July 1969')
    """
    ordinal = r"\d{1,2}(?:st|nd|rd|th|\.)?"
    text = re.sub(rf"\b{ordinal}\s+(?:of\s+)?({MONTHS})\b,?\s+(?=\d{{4}}\b)", r"\1 ", text, flags=re.IGNORECASE)
    return re.sub(rf"\b({MONTHS})\.?\s+{ordinal},?\s+(?=\d{{4}}\b)", r"\1 ", text, flags=re.IGNORECASE)
