"""Whether an answer is right, decided without another model.

Graders are pure functions of a question and an answer. None is perfect; docs/data.md says what each
takes for right and where it errs. When in doubt they say wrong: a wrong answer that passes teaches
the scorer to trust it.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from guard.errors import InputError, MissingExtraError, did_you_mean
from guard.latex import final_answer, same_answer
from guard.questions import GRADER_NAMES, LETTERS, Question

#: Takes a question and a model's answer, and says whether the answer is right.
Grader = Callable[[Question, str], bool]

#: How many words an answer may have beside the accepted ones that it contains.
MAX_EXTRA_WORDS = 15
#: Seconds that a pattern of the user may search one answer.
REGEX_SECONDS = 1.0


def grade(question: Question, answer: str, *, grader: str | None = None) -> bool:
    """Whether an answer is right.

    Args:
        question: with its accepted answers.
        answer: the model's text.
        grader: by name; by default the question's own or the usual one for it.

    Raises:
        InputError: the grader is not known, or cannot grade this question.
    """
    return load_grader(grader or grader_for(question))(question, answer)


def grader_for(question: Question) -> str:
    """The question's own grader, or else the usual one.

    ``choice`` where there are choices, ``regex`` where ``meta`` has an ``answer_regex``, ``number``
    where all accepted answers are numbers in digits, ``text`` for all others.
    """
    if question.grader:
        return question.grader
    if question.choices:
        return "choice"
    if question.meta.get("answer_regex"):
        return "regex"
    if all(_NUMBER.fullmatch(answer.strip()) for answer in question.answers):
        return "number"
    return "text"


@functools.lru_cache(maxsize=64)
def load_grader(name: str) -> Grader:
    """A grader by its name, or the user's own function as ``module:function``.

    The user's function is called as ``function(question, answer)`` and returns True or False.

    Raises:
        InputError: there is no such grader, module or function.
    """
    if name in GRADERS:
        return GRADERS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise InputError(f"Unknown grader {name!r}", fix=did_you_mean(name, [*GRADER_NAMES, "module:function"]))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way
        raise InputError(
            f"Cannot import the module of the grader {name!r}",
            why=f"{type(error).__name__}: {error}",
            fix="Check its name; a module in the current folder is found with PYTHONPATH=.",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [other for other in vars(module) if callable(getattr(module, other)) and other[0] != "_"]
        raise InputError(
            f"The module {module_name!r} has no function {function_name!r}",
            fix=did_you_mean(function_name, known),
        )
    return _checked(name, function)


def _checked(name: str, function: Callable[[Question, str], Any]) -> Grader:
    def users_own(question: Question, answer: str) -> bool:
        try:
            right = function(question, answer)
        except Exception as error:
            raise InputError(
                f"The grader {name!r} failed on question {question.id!r}",
                why=f"{type(error).__name__}: {error}",
            ) from error
        if not isinstance(right, bool):
            raise InputError(
                f"The grader {name!r} must return True or False",
                why=f"it returned a {type(right).__name__} for question {question.id!r}",
            )
        return right

    return users_own


# -- text --------------------------------------------------------------------------------------

_FOLDED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "ð": "d", "þ": "th", "&": " and ", "%": " percent "}
    | {"−": "-", "–": " ", "—": " ", "_": " ", "/": " "}
)  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
#: Numbers of one word become digits, so that "six geese" is "6 geese".
_DIGITS = {
    **{"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"},
    **{"seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12"},
    **{"thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17"},
    **{"eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40"},
    **{"fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90"},
}
_MAGNITUDES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
#: Words that can turn an answer that contains the right one into a wrong one.
_DOUBTS = frozenset(
    {"no", "not", "never", "neither", "nor", "none", "nobody", "nothing", "isnt", "wasnt", "arent", "werent"}
    | {"doesnt", "didnt", "dont", "cant", "cannot", "without", "unlike", "except", "instead", "rather", "than"}
    | {"or", "either", "but", "unknown", "unsure"}
)
#: Words after which a short answer is the statement of its sentence: "the symbol is H".
_LEADS = frozenset({"is", "was", "are", "were", "be", "answer", "answers", "called", "named"})
_YES_NO = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def normalise(text: str) -> str:
    """Letter case, accents, articles, punctuation, small number words and spacing evened out.

    Signs that carry meaning stay: decimal points, minus signs before digits, ``+``, ``#``, ``$``.
    """
    text = unicodedata.normalize("NFKD", text).casefold().translate(_FOLDED)
    text = re.sub(r"[\u0300-\u036f]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|(?<=\w)-|-(?!\d)", lambda at: "" if at[0] == "." else " ", text)
    kept = (
        character for character in text if character in ".-#" or not unicodedata.category(character).startswith("P")
    )
    words = [_DIGITS.get(word, word) for word in "".join(kept).split()]
    # An answer may be nothing but signs ("*") or an article ("A").
    return " ".join([word for word in words if word not in _ARTICLES] or words) or text.strip()


def grade_text(question: Question, answer: str) -> bool:
    """Equal to an accepted answer after `normalise`, or a short sentence that holds one.

    A longer answer is judged by its first sentence. An answer with a word of doubt or denial
    (``not``, ``or``, ``than`` ...) must be equal.
    """
    whole = normalise(answer)
    accepted = {normalise(gold) for gold in question.answers} - {""}
    if whole in accepted:
        return True
    asked = f" {normalise(question.question)} "
    first = normalise(_first_sentence(answer))
    if first in accepted:
        return True
    return any(
        _holds(sentence.split(), gold.split(), gold_was_asked=f" {gold} " in asked)
        for sentence in {whole, first}
        for gold in accepted
    )


def _first_sentence(answer: str) -> str:
    """Up to the first line end, or the first full stop that does not follow a short word (``Dr.``)."""
    line = answer.strip().split("\n", 1)[0]
    return re.split(r"(?<=\w{4}[.!?])\s+|(?<=[!?])\s+", line, maxsplit=1)[0]


def _holds(answer: list[str], gold: list[str], *, gold_was_asked: bool) -> bool:
    """Whether the answer's words hold the gold words as its statement."""
    if len(gold) == 1 and gold[0] in _YES_NO:
        return answer[:1] == gold and _YES_NO[gold[0]] not in answer
    extra = len(answer) - len(gold)
    if not 0 < extra <= MAX_EXTRA_WORDS:
        return False
    for start in range(extra + 1):
        end = start + len(gold)
        if answer[start:end] != gold or _DOUBTS.intersection(answer[:start] + answer[end:]):
            continue
        # What is short (a symbol, a digit) or taken from the question occurs by chance.
        if len("".join(gold)) < 3:
            found = end == len(answer) and answer[start - 1] in _LEADS
        else:
            found = not gold_was_asked or start == 0 or end == len(answer)
        if found and not _continues_number(gold[-1], answer[end : end + 1]):
            return True
    return False


