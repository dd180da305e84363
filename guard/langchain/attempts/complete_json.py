"""Refuses truncated structured answers: half of an object is another object.

LangChain's parsers close an incomplete JSON text, for streams: ``{"dose": 15`` of ``{"dose": 150}`` becomes a dose of
15. Here an answer is parsed only if it is complete and all of it is JSON.
"""

from __future__ import annotations

import json

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.utils.json import parse_partial_json

from guard.engines.strict_json import json_text
from guard.errors import GuardError
from guard.langchain.metadata import read_finish_reason


class IncompleteAnswerError(GuardError, OutputParserException):
    """A structured answer is truncated or its JSON does not close. The text quotes nothing of the answer."""


def complete_json(message: AIMessage) -> AIMessage:
    """Return the message with only its JSON text; a code fence and the words around it are dropped.

    Raises:
        IncompleteAnswerError: the answer is truncated, or is not one JSON text without duplicate keys.
    """
    _check_end(message)
    text = json_text(str(message.text))
    if text is None:
        raise IncompleteAnswerError(
            "The answer is not one complete JSON text", fix="Look at the raw message: include_raw=True"
        )
    return message.model_copy(update={"content": text})


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
