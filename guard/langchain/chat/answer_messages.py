"""Conversion of generated answers to LangChain messages and stream chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from guard.engines.tool_calls import HERMES, TextAroundCalls, ToolFormat, parse_tool_calls
from guard.langchain.attempts.complete_json import unrepairable
from guard.langchain.messages import REASONING
from guard.records import Limits, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of a chat model, ready for an engine.

    Attributes:
        prompt: prompt with everything that the call adds to it.
        sampling: sampling parameters.
        limits: limits of the answer.
        tools: names of the tools that the model may call.
        form: form in which the model writes tool calls.
        demanded: whether the prompt asks for a tool call.
        around: where the answer may have text beside its tool calls.
    """

    prompt: Prompt
    sampling: Sampling
    limits: Limits
    tools: tuple[str, ...]
    form: ToolFormat = HERMES
    demanded: bool = False
    around: TextAroundCalls = "before"


def parse_answer(request: ChatRequest, text: str, reasoning: str | None) -> dict[str, Any]:
    """Return the parts of the message for an answer's text: content, tool calls, and additional arguments."""
    kept = {REASONING: reasoning} if reasoning else {}
    if not request.tools:
        return {"content": text, "additional_kwargs": kept}
    tools = request.prompt.tools
    answer = parse_tool_calls(
        text, request.tools, request.form, tools=tools, demanded=request.demanded, around=request.around
    )
    found = bool(answer.calls or answer.invalid)
    return {
        "content": answer.text,
        "tool_calls": list(answer.calls),
        "invalid_tool_calls": list(answer.invalid),
        "additional_kwargs": {**kept, **({"raw_text": text} if found else {})},
    }


def text_chunk(text: str) -> ChatGenerationChunk:
    """Return a chunk with a piece of text."""
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def last_chunk(usage: UsageMetadata | None, metadata: dict[str, Any]) -> ChatGenerationChunk:
    """Return the chunk that ends a stream.

    It is the only chunk with metadata, since LangChain adds up the metadata of several.
    """
    return ChatGenerationChunk(
        message=AIMessageChunk(content="", usage_metadata=usage, response_metadata=metadata, chunk_position="last")
    )


def message_chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """Yield a complete message as a stream."""
    yield from content_chunks(
        {
            "content": message.content,
            "tool_calls": message.tool_calls,
            "invalid_tool_calls": message.invalid_tool_calls,
            "additional_kwargs": message.additional_kwargs,
        }
    )
    yield last_chunk(message.usage_metadata, message.response_metadata)


def content_chunks(content: dict[str, Any]) -> Iterator[ChatGenerationChunk]:
    """Yield the parts of a message (see `parse_answer`) as one chunk; nothing if they are empty."""
    invalid = ({**call, "args": unrepairable(call["args"])} for call in content.get("invalid_tool_calls", ()))
    calls = [*content.get("tool_calls", ()), *invalid]
    chunks = [
        tool_call_chunk(
            name=call["name"],
            args=json.dumps(call["args"], ensure_ascii=False) if isinstance(call["args"], dict) else call["args"],
            id=call["id"],
            index=index,
        )
        for index, call in enumerate(calls)
    ]
    if content["content"] or chunks or content.get("additional_kwargs"):
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content=content["content"],
                tool_call_chunks=chunks,
                additional_kwargs=content.get("additional_kwargs", {}),
            )
        )


def usage(prompt_tokens: int, completion_tokens: int) -> UsageMetadata:
    """Return LangChain's usage metadata."""
    return UsageMetadata(
        input_tokens=prompt_tokens, output_tokens=completion_tokens, total_tokens=prompt_tokens + completion_tokens
    )
