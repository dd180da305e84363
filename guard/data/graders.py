"""Graders: decide without another model whether an answer is right.

Graders are pure functions of a question and an answer. None is perfect; docs/reference/data.md describes what each one
accepts and its known errors. In doubt an answer is wrong: a wrong answer that passes teaches the scorer to trust it.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from guard.data.cjk_answers import CJK_SIGN, states_at_end
from guard.data.computed_answers import computed_equal
from guard.data.doubts import CONJUNCTIONS, doubted, taken_back
from guard.data.math_answers import boxed, equivalent, final_answer
from guard.data.normalised import normalise
from guard.data.number_labels import has_month, without_days
from guard.data.questions import GRADER_NAMES, LETTERS, Question
from guard.data.sentences import first_sentence
from guard.data.stated_number import fits_question, is_number, same_number, stated_number
from guard.data.whole_phrase import is_whole_phrase
from guard.data.yes_no import is_yes_or_no, says
from guard.engines.callback_errors import is_from_signal_handler
from guard.engines.thinking import without_thoughts
from guard.errors import InputError, missing_extra
from guard.files.user_code import load_function
from guard.scoring.labels import Label

#: Takes a question and a model's answer, and returns whether the answer is right, or how right, from 0 to 1.
Grader = Callable[[Question, str], bool | float]

#: Largest number of words of an answer besides those of the accepted answer.
MAX_EXTRA_WORDS = 15
#: Time limit in seconds for the search of one answer with a user's pattern.
REGEX_SECONDS = 1.0


def grade(question: Question, answer: str, *, grader: str | None = None) -> Label:
    """Return whether an answer is right, or how right. Thoughts in its text are not part of it.

    Args:
        question: the question with its accepted answers.
        answer: the model's text.
        grader: name of the grader; by default the question's own or its default one.

    Raises:
        InputError: the grader is not known, cannot grade this question, or is code that the question names.

    Examples:
        >>> question = Question(id="1", question="What is the capital of France?", answers=("Paris",))
        >>> grade(question, "It is Paris."), grade(question, "It is not Paris.")
        (True, False)
    """
    named = grader or grader_for(question)
    if grader is None and ":" in named:
        raise InputError(
            f"Question {question.id!r} names code as its grader, {named!r:.80}",
            why="importing it would run code that a data file names",
            fix="Name it yourself: --grader module:function, or grader=",
        )
    return load_grader(named)(question, without_thoughts(answer))


def grader_for(question: Question) -> str:
    """Return the question's own grader, or the default one.

    ``choice`` where there are choices, ``regex`` where ``meta`` has an ``answer_regex``, ``number``
    where all accepted answers are numbers in digits, ``text`` for all others.

    Examples:
        >>> grader_for(Question(id="1", question="What is 2 + 3?", answers=("5",)))
        'number'
    """
    if question.grader:
        return question.grader
    if question.choices:
        return "choice"
    if question.meta.get("answer_regex"):
        return "regex"
    if all(map(is_number, question.answers)):
        return "number"
    return "text"


@functools.lru_cache(maxsize=64)
def load_grader(name: str) -> Grader:
    """Return a grader by its name, or the user's own function as ``module:function``.

    The user's function is called as ``function(question, answer)`` and returns True or False, or how right the answer
    is, from 0 to 1.

    Raises:
        InputError: there is no such grader, module or function.
    """
    if name in GRADERS:
        return GRADERS[name]
    return _checked(name, load_function(name, "grader", GRADER_NAMES))


def choose_grader(grader: str | Grader | None) -> tuple[Grader, str]:
    """Return the grader that a caller names, and its name for artefacts.

    Args:
        grader: a name or ``module:function`` as for `load_grader`; a function of the caller's own; None for the
            grader of each question.

    Raises:
        InputError: as `load_grader`.
    """
    if grader is None:
        return grade, "by the row"
    if isinstance(grader, str):
        return load_grader(grader), grader
    name = f"{grader.__module__}:{grader.__qualname__}"
    return _checked(name, grader), name


def _checked(name: str, function: Callable[[Question, str], Any]) -> Grader:
    def users_own(question: Question, answer: str) -> Label:
        try:
            right = function(question, answer)
        except Exception as error:
            if is_from_signal_handler(error):
                raise
            raise InputError(
                f"The grader {name!r} failed on question {question.id!r}",
                why=f"{type(error).__name__}: {error}",
            ) from error
        if isinstance(right, bool):
            return right
        if isinstance(right, int | float) and 0 <= right <= 1:
            return bool(right) if right in (0, 1) else float(right)
        got = f"{right}" if isinstance(right, int | float) else f"a {type(right).__name__}"
        raise InputError(
            f"The grader {name!r} must return True or False, or a number from 0 (wrong) to 1 (right)",
            why=f"it returned {got} for question {question.id!r}",
        )

    return users_own


# -- text --------------------------------------------------------------------------------------

#: Words after which a short answer is the statement of its sentence: "the symbol is H".
_LEADS = frozenset({"is", "was", "are", "were", "be", "answer", "answers", "called", "named"})
_COPULAS = frozenset({"is", "was", "are", "were"})
#: Words before a date or a number that change its meaning.
_COMPARISONS = frozenset(
    {"before", "after", "since", "until", "till", "over", "under", "above", "below", "beyond", "past", "between"}
    | {"by", "of", "pre", "post", "nearly", "almost", "vor", "nach", "seit", "avant", "apres", "antes", "despues"}
)
#: Words after "and" that begin another statement rather than a second answer.
_NEW_STATEMENT = frozenset({"it", "is", "was", "he", "she", "they", "this", "that", "there", "its", "his", "her"})
#: The same in Spanish and French.
_ARTICLES = frozenset({"el", "la", "le", "l", "los", "las", "les", "un", "una", "une"})
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def grade_text(question: Question, answer: str) -> bool:
    """Return whether an answer equals an accepted one after `normalise`, or is a short sentence that states one.

    A longer answer is judged by its first sentence. An answer with a word of doubt or denial
    (``not``, ``or``, ``than`` ...), or with a second name beside the first, must be equal.
    """
    answer = _without_markup(answer)
    accepted = {normalise(gold) for gold in question.answers} - {""}
    if normalise(answer) in accepted:
        return True
    first, rest = first_sentence(answer)
    if first.endswith(("?", "？")) or taken_back(rest) or _lists_more(rest, accepted):
        return False
    if normalise(first) in accepted and not is_yes_or_no(normalise(first).split()):
        return True
    return _states_one(question, answer, first, accepted) or any(
        states_at_end(gold, first) for gold in question.answers
    )


def _lists_more(rest: str, accepted: set[str]) -> bool:
    """Return whether the next line is another short name, as in a list."""
    line = rest.strip().split("\n", 1)[0].strip(" -*•\t")
    words = line.split()
    return (
        rest.startswith("\n")
        and 0 < len(words) < 4
        and words[0].istitle()
        and line[-1].isalpha()
        and (normalise(line) not in accepted)
    )


def _without_markup(answer: str) -> str:
    """Return a text without the LaTeX commands and pairs of dollar signs around it."""
    if "\\" not in answer:
        return answer
    return re.sub(r"\$([^$\n]*)\$", r"\1", _COMMAND.sub(r"\1", _COMMAND.sub(r"\1", answer)))


def _states_one(question: Question, answer: str, first: str, accepted: set[str]) -> bool:
    asked = f" {normalise(question.question)} "
    if not any("/" in gold for gold in question.answers):  # "London/Paris" names two
        answer, first = (re.sub(r"(?<=[^\W\d])\s*/\s*(?=[^\W\d])", " or ", text) for text in (answer, first))
    whole = answer.strip()
    accepted = {gold for gold in accepted if not _is_known_closer(gold, first, accepted)}
    return any(
        says(whole, gold)
        if is_yes_or_no(gold.split())
        else _holds(normalise(sentence).split(), gold.split(), asked=asked)
        and is_whole_phrase(sentence, gold.split(), asked=question.question)
        for gold in accepted
        for sentence in _sentences(
            first, whole, plain_year="year" in asked and re.fullmatch(r"\d{4}", gold) is not None
        )
    )


def _sentences(first: str, whole: str, *, plain_year: bool) -> set[str]:
    sentences = {first} | ({whole} if not whole.endswith("?") else set())
    return {without_days(sentence) for sentence in sentences} if plain_year else sentences


def _is_known_closer(year: str, sentence: str, accepted: set[str]) -> bool:
    """Return whether an answer gives a month and a year, and an accepted answer has that year with a month."""
    if not re.fullmatch(r"\d{4}", year) or not has_month(sentence):
        return False
    return any(year in gold.split() and has_month(gold) for gold in accepted)


def _holds(answer: list[str], gold: list[str], *, asked: str) -> bool:
    """Return whether an answer's words state the accepted words."""
    extra = len(answer) - len(gold)
    if not 0 < extra <= MAX_EXTRA_WORDS:
        return False
    verbs = [place for place, word in enumerate(answer) if word in _COPULAS]
    for start in range(extra + 1):
        end = start + len(gold)
        # Of two statements the first is the answer: "The capital is Lyon; Paris is the largest city."
        if len(verbs) > 1 and start != verbs[0] + 1:
            continue
        if answer[start:end] != gold or doubted(" ".join([*answer[:start], "_", *answer[end:]])):
            continue
        # Short answers (a symbol, a digit) and words of the question also occur by chance.
        if len("".join(gold)) < 3:
            behind = " ".join(["", *answer[end : end + 1], ""]) in asked and gold[0].isdigit()  # "There are 7 dwarfs"
            found = (end == len(answer) or behind) and (start == 0 or answer[start - 1] in _LEADS)
        else:
            found = f" {' '.join(gold)} " not in asked or start == 0 or end == len(answer)
        if found and not _has_neighbour(answer[:start], gold, answer[end:]):
            return True
    return False


