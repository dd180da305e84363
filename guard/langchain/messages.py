"""Conversion of LangChain messages to guard's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)

from guard.content import text_of_content
from guard.errors import InputError

#: Key of a message's ``additional_kwargs`` for the reasoning before it, as with other providers.
REASONING = "reasoning_content"


def chat_turns(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates read.

    Raises:
        InputError: a message contains something other than text, or has a type that no template knows.
    """
    return [_turn(message) for message in messages]


def _turn(message: BaseMessage) -> dict[str, Any]:
    match message:
        case SystemMessage():
            return {"role": "system", "content": message_text(message)}
        case HumanMessage():
            name = {"name": message.name} if message.name else {}
            return {"role": "user", "content": message_text(message), **name}
        case AIMessage():
            calls = [_call(call) for call in message.tool_calls]
            turn: dict[str, Any] = {"role": "assistant", "content": message_text(message)}
            thought = read_reasoning(message)
            # Templates decide which of its earlier reasoning a model reads again.
            turn |= {REASONING: thought} if thought else {}
            return {**turn, "tool_calls": calls} if calls else turn
        case ToolMessage():
            name = {"name": message.name} if message.name else {}
            return {"role": "tool", "content": message_text(message), "tool_call_id": message.tool_call_id, **name}
        case FunctionMessage():
            return {"role": "tool", "content": message_text(message), "name": message.name}
        case ChatMessage():
            return {"role": message.role, "content": message_text(message)}
    raise InputError(f"A {type(message).__name__} cannot be sent to a model")


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}


def read_reasoning(output: Any) -> str | None:
    """Return the reasoning before a message; None without reasoning, and for anything that is no message."""
    thought = output.additional_kwargs.get(REASONING) if isinstance(output, AIMessage) else None
    return thought if isinstance(thought, str) else None


def message_text(message: BaseMessage) -> str:
    """Return the text of a message.

    Raises:
        InputError: it contains an image, a file, or another block that is not text.
    """
    role = "assistant" if isinstance(message, AIMessage) else message.type
    return text_of_content(message.content, role=role)
