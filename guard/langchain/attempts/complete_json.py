"""Refuses structured answers that are cut: half of an object is another object.

LangChain's parsers close what is open in a JSON text, for streams: ``{"dose": 15`` of ``{"dose": 150}``
becomes a dose of 15. Here an answer is parsed only where it came to its end and all of it is JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.utils.json import parse_partial_json

from guard.errors import GuardError
from guard.langchain.metadata import finish_reason_of

_FENCES = (re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE), re.compile(r"```json\s(.*)", re.DOTALL))


class CutAnswerError(GuardError, OutputParserException):
    """A structured answer is cut or does not close. Quotes nothing of the answer."""


def whole_json(message: AIMessage) -> AIMessage:
    """Return the message with its JSON text alone; a fence of backticks and words around it are dropped.

    Raises:
        CutAnswerError: the answer was cut, or is not one JSON text with each key once.
    """
    _check_end(message)
    text = str(message.text)
    for candidate in _candidates(text):
        try:
            _loads(candidate)
        except (ValueError, RecursionError):
            continue
        return message.model_copy(update={"content": candidate.strip()})
    raise CutAnswerError("The answer is not one whole JSON text", fix="Look at the raw message: include_raw=True")


def whole_calls(message: AIMessage) -> AIMessage:
    """Return the message, whose tool calls are whole.

    Raises:
        CutAnswerError: the answer was cut, or has a tool call that cannot be read.
    """
    _check_end(message)
    if message.invalid_tool_calls:
        raise CutAnswerError(
            "A tool call of the answer cannot be read", fix="Look at the raw message: include_raw=True"
        )
    return message


def _check_end(message: AIMessage) -> None:
    if finish_reason_of(message) == "length":
        raise CutAnswerError(
            "The answer is cut",
            why="it reached its token limit or the end of the context",
            fix="Raise max_tokens",
        )


def _candidates(text: str) -> Iterator[str]:
    yield text
    for fence in _FENCES:
        match = fence.search(text)
        if match:
            yield match.group(1)


def _loads(text: str) -> Any:
    return DECODER.decode(text)


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond every number")
    return number


#: Reads JSON as it stands: each key once, and no NaN or infinity, however it is written.
DECODER = json.JSONDecoder(strict=False, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_each_once)


def unmendable(arguments: str | None) -> str:
    """Return the arguments of an invalid call so that no merging of chunks makes a valid call of them.

    LangChain closes what is open in the arguments of merged chunks, and takes none at all for an empty object.
    """
    text = arguments or ""
    try:
        mended = parse_partial_json(text) if text else {}
    except ValueError:
        return text
    return json.dumps(text, ensure_ascii=False) if isinstance(mended, dict) else text