def _has_neighbour(before: list[str], gold: list[str], after: list[str]) -> bool:
    """Return whether the words beside a match make it a list, a range or another number."""
    statement = _NEW_STATEMENT | (_ARTICLES if after[:1] == ["en"] else set())  # Dutch "and", Spanish and French "in"
    if after[:1] and after[0] in CONJUNCTIONS and not statement.intersection(after[1:2]):
        return True
    if len(before) > 1 and before[-1] in CONJUNCTIONS:
        return True
    if not (gold[0][0].isdigit() and before) and not (gold[-1][-1].isdigit() and after):
        return False
    return (
        (
            after[:1] != []
            and (after[0] in {"percent", "to", "bc", "bce", "on", "onwards", "onward", "ish"} or after[0][0].isdigit())
        )
        or (before != [] and (before[-1] in _COMPARISONS or before[-1][-1].isdigit()))
        or (before[-1:] == ["to"] and before[-2:-1] != [] and before[-2][-1].isdigit())
    )


# -- number ------------------------------------------------------------------------------------


def grade_number(question: Question, answer: str) -> bool:
    """Return whether an answer states an accepted value, within a millionth; see `guard.data.stated_number`."""
    said = stated_number(answer, question=question.question)
    if said is None or not fits_question(said, question.question):
        return False
    golds = [gold for gold in map(stated_number, question.answers) if gold is not None]
    return any(same_number(said, gold) for gold in golds)


