"""Labelled data: questions with accepted answers, or responses with labels, as JSON Lines.

Each bad row is reported with its line and the reason; the caller decides whether that is an error.
docs/reference/data.md describes the format.
"""

from __future__ import annotations

import bisect
import difflib
import hashlib
import itertools
import json
import math
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from guard.checked import checked_seed
from guard.data.row_prompts import read_row_prompt
from guard.data.row_values import (
    BadValueError,
    json_kind,
    optional,
    read_filled_text,
    read_mapping,
    read_positive_number,
    read_text,
    read_texts,
    read_whole_number,
    required,
)
from guard.errors import InputError, did_you_mean
from guard.files.json_lines import MAX_LINE_BYTES, check_json_lines, read_lines
from guard.records import Prompt
from guard.scoring.labels import Label

#: Choices have letters, so this is also their largest number.
LETTERS = string.ascii_uppercase
#: Built-in graders, which a row can name. A user's own (``module:function``) is code; only the caller can name it.
GRADER_NAMES = ("text", "number", "math", "choice", "regex")
_SHOWN_BAD_ROWS = 5

_QUESTION_KEYS = (
    *("id", "question", "answers", "choices", "answer_index"),
    *("context", "category", "grader", "meta"),
)
_RESPONSE_KEYS = (
    *("raw", "control_tokens"),
    *("id", "prompt", "response", "wrong", "label", "category", "meta", "weight"),
    *("tools", "template_options"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        id: unique in its file.
        question: the text of the question.
        answers: accepted answers; each of them is right. Empty where the question has no label.
        choices: the choices, or None for an open question.
        answer_index: index of the right choice, or None.
        context: a passage to read first, or None.
        category: category for tables, or None.
        grader: name of the grader, or None for the default one (see `guard.data.graders.grader_for`).
        meta: further values, such as ``answer_regex``.

    Examples:
        >>> Question(id="1", question="Which is a planet?", answers=("Mars",), choices=("the Sun", "Mars")).answers
        ('Mars',)
    """

    id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    context: str | None = None
    category: str | None = None
    grader: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A response with a label.

    Attributes:
        id: unique in its file.
        prompt: the prompt of the response.
        response: the model's text.
        wrong: the label; a number from 0 (right) to 1 (wrong) says how wrong it is.
        category: category for tables, or None.
        meta: further values.
        model: name of the model, as ``guard review export`` writes it, or None where it is unknown.
        weight: number of answers that this one stands for, above 0.
    """

    id: str
    prompt: Prompt
    response: str
    wrong: Label
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    weight: float = 1.0


Row = Question | LabelledResponse
RowT = TypeVar("RowT", Question, LabelledResponse, Row)
_ValueT = TypeVar("_ValueT")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be used: its number, from 1, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The rows of a file in their order, and the lines that cannot be used."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]


def read_rows(
    path: str | Path,
    *,
    on_bad: Literal["stop", "skip"] = "stop",
    limit: int | None = None,
    seed: int = 0,
    unlabelled: bool = False,
) -> ReadResult:
    """Read a JSON Lines file, plain or gzip-compressed; blank lines are ignored.

    Args:
        path: of the file.
        on_bad: ``stop`` raises when there is any bad row, ``skip`` reports them in the result.
        limit: draw at most this many rows, without replacement; they keep the file's order.
        seed: decides which rows are drawn. A row's draw depends on its id only, so that adding
            rows changes the sample as little as possible.
        unlabelled: whether a question may come without accepted answers; its ``answers`` are empty then.

    Raises:
        InputError: the file cannot be read, has no usable row, or has bad rows and ``on_bad`` is
            ``stop``; the message names the first of them as ``file:line: reason``.

    Examples:
        >>> from pathlib import Path
        >>> text = '{"id": "1", "question": "What is 2 + 2?", "answers": ["4"]}'
        >>> _ = Path("questions.jsonl").write_text(text)
        >>> [row.question for row in read_rows("questions.jsonl").rows]
        ['What is 2 + 2?']
    """
    checked_seed(seed)
    if on_bad not in ("stop", "skip"):
        raise InputError(f"on_bad must be 'stop' or 'skip', got {on_bad!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    rows: list[Row] = []
    bad: list[BadRow] = []
    lines_by_id: dict[str, int] = {}
    labels: dict[str, tuple[int, Label]] = {}
    file = Path(path).expanduser()
    check_json_lines(file)
    for line, content in read_lines(file):
        try:
            row = _parse(content, unlabelled=unlabelled)
            if row.id in lines_by_id:
                raise BadValueError(f"repeats the id or the content of line {lines_by_id[row.id]}")
            if isinstance(row, LabelledResponse):
                _check_label(row, line, labels)
        except BadValueError as error:
            bad.append(BadRow(line, str(error)))
        else:
            lines_by_id[row.id] = line
            rows.append(row)
    if bad and on_bad == "stop":
        raise _bad_rows(path, bad)
    if not rows:
        raise InputError(f"{path} has no usable row", why=f"line {bad[0].line}: {bad[0].reason}" if bad else "")
    return ReadResult(tuple(draw_rows(rows, limit=limit, seed=seed)), tuple(bad))


def _check_label(row: LabelledResponse, line: int, labels: dict[str, tuple[int, Label]]) -> None:
    """Refuse a prompt and response that the file labels in two ways."""
    prompt = row.prompt
    asked = [prompt.messages, prompt.text, prompt.tools, prompt.template_options]
    said = json.dumps([*asked, row.response, row.model], sort_keys=True, default=str)
    before, wrong = labels.setdefault(said, (line, row.wrong))
    if wrong != row.wrong:
        now, then = (_in_words(label) for label in (row.wrong, wrong))
        raise BadValueError(f"is labelled {now}; line {before} labels the same response {then}")


def _in_words(label: Label) -> str:
    return ("right", "wrong")[label] if isinstance(label, bool) else f"{label:g} wrong"


def split_questions(rows: Sequence[RowT], *, seed: int, shares: Mapping[str, float]) -> dict[str, list[RowT]]:
    """Divide rows into disjoint parts, so that no question is in two of them.

    Rows with the same text (including the passage; without case, spaces and end punctuation) stay together. A row's
    part depends only on its text, the seed and the shares, so that rows added later do not move others.

    Args:
        rows: questions or responses.
        seed: seed of the division.
        shares: share by part, such as ``{"fit": 0.8, "test": 0.2}``; they add up to 1. Actual shares vary by chance.

    Raises:
        InputError: a share is not above 0, or they do not add up to 1.
    """
    checked_seed(seed)
    if not shares or any(not share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise InputError(f"Shares must be above 0 and add up to 1, got {dict(shares)}")
    parts: dict[str, list[RowT]] = {name: [] for name in shares}
    for row in rows:
        parts[choose_split(split_text(row), seed=seed, shares=shares)].append(row)
    return parts


def choose_split(text: str, *, seed: int, shares: Mapping[str, float]) -> str:
    """Return the part that the row of a `split_text` belongs to; see `split_questions`.

    Examples:
        >>> choose_split("what is 2 + 2", seed=0, shares={"fit": 0.8, "test": 0.2})
        'fit'
    """
    names, ends = list(shares), list(itertools.accumulate(shares.values()))
    return names[min(bisect.bisect_right(ends, position(seed, text)), len(names) - 1)]


def draw_rows(rows: Sequence[RowT], *, limit: int | None, seed: int) -> Sequence[RowT]:
    """Return at most ``limit`` rows, drawn by their ids, in their old order; all rows where it is None."""
    if limit is None or len(rows) <= limit:
        return rows
    drawn = sorted(range(len(rows)), key=lambda at: position(seed, rows[at].id))[:limit]
    return [rows[at] for at in sorted(drawn)]


def position(seed: int, text: str) -> float:
    """Return a number in [0, 1) that depends only on the text and the seed."""
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def question_identity(row: Row) -> str:
    """Return 32 hexadecimal digits, the same for rows that `split_questions` treats as one question."""
    return hashlib.sha256(split_text(row).encode()).hexdigest()[:32]


def split_text(row: Row) -> str:
    """Return the text that decides a row's split: passage and question, or all turns, without case, spaces, end marks.

    Examples:
        >>> split_text(Question("1", "What is 1 + 1?", ("2",)))
        'what is 1 + 1'
    """
    if isinstance(row, Question):
        text = f"{row.context or ''}\n{row.question}"
    else:
        turns = row.prompt.messages or ({"role": "user", "content": row.prompt.text or ""},)
        text = "\n".join(str(turn["content"]) for turn in turns if turn["role"] != "system")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" ?!.")


def _bad_rows(path: str | Path, bad: Sequence[BadRow]) -> InputError:
    return bad_rows_error([f"{path}:{row.line}: {row.reason}" for row in bad])


def bad_rows_error(reasons: Sequence[str]) -> InputError:
    """Return the error for rows that cannot be used, with the first reasons, one per line."""
    more = [f"and {len(reasons) - _SHOWN_BAD_ROWS} more"] if len(reasons) > _SHOWN_BAD_ROWS else []
    count = "1 bad row" if len(reasons) == 1 else f"{len(reasons)} bad rows"
    shown = "\n".join([*reasons[:_SHOWN_BAD_ROWS], *more])
    return InputError(count, why=shown, fix="Correct them, or leave them out with --on-bad skip (on_bad='skip')")


# -- rows --------------------------------------------------------------------------------------


def _parse(content: bytes | None, *, unlabelled: bool) -> Row:
    if content is None:
        raise BadValueError(f"the line is longer than {MAX_LINE_BYTES} bytes")
    row = _json_object(content)
    if "question" in row and "response" in row:
        raise BadValueError("has both 'question' and 'response'; a row is one or the other")
    if "response" in row or ("prompt" in row and "question" not in row):
        return _response(row)
    return _question(row, unlabelled=unlabelled)


def read_object(content: bytes | None) -> dict[str, Any]:
    """Return the JSON object of a line, read strictly.

    Raises:
        InputError: the line is not an object, or has invalid JSON or text (NaN, half of a surrogate pair).
    """
    try:
        if content is None:
            raise BadValueError(f"is longer than {MAX_LINE_BYTES} bytes")
        return _json_object(content)
    except BadValueError as error:
        raise InputError(f"The row {error}") from error


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
        row = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_without_repeats)
        if "\\u" in text:  # half of a surrogate pair is JSON, but no text
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise BadValueError(f"is not UTF-8 (byte {error.start + 1} of the line)") from error
    except UnicodeEncodeError as error:
        raise BadValueError("has half of a surrogate pair, which is no character") from error
    except json.JSONDecodeError as error:
        raise BadValueError(f"is not JSON: {error.msg} in column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise BadValueError("is nested too deeply, or has a number that is too long") from error
    if not isinstance(row, dict):
        raise BadValueError(f"is {json_kind(row)}, not an object; write one JSON object a line")
    return row


def _no_constant(name: str) -> NoReturn:
    raise BadValueError(f"has {name}, which is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadValueError("has a number that is too large")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise BadValueError("has the same key twice")
    return values


def _question(row: Mapping[str, Any], *, unlabelled: bool) -> Question:
    _check_keys(row, _QUESTION_KEYS)
    question = required(row, "question", read_filled_text, _QUESTION_KEYS)
    choices = optional(row, "choices", read_texts)
    index = optional(row, "answer_index", read_whole_number)
    if choices is not None:
        _check_choices(choices)
    elif index is not None:
        raise BadValueError("has 'answer_index' but no 'choices'")
    if unlabelled and index is None and row.get("answers") is None:
        answers: tuple[str, ...] = ()
    elif choices is None:
        answers = required(row, "answers", read_texts, _QUESTION_KEYS)
    else:
        index, answers = _right_choice(choices, index, optional(row, "answers", read_texts))
    found = Question(
        id=_id(row),
        question=question,
        answers=answers,
        choices=choices,
        answer_index=index,
        context=optional(row, "context", read_filled_text),
        category=optional(row, "category", read_filled_text),
        grader=optional(row, "grader", read_filled_text),
        meta=optional(row, "meta", read_mapping) or {},
    )
    _check_grader(found)
    return found


def _check_choices(choices: tuple[str, ...]) -> None:
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadValueError(f"has {len(choices)} choices; from 2 to {len(LETTERS)} can be lettered")
    if len(set(choices)) < len(choices):
        raise BadValueError("has the same choice twice")


def _right_choice(
    choices: tuple[str, ...], index: int | None, answers: tuple[str, ...] | None
) -> tuple[int, tuple[str, ...]]:
    """Return the index of the right choice and the accepted answers; the row needs only one of them."""
    if index is None:
        if answers is None:
            raise BadValueError("needs 'answer_index' or 'answers' beside its choices")
        right = [at for at, choice in enumerate(choices) if choice in answers]
        if len(right) != 1:
            raise BadValueError(f"has {len(right)} choices among its 'answers'; name the right one: 'answer_index'")
        index = right[0]
    if not 0 <= index < len(choices):
        raise BadValueError(f"has answer_index {index}, but {len(choices)} choices (counted from 0)")
    if answers is None:
        return index, (choices[index],)
    if choices[index] not in answers:
        raise BadValueError("has a right choice that is not among its 'answers'")
    return index, answers


def _check_grader(question: Question) -> None:
    grader = question.grader
    if grader is None:
        return
    if ":" in grader:
        raise BadValueError(f"names code as its grader, {grader!r:.50}, which data may not; give it with --grader")
    if grader not in GRADER_NAMES:
        raise BadValueError(f"has the unknown grader {grader!r:.50}. {did_you_mean(grader, GRADER_NAMES)}")
    if grader == "choice" and question.choices is None:
        raise BadValueError("has the grader 'choice' but no 'choices'")
    if grader == "regex" and not isinstance(question.meta.get("answer_regex"), str):
        raise BadValueError("has the grader 'regex' but no text 'answer_regex' in 'meta'")


def _response(row: Mapping[str, Any]) -> LabelledResponse:
    _check_keys(row, _RESPONSE_KEYS)
    return LabelledResponse(
        id=_id(row),
        prompt=read_row_prompt(row),
        response=required(row, "response", read_text, _RESPONSE_KEYS),
        wrong=_label(row),
        category=optional(row, "category", read_filled_text),
        meta=optional(row, "meta", read_mapping) or {},
        model=optional(row, "model", read_filled_text),
        weight=1.0 if (weight := optional(row, "weight", read_positive_number)) is None else weight,
    )


def _label(row: Mapping[str, Any]) -> Label:
    wrong, label = row.get("wrong"), row.get("label")
    if wrong is not None and label is not None:
        raise BadValueError("has both 'wrong' and 'label'; give one")
    if wrong is not None:
        return _graded(wrong)
    if label is None:
        raise BadValueError("misses 'wrong' (true or false, or a number from 0 to 1)")
    if isinstance(label, bool):
        raise BadValueError("'label' must not be true or false, which could mean either; use 'wrong'")
    if label in (0, 1):
        return bool(label)
    if label in ("right", "wrong"):
        return bool(label == "wrong")
    raise BadValueError('\'label\' must be 1 or "wrong", or 0 or "right"')


def _graded(wrong: Any) -> Label:
    """Return a label: true or false, or how wrong the answer is."""
    if isinstance(wrong, bool):
        return wrong
    if not isinstance(wrong, int | float) or not 0 <= wrong <= 1:
        got = wrong if isinstance(wrong, int | float) else json_kind(wrong)
        raise BadValueError(f"'wrong' must be true or false, or a number from 0 (right) to 1 (wrong), got {got}")
    return bool(wrong) if wrong in (0, 1) else float(wrong)


def _id(row: Mapping[str, Any]) -> str:
    """Return the row's own id, or a hash of its content."""
    if (given := row.get("id")) is None:
        canonical = json.dumps(row, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return read_filled_text(given, "id")


# -- values ------------------------------------------------------------------------------------


def _check_keys(row: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse misspelt optional keys; other unknown keys are the user's own."""
    absent = [key for key in known if row.get(key) is None]
    for key in row:
        if key not in known and difflib.get_close_matches(key, absent, n=1, cutoff=0.75):
            raise BadValueError(f"has the unknown key {key!r:.50}. {did_you_mean(key, absent)}")
