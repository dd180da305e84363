"""Labels of spans: questions whose longer answers are labelled claim by claim, as JSON Lines.

A row has a ``question`` and ``claims``: what a span is ``about``, and the ``answers`` of which it must have one.
Equations are computed. Or it has a ``response`` with ``spans``, each from ``start`` to ``end`` and ``wrong`` or not.
Instead of a question it can have a whole ``prompt``, as rows of judged responses do. Spans that no claim, equation or
mark covers have no label, and are left out. docs/how-to/long-answers.md describes the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from guard.data.equations import equations_hold
from guard.data.normalised import normalise
from guard.data.questions import read_object
from guard.data.row_prompts import PROMPT_KEYS, read_row_prompt
from guard.data.row_values import (
    BadValueError,
    read_filled_text,
    read_mappings,
    read_text,
    read_texts,
    read_truth,
    read_whole_number,
)
from guard.errors import InputError, did_you_mean
from guard.files.json_lines import check_json_lines, read_lines
from guard.records import Prompt

_KEYS = ("question", "claims", "equations", "response", "spans", "model", *PROMPT_KEYS)
_ValueT = TypeVar("_ValueT")
_DefaultT = TypeVar("_DefaultT")


@dataclass(frozen=True, slots=True)
class ExpectedClaim:
    """What spans about one thing must say.

    Attributes:
        about: words that such a span has, such as ``capital``.
        answers: of which it must have one.
    """

    about: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MarkedPlace:
    """A part of a given response with its label."""

    start: int
    end: int
    wrong: bool


@dataclass(frozen=True, slots=True)
class SpanRow:
    """A question whose answer is labelled in parts.

    Attributes:
        question: the text of the question, or of what the user said last.
        claims: what spans of the answer must say.
        equations: whether equations in the answer are computed.
        response: a given answer, or None where the model is asked.
        marks: labelled parts of the given answer.
        prompt: the whole prompt, or None for the question with a run's system message.
        model: name of the model that gave the response, or None where it is unknown.
    """

    question: str
    claims: tuple[ExpectedClaim, ...] = ()
    equations: bool = True
    response: str | None = None
    marks: tuple[MarkedPlace, ...] = ()
    prompt: Prompt | None = None
    model: str | None = None

    def labels(self, text: str, places: Sequence[tuple[int, int]]) -> tuple[bool | None, ...]:
        """Return whether each span of an answer is wrong; None where that is not known.

        Examples:
            >>> row = SpanRow("Norway?", (ExpectedClaim("capital", ("Oslo",)),))
            >>> row.labels("Capital: Oslo\\nIts capital is Bergen\\n2 + 2 = 4", [(0, 13), (14, 35), (36, 45)])
            (False, True, False)
        """
        return tuple(self._label(text, *place) for place in places)

    def _label(self, text: str, start: int, end: int) -> bool | None:
        found = [*self._by_marks(start, end), *self._by_claims(text[start:end])]
        if self.equations and (holds := equations_hold(text[start:end])) is not None:
            found.append(not holds)
        return any(found) if found else None

    def _by_marks(self, start: int, end: int) -> Iterator[bool]:
        return (mark.wrong for mark in self.marks if mark.start < end and mark.end > start)

    def _by_claims(self, span: str) -> Iterator[bool]:
        """Yield the label by the claim that the span is about; a span about several is not labelled by them."""
        words = f" {normalise(span)} "
        about = [claim for claim in self.claims if f" {normalise(claim.about)} " in words]
        if len(about) == 1:
            yield not any(f" {normalise(answer)} " in words for answer in about[0].answers)


def read_span_rows(path: str | Path) -> tuple[SpanRow, ...]:
    """Read a file of labelled spans.

    Raises:
        InputError: the file cannot be read, is empty, or has a row that cannot be used.

    Examples:
        >>> read_span_rows("no.jsonl")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    path = Path(path)
    check_json_lines(path)
    rows = tuple(_row(path, line, content) for line, content in read_lines(path))
    if not rows:
        raise InputError(f"'{path}' has no rows")
    return rows


def file_sha256(path: str | Path) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _row(path: Path, line: int, content: bytes | None) -> SpanRow:
    try:
        return _parsed(read_object(content))
    except (BadValueError, InputError) as error:
        why = str(error) if isinstance(error, InputError) else f"the row {error}"
        raise InputError(f"'{path}', line {line} has no labelled spans", why=why) from error


def _parsed(row: Mapping[str, Any]) -> SpanRow:
    _check_known(row, _KEYS)
    response = _given(row, "response", read_text, None)
    marks = tuple(_mark(each, response) for each in _given(row, "spans", read_mappings, None) or ())
    claims = tuple(_claim(each) for each in _given(row, "claims", read_mappings, None) or ())
    equations = _given(row, "equations", read_truth, True)
    if not claims and not marks and not equations:
        raise BadValueError("has neither claims nor equations nor spans, so nothing is labelled")
    question, prompt = _asked(row)
    model = _given(row, "model", read_filled_text, None)
    return SpanRow(question, claims, equations, response, marks, prompt, model)


def _asked(row: Mapping[str, Any]) -> tuple[str, Prompt | None]:
    """Return the question of a row, and its whole prompt if it has one."""
    whole = [key for key in PROMPT_KEYS if row.get(key) is not None]
    if "question" not in row:
        if not whole:
            raise BadValueError("misses 'question' or 'prompt'")
        prompt = read_row_prompt(row)
        return prompt.question, prompt
    if whole:
        raise BadValueError(f"has both 'question' and {whole[0]!r}; a whole prompt has the question in it")
    return read_filled_text(row["question"], "question"), None


def _claim(row: Mapping[str, Any]) -> ExpectedClaim:
    _check_known(row, ("about", "answers"))
    if "about" not in row or not row.get("answers"):
        raise BadValueError("has a claim without 'about' or 'answers'")
    about, answers = read_filled_text(row["about"], "about"), read_texts(row["answers"], "answers")
    for text in (about, *answers):
        if not normalise(text):
            raise BadValueError(f"has a claim with {text!r:.50}, in which there is no word")
    return ExpectedClaim(about, answers)


def _mark(row: Mapping[str, Any], response: str | None) -> MarkedPlace:
    _check_known(row, ("start", "end", "wrong"))
    if response is None:
        raise BadValueError("has 'spans' but no 'response' that they belong to")
    if not row.keys() >= {"start", "end", "wrong"}:
        raise BadValueError("has a span without 'start', 'end' or 'wrong'")
    start, end = (read_whole_number(row[key], key) for key in ("start", "end"))
    if not 0 <= start < end <= len(response):
        raise BadValueError(f"has a span from {start} to {end} in a response of {len(response)} characters")
    return MarkedPlace(start, end, read_truth(row["wrong"], "wrong"))


def _check_known(row: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in row:
        if key not in known:
            raise BadValueError(f"has the unknown key {key!r:.50}. {did_you_mean(key, known)}")


def _given(
    row: Mapping[str, Any], key: str, read: Callable[[Any, str], _ValueT], default: _DefaultT
) -> _ValueT | _DefaultT:
    return default if row.get(key) is None else read(row[key], key)
