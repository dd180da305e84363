"""Refuses truncated structured answers: half of an object is another object.

LangChain's parsers close an incomplete JSON text, for streams: ``{"dose": 15`` of ``{"dose": 150}`` becomes a dose of
15. Here an answer is parsed only if it is complete and all of it is JSON.
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
from guard.langchain.metadata import read_finish_reason

_FENCES = (re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE), re.compile(r"```json\s(.*)", re.DOTALL))


class IncompleteAnswerError(GuardError, OutputParserException):
    """A structured answer is truncated or its JSON does not close. The text quotes nothing of the answer."""


def complete_json(message: AIMessage) -> AIMessage:
    """Return the message with only its JSON text; a code fence and the words around it are dropped.

    Raises:
        IncompleteAnswerError: the answer is truncated, or is not one JSON text without duplicate keys.
    """
    _check_end(message)
    text = str(message.text)
    for candidate in _candidates(text):
        try:
            _loads(candidate)
        except (ValueError, RecursionError):
            continue
        return message.model_copy(update={"content": candidate.strip()})
    raise IncompleteAnswerError(
        "The answer is not one complete JSON text", fix="Look at the raw message: include_raw=True"
    )


def complete_tool_calls(message: AIMessage) -> AIMessage:
    """Return the message if its tool calls are complete.

    Raises:
        IncompleteAnswerError: the answer is truncated, or has a tool call that cannot be parsed.
    """
    _check_end(message)
    if message.invalid_tool_calls:
        raise IncompleteAnswerError(
            "A tool call of the answer cannot be parsed", fix="Look at the raw message: include_raw=True"
        )
    return message


def _check_end(message: AIMessage) -> None:
    if read_finish_reason(message) == "length":
        raise IncompleteAnswerError(
            "The answer is truncated",
            why="it reached its token limit or the end of the context",
            fix="Raise max_tokens",
        )


def _candidates(text: str) -> Iterator[str]:
    yield text
    for fence in _FENCES:
        match = fence.search(text)
        # JSON beside the fence is another answer: "Not ```json {...}```, but {...}".
        if match and "{" not in text[: match.start()] + text[match.end() :]:
            yield match.group(1)


def _loads(text: str) -> Any:
    value = DECODER.decode(text)
    json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


#: Parses JSON strictly: no duplicate keys, no NaN and no infinity in any notation.
DECODER = json.JSONDecoder(
    strict=False, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
)


def unrepairable(arguments: str | None) -> str:
    """Return the arguments of an invalid call in a form that merging of chunks cannot turn into a valid call.

    LangChain closes incomplete arguments of merged chunks, and reads missing arguments as an empty object.
    """
    text = arguments or ""
    try:
        repaired = parse_partial_json(text) if text else {}
    except ValueError:
        return text
    return json.dumps(text, ensure_ascii=False) if isinstance(repaired, dict) else text
