"""Answers in the form of OpenAI's Chat Completions and Completions, as one body or as events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from guard.serve.answer_message import AnswerMessage, call_body
from guard.serve.bodies import StreamOptions
from guard.serve.event_stream import DONE, event
from guard.serve.request_errors import RequestError
from guard.serve.responder import ServedAnswer


def chat_body(answered: ServedAnswer) -> dict[str, Any]:
    """Return the body of an answer to ``/v1/chat/completions``."""
    choice = {
        "index": 0,
        "message": answered.message.body(),
        "logprobs": answered.logprobs,
        "finish_reason": answered.message.finish_reason,
    }
    return {**_head(answered, "chat.completion"), "choices": [choice], "usage": answered.usage, "guard": answered.said}


def chat_events(answered: ServedAnswer, *, include_usage: bool) -> Iterator[str]:
    """Yield the events of an answer after its decision; the last chunk has the verdict."""
    head = _head(answered, "chat.completion.chunk")
    for delta in _deltas(answered):
        logprobs = answered.logprobs if delta.get("content") else None
        yield event({**head, "choices": [_chunk_choice(delta, logprobs=logprobs)], **_usage_so_far(include_usage)})
    last = _chunk_choice({}, finish_reason=answered.message.finish_reason)
    yield event({**head, "choices": [last], "guard": answered.said, **_usage_so_far(include_usage)})
    if include_usage:
        yield event({**head, "choices": [], "usage": answered.usage, "guard": answered.said})
    yield DONE


def completion_body(answered: ServedAnswer) -> dict[str, Any]:
    """Return the body of an answer to ``/v1/completions``."""
    message = answered.message
    choice = _completion_choice(_completion_text(message), message.finish_reason, refusal=message.refusal)
    return {
        **_head(answered, "text_completion"),
        "choices": [choice],
        "usage": answered.usage,
        "guard": answered.said,
    }


def completion_events(answered: ServedAnswer, *, include_usage: bool) -> Iterator[str]:
    """Yield the events of a raw completion after its decision."""
    head, message = _head(answered, "text_completion"), answered.message
    if text := _completion_text(message):
        yield event({**head, "choices": [_completion_choice(text, None)]})
    last = _completion_choice("", message.finish_reason, refusal=message.refusal)
    yield event({**head, "choices": [last], "guard": answered.said})
    if include_usage:
        yield event({**head, "choices": [], "usage": answered.usage, "guard": answered.said})
    yield DONE


class LiveWriter:
    """Writes an answer whose text is sent before its decision.

    Where the policy accepts it, the last chunk has the verdict and ``[DONE]`` follows. Otherwise the last event has the
    verdict, ``finish_reason: content_filter`` and an ``error``, which clients raise, and no ``[DONE]`` follows: nothing
    of the text holds.

    Args:
        model: its id.
        kind: the ``object`` of each chunk.
        options: of the stream.
    """

    def __init__(
        self, model: str, kind: Literal["chat.completion.chunk", "text_completion"], options: StreamOptions | None
    ) -> None:
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        self._head = {
            "id": f"{prefix}-{uuid.uuid4()}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._is_chat = kind == "chat.completion.chunk"
        self._usage = options is not None and options.include_usage
        self._shown = ""
        self._begun = False

    def events(self, piece: str | ServedAnswer) -> Iterator[str]:
        """Yield the events of a piece of text, or of the end."""
        if not self._begun and self._is_chat:
            yield self._event(self._choice({"role": "assistant", "content": ""}))
        self._begun = True
        if isinstance(piece, str):
            self._shown += piece
            yield self._event(self._choice({"content": piece}))
        else:
            yield from self._end(piece)

    def _end(self, answered: ServedAnswer) -> Iterator[str]:
        message, said = answered.message, answered.said
        if said["action"] != "accept" or (message.content or "") != self._shown:
            refused = self._choice({"refusal": message.refusal or message.content}, "content_filter")
            yield self._event(refused, guard={**said, "retracted": True}, **retracted(said).body())
            return
        last = self._choice(
            {"reasoning_content": message.reasoning} if message.reasoning else {}, message.finish_reason
        )
        yield self._event({**last, "logprobs": answered.logprobs}, guard=said)
        if self._usage:
            yield event({**self._head, "choices": [], "usage": answered.usage, "guard": said})
        yield DONE

    def _event(self, choice: dict[str, Any], **more: Any) -> str:
        return event({**self._head, "choices": [choice], **_usage_so_far(self._usage), **more})

    def _choice(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        if self._is_chat:
            return _chunk_choice(delta, finish_reason=finish_reason)
        return _completion_choice(delta.get("content", ""), finish_reason, refusal=delta.get("refusal"))


def retracted(said: Mapping[str, Any]) -> RequestError:
    """Return the error that ends a live stream whose answer does not hold."""
    return RequestError(
        f"The policy '{said['policy']}' has retracted the answer ({said['rule']})",
        fix="Discard the text of this stream",
        status=422,
        kind="guard_retracted",
        code="retracted",
    )


def _head(answered: ServedAnswer, kind: str) -> dict[str, Any]:
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return {
        "id": f"{prefix}-{answered.said['decision_id']}",
        "object": kind,
        "created": answered.created,
        "model": answered.model,
    }


def _deltas(answered: ServedAnswer) -> Iterator[dict[str, Any]]:
    """Yield the parts of a message, starting with the role."""
    message = answered.message
    yield {"role": "assistant", "content": ""}
    if message.reasoning:
        yield {"reasoning_content": message.reasoning}
    if message.content:
        yield {"content": message.content}
    if message.refusal:
        yield {"refusal": message.refusal}
    for index, call in enumerate(message.calls):
        yield {"tool_calls": [{"index": index, **call_body(call)}]}


def _chunk_choice(
    delta: dict[str, Any], *, finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _usage_so_far(include_usage: bool) -> dict[str, Any]:
    """Return the usage entry of all chunks but the last, if the client asked for usage."""
    return {"usage": None} if include_usage else {}


def _completion_text(message: AnswerMessage) -> str:
    """Return the text of a raw completion: clients know no other place for what the policy says in its stead."""
    return message.content or message.refusal or ""


def _completion_choice(text: str, finish_reason: str | None, *, refusal: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason, "refusal": refusal}
