"""LangChain's messages -> guard's prompt, and an answer's text -> tool calls."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

from guard.content import text_of_content
from guard.errors import InputError

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)

#: Where a message has the thought that came before it, as with other providers.
REASONING = "reasoning_content"


def chat_turns(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages in the form that chat templates read.

    Raises:
        InputError: a message holds something other than text, or is of a kind that no template has.
    """
    return [_turn(message) for message in messages]


def _turn(message: BaseMessage) -> dict[str, Any]:
    match message:
        case SystemMessage():
            return {"role": "system", "content": text_of(message)}
        case HumanMessage():
            named = {"name": message.name} if message.name else {}
            return {"role": "user", "content": text_of(message), **named}
        case AIMessage():
            calls = [_called(call) for call in message.tool_calls]
            turn: dict[str, Any] = {"role": "assistant", "content": text_of(message)}
            thought = reasoning_of(message)
            # Templates decide themselves which of their own earlier thoughts a model reads again.
            turn |= {REASONING: thought} if thought else {}
            return {**turn, "tool_calls": calls} if calls else turn
        case ToolMessage():
            named = {"name": message.name} if message.name else {}
            return {"role": "tool", "content": text_of(message), "tool_call_id": message.tool_call_id, **named}
        case FunctionMessage():
            return {"role": "tool", "content": text_of(message), "name": message.name}
        case ChatMessage():
            return {"role": message.role, "content": text_of(message)}
    raise InputError(f"A {type(message).__name__} cannot be put to a model")


def _called(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}


def reasoning_of(output: Any) -> str | None:
    """What a model thought before a message; None where it did not, or for anything else."""
    thought = output.additional_kwargs.get(REASONING) if isinstance(output, AIMessage) else None
    return thought if isinstance(thought, str) else None


def text_of(message: BaseMessage) -> str:
    """The text of a message.

    Raises:
        InputError: it holds an image, a file, or another block that is no text.
    """
    role = "assistant" if isinstance(message, AIMessage) else message.type
    return text_of_content(message.content, role=role)


# -- tool calls --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer, taken apart.

    Attributes:
        text: what is left beside the tool calls.
        calls: tool calls that can be carried out.
        invalid: what was meant as a tool call and cannot be read.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


def parse_tool_calls(text: str, names: Iterable[str]) -> ParsedAnswer:
    """Find the tool calls in an answer.

    Two open formats are read: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes,
    Qwen and their kin), and an answer that is nothing but such JSON (``parameters`` for ``arguments``
    will do, as will a list, or a fence of backticks), where it names a tool that was offered.

    Args:
        text: the answer.
        names: of the tools that were offered.
    """
    tagged = list(_TAGGED.finditer(text))
    if tagged:
        found = [_read_call(match.group(1)) for match in tagged]
        rest = _TAGGED.sub("", text).strip()
        return ParsedAnswer(
            rest,
            tuple(call for calls in found for call in calls if call["type"] == "tool_call"),
            tuple(call for calls in found for call in calls if call["type"] == "invalid_tool_call"),
        )
    fenced = _FENCED.match(text)
    bare = _calls_in(fenced.group(1) if fenced else text)
    offered = set(names)
    if bare and all(call["type"] == "tool_call" and call["name"] in offered for call in bare):
        return ParsedAnswer("", tuple(call for call in bare if call["type"] == "tool_call"))
    return ParsedAnswer(text)


def _read_call(text: str) -> list[ToolCall | InvalidToolCall]:
    return _calls_in(text) or [_invalid(None, text, "not the JSON of a tool call")]


def _calls_in(text: str) -> list[ToolCall | InvalidToolCall]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    entries = value if isinstance(value, list) else [value]
    calls = [_call_of(entry) for entry in entries]
    return [call for call in calls if call is not None] if all(calls) else []


def _call_of(entry: Any) -> ToolCall | InvalidToolCall | None:
    """One call, or None where an entry does not look like one."""
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    arguments = next((entry[key] for key in ("arguments", "parameters") if key in entry), None)
    if arguments is None:
        return None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return _invalid(entry["name"], arguments, "the arguments are not JSON")
    if not isinstance(arguments, dict):
        return _invalid(entry["name"], json.dumps(arguments), "the arguments are not an object")
    return tool_call(name=entry["name"], args=arguments, id=f"call_{uuid.uuid4().hex}")


def _invalid(name: str | None, arguments: str, error: str) -> InvalidToolCall:
    return invalid_tool_call(name=name, args=arguments, id=f"call_{uuid.uuid4().hex}", error=error)