# -- math --------------------------------------------------------------------------------------


def grade_math(question: Question, answer: str) -> bool:
    """Return whether the final answer, usually in ``\\boxed{...}``, equals an accepted one.

    The notation is compared first (`guard.data.math_answers`). Where that differs, the values are compared
    (`guard.data.computed_answers`), if the extra ``math`` is installed.
    """
    said = final_answer(answer)
    if said is None:
        return False
    return any(equivalent(gold, said) for gold in question.answers) or any(
        computed_equal(gold, said) for gold in question.answers
    )


# -- choice ------------------------------------------------------------------------------------

_LETTER_FIRST = re.compile(
    r"(?:(?:so|therefore|thus),?\s+)?(?:(?:i|we)(?:['’]d|\s+would)?\s+(?:choose|pick|select|say|go\s+with)\s+)?"
    r"(?:the\s+)?(?:(?:correct|right|best)\s+)?"
    r"(?:(?:answer|option|choice|letter)\b(?:\s+(?:is|would\s+be))?\s*:?\s*(?:option\s+|choice\s+)?)?"
    r"[\[(\"'*]*(?P<letter>[A-Za-z])(?:[\])\"'*]*(?:$|[.):,;\n]|\s+(?=[-–—:(\n])|\s+(?:is|ist|est|es|and|or)\b))",
    re.IGNORECASE,
)
_ANSWER_WORDS = r"answer|option|choice|antwort|réponse|respuesta|risposta|resposta|antwoord|svar(?:et)?|odpowiedź|ответ"
_LETTER_LATER = re.compile(
    rf"\b(?:{_ANSWER_WORDS})\s*(?:is|ist|est|es|è|é|är|er|:|—)\s*(?:option\s+)?[\[(\"'*]*(?P<letter>[A-Z])(?![\w'])",
    re.IGNORECASE,
)
_SEVERAL_LETTERS = re.compile(
    r"\W*[A-Z]\W{0,3}\s*(?:,|/|&|\b(?:and|or|und|oder|et|ou|y|o|e)\b|\s)\s*\(?[A-Z]\b(?!['’])"
)
#: A letter in a Chinese, Japanese or Korean sentence, which may touch it.
_LONE_LETTER = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z])")


