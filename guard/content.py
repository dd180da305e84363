"""The content of a chat message as text: a string, or blocks of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guard.errors import InputError

#: Types of blocks in an assistant's message that repeat or explain it and are not part of its text.
ASIDE = frozenset({"tool_use", "tool_call", "invalid_tool_call", "function_call", "thinking", "reasoning"})


def text_of_content(content: Any, *, role: str, calls_tools: bool = False) -> str:
    """Return the text of one message.

    Args:
        content: a text, or a list of texts and of blocks such as ``{"type": "text", "text": "..."}``.
        role: role of the message; an assistant's may have blocks that repeat its tool calls or thoughts.
        calls_tools: whether the message has tool calls and therefore needs no content.

    Raises:
        InputError: the content is missing, or is something other than text, such as an image.
    """
    if isinstance(content, str):
        return content
    if content is None and calls_tools:
        return ""
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return "".join(_text_of_block(block, role) for block in content)
    raise InputError(
        f"The content of a message of the role '{role}' is {_named(content)}",
        fix="Send a text, or a list of text blocks",
    )


def plain_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat message whose content is one text; see `text_of_content`."""
    calls = bool(turn.get("tool_calls"))
    return {**turn, "content": text_of_content(turn.get("content"), role=str(turn.get("role")), calls_tools=calls)}


def _text_of_block(block: Any, role: str) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if role == "assistant" and kind in ASIDE:
        return ""
    raise InputError(
        f"A message of the role '{role}' holds a block of type '{kind}'",
        why="guard's engines read text only",
        fix="Send text blocks, or describe the rest in words",
    )


def _named(content: Any) -> str:
    return "missing" if content is None else f"a {type(content).__name__}"


def instructed_text(text: str, instruction: str) -> str:
    """Return a raw prompt with an instruction inserted before a last line such as "Answer:"."""
    before, newline, cue = text.rpartition("\n")
    if newline and cue.rstrip().endswith(":"):
        return f"{before}\n{instruction}\n{cue}"
    return f"{text}\n{instruction}\n"
