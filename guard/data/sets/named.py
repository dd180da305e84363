"""The ten data sets of the ILIS paper: their sources, and the conversion of their rows to questions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from guard.data.math_answers import boxed
from guard.data.questions import Question
from guard.engines.system_messages import BOXED_SYSTEM, NUMBER_SYSTEM, SHORT_ANSWER_SYSTEM


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A data set with a name.

    Attributes:
        name: name for `guard.data.sets.load_set`.
        repository: repository of its files, on the Hugging Face hub or on GitHub.
        on_hub: whether it is on the hub, so that guard can download it.
        files: patterns of its files, with ``{split}`` in place of the split; each must match.
        split: the default split.
        splits: the splits that have answers.
        columns: names that every row must have.
        optional: further columns, read if present.
        convert: converts a native row to a question.
        grader: name of its grader, or None for the default one (see `guard.data.graders.grader_for`).
        system: its system message.
        max_tokens: token limit of its answers.
        citation: the paper to cite.
        licence: licence stated by the source.
        notes: what to know before using it.
        own_names: names of files in guard's own format, without ``.jsonl``.
    """

    name: str
    repository: str
    files: tuple[str, ...]
    split: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Question]
    citation: str
    licence: str
    notes: str
    on_hub: bool = True
    optional: tuple[str, ...] = ()
    grader: str | None = None
    system: str = SHORT_ANSWER_SYSTEM
    max_tokens: int = 32
    own_names: tuple[str, ...] = ()


class MalformedRowError(Exception):
    """The reason why a row does not have the set's form; the file is damaged or another one."""


class UnfitRowError(Exception):
    """The reason why a valid row of the set makes no question and is left out."""


# -- values ------------------------------------------------------------------------------------