def grade_choice(question: Question, answer: str) -> bool:
    """Return whether an answer has the right choice's letter or text, and no other choice's.

    Raises:
        InputError: the question has no choices.
    """
    if question.choices is None or question.answer_index is None:
        raise InputError(f"Question {question.id!r} has no choices, as the grader 'choice' needs")
    return _picked(question, question.choices, _chosen_part(answer)) == question.answer_index


def _chosen_part(answer: str) -> str:
    """Return the content of a box if there is one, with full-width letters as plain ones."""
    box = boxed(answer)
    part = _without_markup(unicodedata.normalize("NFKC", answer if box is None else box)).strip()
    return part[1:-1] if part[:1] == part[-1:] == "$" else part


def _picked(question: Question, choices: tuple[str, ...], answer: str) -> int | None:
    """Return the index of the choice that an answer picks, or None."""
    if len(answer.strip(" .()[]*\"'")) != 1 and (exact := _exact_choice(choices, answer)) is not None:
        return exact
    letter = None if _SEVERAL_LETTERS.match(answer) else _letter(answer)
    if letter is None:
        return None if _SEVERAL_LETTERS.match(answer) else _named_choice(question, choices, answer)
    said, rest = letter
    picked = LETTERS.index(said.upper())
    if picked >= len(choices) or _is_disputed(rest, choices, picked):
        return None
    return picked if _named_choice(question, choices, rest) in (None, picked) else None


def _letter(answer: str) -> tuple[str, str] | None:
    """Return the letter that an answer gives, and the rest of its line; None without a letter."""
    if CJK_SIGN.search(answer):
        letters = _LONE_LETTER.findall(answer)
        return (letters[0], _LONE_LETTER.sub(" ", answer)) if len(letters) == 1 else None
    first = re.search(r"\w", answer)
    if first and (match := _LETTER_FIRST.match(answer, first.start())):
        return match["letter"], answer[match.start("letter") + 1 :].split("\n", 1)[0]
    later = list(_LETTER_LATER.finditer(answer))
    if not later:
        return None
    line = answer[: later[-1].start()].rsplit("\n", 1)[-1]
    return later[-1]["letter"], f"{line} {answer[later[-1].end() :]}".split("\n", 1)[0]


