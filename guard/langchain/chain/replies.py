"""Conversion of a policy's text to a chain's output type, and of a chain's output to text."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, BaseMessage
from langchain_core.runnables import Runnable

from guard.langchain.metadata import KEY, decision_metadata, score_metadata
from guard.records import Outcome


def text_of_output(output: Any) -> str:
    """Return a chain's output as a person would read it."""
    if isinstance(output, str):
        return output
    if isinstance(output, BaseMessage):
        content = output.content
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    if hasattr(output, "model_dump_json"):
        return str(output.model_dump_json())
    return json.dumps(output, ensure_ascii=False, default=str)


def gives_messages(runnable: Runnable[Any, Any]) -> bool:
    """Return whether a chain's declared output type is a message."""
    try:
        kind: Any = runnable.OutputType
    except TypeError:
        return False
    return kind is AnyMessage or (isinstance(kind, type) and issubclass(kind, BaseMessage))


def reply_message(outcome: Outcome, *, policy: str, chunk: bool) -> AIMessage:
    """Return the policy's text as a message with the decision in its metadata."""
    last = outcome.attempts[-1]
    guard = score_metadata(
        model=last.source,
        score=last.score,
        error=last.error,
        tokens=last.completion_tokens,
        prompt_tokens=last.prompt_tokens,
        sampling=last.sampling,
        finish_reason=last.finish_reason,
        decision=decision_metadata(outcome, decision_id=outcome.decision_id, route=outcome.route, policy=policy),
    )
    content, metadata = outcome.answer or "", {"model_provider": "guard", KEY: guard}
    if chunk:
        return AIMessageChunk(content=content, response_metadata=metadata, chunk_position="last")
    return AIMessage(content=content, response_metadata=metadata)