def _continues_number(last: str, following: list[str]) -> bool:
    """Whether a number goes on after the match, as 300 does in "300 million"."""
    if not last[-1].isdigit() or not following:
        return False
    return following[0] in _MAGNITUDES or following[0] == "percent" or following[0][0].isdigit()


# -- number ------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"""(?:(?:(?<![\w.,)])|(?<=[$€£¥]))(?P<sign>[-+−]\s?))?
    [$€£¥]?\s?
    (?:(?P<whole>\d{1,9})\s(?=\d{1,9}/\d))?
    (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
    (?P<exponent>[eE][-+]?\d+|\s?[x×*]\s?10\s?\^\s?\{?[-+−]?\d+\}?)?
    (?:\s?/\s?(?P<under>\d+(?:\.\d+)?)(?![\d/]))?
    (?:\s?(?P<percent>%|percent\b)|\s?(?P<magnitude>hundred|thousand|million|billion|trillion)\b)?""",
    re.VERBOSE | re.IGNORECASE,
)
_NUMBER_MARK = re.compile(r"(?:####|\\boxed\s*\{|\banswer\s*(?:is\b|:|=)|\btotal\s+is\b)", re.IGNORECASE)
_MINUS_WORD = re.compile(r"\b(?:minus|negative)\s+(?=[\d.$€£¥])", re.IGNORECASE)
_RELATIVE_TOLERANCE = 1e-6


def grade_number(question: Question, answer: str) -> bool:
    """Equal in value to an accepted answer, within a millionth.

    The number judged is the first after "answer is", "answer:", "####" or ``\\boxed{``, or else
    the last in the text; a text without digits may name one number from zero to ninety in words.
    A percent sign on one side only is taken for either meaning (50 or 0.5).
    """
    said = _stated_number(answer)
    if said is None:
        return False
    golds = [gold for gold in map(_stated_number, question.answers) if gold is not None]
    return any(_same_number(said, gold) for gold in golds)


#: A value, and whether it was written as percent.
_Number = tuple[float, bool]


def _stated_number(text: str) -> _Number | None:
    text = _MINUS_WORD.sub("-", unicodedata.normalize("NFKC", text).replace("⁄", "/"))
    text = re.sub(r"[*_`]{2,}|`", "", text)
    marks = list(_NUMBER_MARK.finditer(text))
    after = _NUMBER.search(text, marks[-1].end()) if marks else None
    found = [after] if after else list(_NUMBER.finditer(text))
    if found:
        return _value(found[-1])
    words = [word for word in re.findall(r"[a-z]+", text.casefold()) if word in _DIGITS]
    return (float(_DIGITS[words[0]]), False) if len(words) == 1 else None


def _value(match: re.Match[str]) -> _Number | None:
    value = float(match["digits"].replace(",", ""))
    if match["exponent"]:
        power = re.sub(r"\s?[x×*]\s?10\s?\^|[{}\seE]", "", match["exponent"]).replace("−", "-")
        value *= math.pow(10.0, max(-400, min(300, int(power[:6])))) if power else 1.0
    if match["under"]:
        under = float(match["under"])
        value = value / under if under else math.inf
    value += float(match["whole"] or 0)
    value *= _MAGNITUDES.get((match["magnitude"] or "").casefold(), 1.0)
    if match["sign"] and match["sign"][0] != "+":
        value = -value
    return (value, bool(match["percent"])) if math.isfinite(value) else None


def _same_number(said: _Number, gold: _Number) -> bool:
    candidates = [said[0]]
    if said[1] != gold[1]:
        candidates.append(said[0] / 100 if said[1] else said[0] * 100)
    return any(math.isclose(value, gold[0], rel_tol=_RELATIVE_TOLERANCE) for value in candidates)


# -- math --------------------------------------------------------------------------------------


def grade_math(question: Question, answer: str) -> bool:
    """The final answer, as a rule in ``\\boxed{...}``, is an accepted one in another notation at most.

    See `guard.latex` for where a final answer is looked for, and what counts as the same.
    """
    said = final_answer(answer)
    return said is not None and any(same_answer(gold, said) for gold in question.answers)


# -- choice ------------------------------------------------------------------------------------

_LETTER_FIRST = re.compile(
    r"(?:(?:so|therefore|thus),?\s+)?(?:the\s+)?(?:(?:correct|right|best)\s+)?"
    r"(?:(?:answer|option|choice|letter)\b(?:\s+(?:is|would\s+be))?\s*:?\s*(?:option\s+|choice\s+)?)?"
    r"[\[(\"'*]*(?P<letter>[A-Za-z])(?:[\])\"'*]*(?:$|[.):,;\n]|\s+(?=[-–—:(\n])|\s+(?:is|and|or)\b))",
    re.IGNORECASE,
)
_LETTER_LATER = re.compile(
    r"\b(?:answer|option|choice)\s*(?:is|:)\s*(?:option\s+)?[\[(\"'*]*(?P<letter>[A-Z])(?![\w'])", re.IGNORECASE
)
_SEVERAL_LETTERS = re.compile(r"^\W*[A-Z]\W{0,3}\s*(?:,|/|&|\band\b|\bor\b)\s*\(?[A-Z]\b(?!['’])")


def grade_choice(question: Question, answer: str) -> bool:
    """The right choice's letter or text, and no other choice's.

    Raises:
        InputError: the question has no choices.
    """
    if question.choices is None or question.answer_index is None:
        raise InputError(f"Question {question.id!r} has no choices, as the grader 'choice' needs")
    return _picked(question.choices, answer.strip()) == question.answer_index


def _picked(choices: tuple[str, ...], answer: str) -> int | None:
    """The place of the choice that an answer picks, or None."""
    if len(answer.strip(" .()[]*\"'")) != 1 and (exact := _exact_choice(choices, answer)) is not None:
        return exact
    if _SEVERAL_LETTERS.match(answer):
        return None
    first = re.search(r"\w", answer)
    letter = _LETTER_FIRST.match(answer, first.start()) if first else None
    if letter is None:
        named = _named_choice(choices, answer)
        later = list(_LETTER_LATER.finditer(answer))
        if named is not None or not later:
            return named
        letter = later[-1]
    picked = LETTERS.index(letter["letter"].upper())
    if picked >= len(choices):
        return None
    rest = answer[letter.end() :].split("\n", 1)[0]
    return picked if _named_choice(choices, rest) in (None, picked) else None


def _exact_choice(choices: tuple[str, ...], answer: str) -> int | None:
    plain = [choice.strip().rstrip(".").casefold() for choice in choices]
    said = answer.strip().strip("*").rstrip(".").casefold()
    return plain.index(said) if plain.count(said) == 1 else None


def _named_choice(choices: tuple[str, ...], answer: str) -> int | None:
    """The one choice whose text the answer is or holds, where no other is held and nothing is denied."""
    if (exact := _exact_choice(choices, answer)) is not None:
        return exact
    texts = [normalise(choice) for choice in choices]
    said = normalise(answer)
    if texts.count(said) == 1:
        return texts.index(said)
    held: list[int] = []
    rest = f" {said} "
    # The longest first, so that "iron oxide" is not also "iron".
    for at in sorted(range(len(texts)), key=lambda at: -len(texts[at])):
        if len(texts[at]) > 1 and f" {texts[at]} " in rest:
            held.append(at)
            rest = rest.replace(f" {texts[at]} ", " \0 ")
    return held[0] if len(held) == 1 and not _DOUBTS.intersection(rest.split()) else None


# -- regex -------------------------------------------------------------------------------------

_MAX_PATTERN = 20_000
_MAX_REPEATS = 10_000


def grade_regex(question: Question, answer: str) -> bool:
    """Whether ``meta.answer_regex`` matches somewhere in the answer (letter case ignored).

    An answer that equals an accepted one is right as well, since patterns do not cover all of them.
    The pattern must be valid for Python's `re`, and has a second for one answer.

    Raises:
        InputError: there is no pattern, or it is not valid, too large or too slow.
        MissingExtraError: the package ``regex``, which can end a search, is not installed.
    """
    pattern = question.meta.get("answer_regex")
    if not isinstance(pattern, str):
        raise InputError(f"Question {question.id!r} has no 'answer_regex' in its meta, as the grader 'regex' needs")
    try:
        matched = _compiled(pattern).search(answer, timeout=REGEX_SECONDS) is not None
        return matched or normalise(answer) in map(normalise, question.answers)
    except TimeoutError as error:
        raise InputError(
            f"The answer_regex of question {question.id!r} searched one answer for {REGEX_SECONDS:g} s",
            fix="Write it without repetitions inside repetitions",
        ) from error
    except _PatternError as error:
        raise InputError(f"The answer_regex of question {question.id!r} cannot be used", why=str(error)) from error


class _PatternError(Exception):
    """Why a pattern is not searched with."""


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> Any:
    """The pattern for ``regex``, which unlike `re` can stop, but writes out counted repetitions."""
    try:
        import regex  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("regex is not installed", fix="Run: pip install regex") from error
    counts = [int(upper or lower or 1) for lower, upper in re.findall(r"\{(\d*)(?:,(\d*))?\}", pattern)]
    if len(pattern) > _MAX_PATTERN or math.prod(max(1, count) for count in counts) > _MAX_REPEATS:
        raise _PatternError("it is too large, or its {counts} multiply to too much")
    try:
        re.compile(pattern)
        return regex.compile(pattern, regex.IGNORECASE)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise _PatternError(str(error)) from error


#: Graders by name.
GRADERS: Mapping[str, Grader] = {
    "text": grade_text,
    "number": grade_number,
    "math": grade_math,
    "choice": grade_choice,
    "regex": grade_regex,
}