def _is_disputed(rest: str, choices: tuple[str, ...], picked: int) -> bool:
    """Return whether the rest of the line denies the letter, or gives another one as well."""
    own = normalise(choices[picked])
    others = {letter for letter in _LONE_LETTER.findall(rest) if LETTERS.index(letter) < len(choices)} - {"A", "I"}
    named = f" {normalise(rest)} ".replace(f" {own} ", " _ ")
    return bool(others - {LETTERS[picked]}) or doubted(named)


def _exact_choice(choices: tuple[str, ...], answer: str) -> int | None:
    plain = [choice.strip().rstrip(".").casefold() for choice in choices]
    said = answer.strip().strip("*").rstrip(".").casefold()
    return plain.index(said) if plain.count(said) == 1 else None


def _named_choice(question: Question, choices: tuple[str, ...], answer: str) -> int | None:
    """Return the only choice whose text the answer contains, unless something is denied."""
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
        if _is_held(texts[at], rest):
            held.append(at)
            rest = rest.replace(f" {texts[at]} ", " \0 ")
    if len(held) != 1:
        return None
    text = texts[held[0]]
    if is_yes_or_no([text]):
        return held[0] if says(answer, text) else None
    whole = is_whole_phrase(answer, text.split(), asked=question.question)
    return held[0] if whole and not doubted(rest) else None


def _is_held(text: str, answer: str) -> bool:
    """Return whether an answer states a choice's text; a digit only after "is" and the like, a letter never."""
    if len(text) > 1:
        return f" {text} " in answer
    return text.isdigit() and any(f" {lead} {text} " in answer for lead in _LEADS)


# -- regex -------------------------------------------------------------------------------------

_MAX_PATTERN = 20_000
_MAX_REPEATS = 10_000


def grade_regex(question: Question, answer: str) -> bool:
    """Return whether the answer states what ``meta.answer_regex`` matches (letter case ignored).

    Every match must stand in a sentence without a word of denial or doubt (see `guard.data.doubts`).
    An answer that equals an accepted one is right as well, since patterns do not cover all of them.
    The pattern must be valid for Python's `re`, and gets one second per answer.

    Raises:
        InputError: there is no pattern, or it is not valid, too large or too slow.
        MissingExtraError: the package ``regex``, which can end a search, is not installed.
    """
    pattern = question.meta.get("answer_regex")
    if not isinstance(pattern, str):
        raise InputError(f"Question {question.id!r} has no 'answer_regex' in its meta, as the grader 'regex' needs")
    try:
        matches = list(_compiled(pattern).finditer(answer, timeout=REGEX_SECONDS))
        stated = bool(matches) and all(_is_stated(answer, *match.span()) for match in matches)
        return stated or normalise(answer) in map(normalise, question.answers)
    except TimeoutError as error:
        raise InputError(
            f"The answer_regex of question {question.id!r} searched one answer for {REGEX_SECONDS:g} s",
            fix="Write it without repetitions inside repetitions",
        ) from error
    except _PatternError as error:
        raise InputError(f"The answer_regex of question {question.id!r} cannot be used", why=str(error)) from error


_SENTENCE_BREAK = re.compile(r"(?<=\w{4}[.!?])\s|(?<=[!?])\s|(?<=[。！？])|\n")


def _is_stated(answer: str, start: int, end: int) -> bool:
    """Return whether the sentence around a match asserts it: no question, no denial, no alternative, not withdrawn."""
    before = _SENTENCE_BREAK.split(answer[:start])[-1]
    after, *rest = _SENTENCE_BREAK.split(answer[end:], maxsplit=1)
    if after.rstrip().endswith(("?", "？")) or taken_back("".join(rest)):
        return False
    return not doubted(f"{before} _ {after}")


class _PatternError(Exception):
    """The reason why a pattern cannot be used."""


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> Any:
    """Return the pattern for ``regex``, which unlike `re` can stop, but writes out counted repetitions."""
    try:
        import regex  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("regex", "calibrate") from error
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