def _text(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise MalformedRowError(f"{key!r} must be a text, got {_kind(value)}")
    if not value.strip() and not may_be_empty:
        raise MalformedRowError(f"{key!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedRowError(f"{key!r} has half of a surrogate pair, which is no character") from error
    return " ".join(value.split())


def _passage(row: Mapping[str, Any], key: str) -> str:
    """Return a text whose lines stay."""
    _text(row, key)
    return str(row[key]).strip()


def _texts(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    values = row.get(key)
    if not isinstance(values, list) or not values:
        raise MalformedRowError(f"{key!r} must be a list of texts, got {_kind(values)}")
    items = {f"{key}[{at}]": value for at, value in enumerate(values)}
    return tuple(_text(items, each, may_be_empty=may_be_empty) for each in items)


def _label(row: Mapping[str, Any], key: str, labels: str) -> int:
    """Return the index of a label, which is a number in one format and a text in another."""
    value = row.get(key)
    allowed = labels.split()
    if isinstance(value, bool) or str(value) not in allowed:
        shown = str(value) if isinstance(value, int) else "another text" if isinstance(value, str) else _kind(value)
        raise MalformedRowError(f"{key!r} must be one of {', '.join(allowed)}; got {shown}")
    return allowed.index(str(value))


def _kind(value: Any) -> str:
    return "nothing" if value is None else "an empty list" if value == [] else f"a {type(value).__name__}"


# -- questions ---------------------------------------------------------------------------------


def question_id(question: str, *, context: str | None = None, choices: Iterable[str] = ()) -> str:
    """Return an id made from the question, so that it is the same in every copy, split and order of the set."""
    return hashlib.sha256("\0".join([context or "", question, *choices]).encode()).hexdigest()[:16]


def _open(question: str, answers: Iterable[str], *, category: str | None = None, **more: Any) -> Question:
    distinct = tuple(dict.fromkeys(answers))
    return Question(question_id(question), question, distinct, category=category, **more)


def _choice(
    question: str, choices: tuple[str, ...], right: int, *, context: str | None = None, category: str | None = None
) -> Question:
    if len(set(choices)) < len(choices):
        raise UnfitRowError("has the same choice twice")
    return Question(
        id=question_id(question, context=context, choices=choices),
        question=question,
        answers=(choices[right],),
        choices=choices,
        answer_index=right,
        context=context,
        category=category,
    )


def _triviaqa(row: Mapping[str, Any]) -> Question:
    answer = row.get("answer")
    if not isinstance(answer, Mapping):
        raise MalformedRowError(f"'answer' must be an object, got {_kind(answer)}")
    value = _text(answer, "value")
    if value == "<unk>":
        raise MalformedRowError("has no answer, as in the test split")
    aliases = _texts(answer, "aliases") if answer.get("aliases") else ()
    return _open(_text(row, "question"), [value, *aliases])


def _hotpotqa(row: Mapping[str, Any]) -> Question:
    category = _text(row, "type") if row.get("type") is not None else None
    return _open(_text(row, "question"), [_text(row, "answer")], category=category)


def _movies(row: Mapping[str, Any]) -> Question:
    question = _text(row, "Question")
    if question.startswith("Who acted as in "):
        raise UnfitRowError("names no role")
    return _open(question, [_text(row, "Answer")])


def _winogrande(row: Mapping[str, Any]) -> Question:
    sentence = _text(row, "sentence")
    if sentence.count("_") != 1:
        raise UnfitRowError("has no blank (_), or several")
    if row.get("answer") == "":
        raise MalformedRowError("has no answer, as in the test split")
    options = _text(row, "option1"), _text(row, "option2")
    return _choice(f"What does the blank _ stand for? {sentence}", options, _label(row, "answer", "1 2"))


def _winobias(row: Mapping[str, Any]) -> Question:
    right, wrong = _text(row, "answer"), _text(row, "incorrect_answer")
    # The file tells right from wrong by column; an order by the alphabet gives nothing away.
    choices = tuple(sorted((right, wrong), key=str.casefold))
    return _choice(
        _text(row, "q_instruct"),
        choices,
        choices.index(right),
        context=_text(row, "sentence"),
        category=f"type{_label(row, 'type', '1 2') + 1}-{_text(row, 'stereotype')}",
    )


def _imdb(row: Mapping[str, Any]) -> Question:
    review = re.sub(r"\s*(?:<br\s*/?>\s*)+", "\n", _passage(row, "text")).strip()
    return _choice(
        "Is this movie review positive or negative?",
        ("negative", "positive"),
        _label(row, "label", "0 1"),
        context=review,
    )


def _math(row: Mapping[str, Any]) -> Question:
    answer = _text(row, "answer") if row.get("answer") is not None else boxed(_passage(row, "solution"))
    if not answer or not answer.strip():
        raise UnfitRowError("has no \\boxed answer in its solution")
    category = row.get("type") if row.get("type") is not None else row.get("subject")
    return _open(
        _passage(row, "problem"),
        [answer.strip()],
        category=None if category is None else str(category),
        grader="math",
        meta={} if row.get("level") is None else {"level": str(row["level"])},
    )


def _mmlu(row: Mapping[str, Any]) -> Question:
    choices = _texts(row, "choices", may_be_empty=True)
    if not all(choices):
        raise UnfitRowError("has an empty choice")
    if len(choices) != 4:
        raise MalformedRowError(f"has {len(choices)} choices in place of 4")
    letters = isinstance(row.get("answer"), str)
    right = _label(row, "answer", "A B C D" if letters else "0 1 2 3")
    subject = _text(row, "subject") if row.get("subject") is not None else None
    return _choice(_passage(row, "question"), choices, right, category=subject)


def _natural_questions(row: Mapping[str, Any]) -> Question:
    return _open(_text(row, "question"), _texts(row, "answer"))


def _gsm8k(row: Mapping[str, Any]) -> Question:
    found = re.search(r"####\s*(-?[\d,]+(?:\.\d+)?)\s*$", _passage(row, "answer"))
    if found is None:
        raise MalformedRowError("'answer' does not end with #### and a number")
    return _open(_text(row, "question"), [found[1].replace(",", "")], grader="number")


# -- the sets ----------------------------------------------------------------------------------

_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
_LLMS_KNOW = "technion-cs-nlp/LLMsKnow"

_ALL = (
    NamedSet(
        name="triviaqa",
        repository="mandarjoshi/trivia_qa",
        files=("unfiltered.nocontext/{split}-*.parquet",),
        split="validation",
        splits=("train", "validation"),
        columns=("question", "answer"),
        convert=_triviaqa,
        citation="Joshi et al. 2017, TriviaQA, arXiv:1705.03551",
        licence="not stated for the data (the hub's card: unknown); the authors' code is Apache-2.0",
        notes="Closed book, with all aliases of an answer; the test split has no answers.",
    ),
    NamedSet(
        name="hotpotqa",
        repository="hotpotqa/hotpot_qa",
        files=("distractor/{split}-*.parquet",),
        split="validation",
        splits=("train", "validation"),
        columns=("question", "answer"),
        optional=("type",),
        convert=_hotpotqa,
        citation="Yang et al. 2018, HotpotQA, arXiv:1809.09600",
        licence="CC BY-SA 4.0",
        notes="Closed book: the passages are left out. Many comparison questions are answered by yes or no.",
    ),
    NamedSet(
        name="movies",
        repository=_LLMS_KNOW,
        on_hub=False,
        files=("data/movie_qa_{split}.csv",),
        split="test",
        splits=("train", "test"),
        columns=("Question", "Answer"),
        convert=_movies,
        citation="Orgad et al. 2024, LLMs Know More Than They Show, arXiv:2410.02707",
        licence="MIT (the repository)",
        notes="Which actor played a role in a film. Rows that name no role are left out.",
    ),
    NamedSet(
        name="winogrande",
        repository="allenai/winogrande",
        files=("winogrande_xl/{split}-*.parquet",),
        split="validation",
        splits=("train", "validation"),
        columns=("sentence", "option1", "option2", "answer"),
        convert=_winogrande,
        max_tokens=8,
        citation="Sakaguchi et al. 2019, WinoGrande, arXiv:1907.10641",
        licence="CC BY (the authors' repository); none on the hub's card",
        notes="Two choices; the sentences come in near-identical pairs. The test split has no answers.",
    ),
    NamedSet(
        name="winobias",
        repository=_LLMS_KNOW,
        on_hub=False,
        files=("data/winobias_{split}.csv",),
        split="test",
        splits=("dev", "test"),
        columns=("type", "stereotype", "sentence", "answer", "incorrect_answer", "q_instruct"),
        convert=_winobias,
        max_tokens=8,
        citation="Zhao et al. 2018, WinoBias, arXiv:1804.06876, in the form of Orgad et al. 2024, arXiv:2410.02707",
        licence="MIT (both repositories)",
        notes="Two choices in alphabetical order. The category says the type, and for or against the stereotype.",
    ),
    NamedSet(
        name="imdb",
        repository="stanfordnlp/imdb",
        files=("plain_text/{split}-*.parquet",),
        split="test",
        splits=("train", "test"),
        columns=("text", "label"),
        convert=_imdb,
        max_tokens=8,
        citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis, ACL",
        licence="not stated (the hub's card: other)",
        notes="Sentiment as a choice of two. Long reviews may not fit into a small context.",
    ),
    NamedSet(
        name="math",
        repository="EleutherAI/hendrycks_math",
        files=tuple(f"{subject}/{{split}}-*.parquet" for subject in _SUBJECTS),
        split="test",
        splits=("train", "test"),
        columns=("problem", "solution"),
        optional=("answer", "type", "subject", "level"),
        convert=_math,
        grader="math",
        system=BOXED_SYSTEM,
        max_tokens=1024,
        citation="Hendrycks et al. 2021, Measuring Mathematical Problem Solving (MATH), arXiv:2103.03874",
        licence="MIT",
        notes="Competition problems of seven subjects. Figures stand in the problems as Asymptote code.",
    ),
    NamedSet(
        name="mmlu",
        repository="cais/mmlu",
        files=("all/{split}-*.parquet",),
        split="test",
        splits=("dev", "validation", "test"),
        columns=("question", "choices", "answer"),
        optional=("subject",),
        convert=_mmlu,
        max_tokens=8,
        citation="Hendrycks et al. 2020, Measuring Massive Multitask Language Understanding, arXiv:2009.03300",
        licence="MIT",
        notes="57 subjects, four choices. Rows with the same choice twice are left out.",
    ),
    NamedSet(
        name="natural_questions",
        repository="google-research-datasets/nq_open",
        files=("nq_open/{split}-*.parquet",),
        split="validation",
        splits=("train", "validation"),
        columns=("question", "answer"),
        convert=_natural_questions,
        citation="Kwiatkowski et al. 2019, Natural Questions, TACL; Lee et al. 2019, arXiv:1906.00300 (open version)",
        licence="CC BY-SA 3.0",
        notes="The open version: short answers without a passage; facts as of about 2018.",
        own_names=("nq_open",),
    ),
    NamedSet(
        name="gsm8k",
        repository="openai/gsm8k",
        files=("main/{split}-*.parquet",),
        split="test",
        splits=("train", "test"),
        columns=("question", "answer"),
        convert=_gsm8k,
        grader="number",
        system=NUMBER_SYSTEM,
        max_tokens=512,
        citation="Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv:2110.14168",
        licence="MIT",
        notes="Word problems of primary school; the answer is the number after #### in the solution.",
    ),
)

#: The named sets by name.
SETS: Mapping[str, NamedSet] = MappingProxyType({each.name: each for each in _ALL})
