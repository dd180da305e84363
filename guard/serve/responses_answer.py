"""Answers in the form of OpenAI's Responses, as one body or as events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from guard.engines.tool_calls import ToolCall
from guard.serve.event_stream import event
from guard.serve.request_errors import RequestError
from guard.serve.responder import ServedAnswer
from guard.serve.responses_body import ResponsesBody


@dataclass(slots=True)
class ResponseWriter:
    """Writes the answer to one request.

    Attributes:
        body: the body of the request, parts of which the response repeats.
    """

    body: ResponsesBody
    _number: int = field(default=-1)

    def whole(self, answered: ServedAnswer) -> dict[str, Any]:
        """Return the answer as one body."""
        cut = answered.message.finish_reason == "length"
        return {
            **self._head(answered, "incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items(answered),
            "usage": _usage(answered),
            "guard": answered.said,
        }

    def events(self, answered: ServedAnswer) -> Iterator[str]:
        """Yield the answer as events, after its decision; the last has the verdict."""
        whole = self.whole(answered)
        begun = {**self._head(answered, "in_progress"), "output": [], "usage": None, "incomplete_details": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        for index, item in enumerate(whole["output"]):
            yield from self._item_events(index, item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def error(self, error: RequestError) -> str:
        """Return the event of an error, which ends the stream."""
        return self._event("error", code=error.code, message=str(error), param=error.param)

    def _event(self, name: str, /, **data: Any) -> str:
        self._number += 1
        return event({"type": name, "sequence_number": self._number, **data}, name)

    def _head(self, answered: ServedAnswer, status: str) -> dict[str, Any]:
        body = self.body
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {"format": {"type": "text"}}
        choice = body.tool_choice or "auto"
        return {
            "id": f"resp_{answered.said['decision_id']}",
            "object": "response",
            "created_at": answered.created,
            "status": status,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": answered.model,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": text,
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "user": body.user,
        }

    def _items(self, answered: ServedAnswer) -> list[dict[str, Any]]:
        parts = self._parts(answered)
        decision_id = answered.said["decision_id"]
        message = {"id": f"msg_{decision_id}", "type": "message", "role": "assistant", "content": parts}
        status = "incomplete" if answered.message.finish_reason == "length" else "completed"
        messages = [{**message, "status": status}] if parts else []
        return [*messages, *(_call(number, call, decision_id) for number, call in enumerate(answered.message.calls))]

    def _parts(self, answered: ServedAnswer) -> list[dict[str, Any]]:
        """Return the parts of a message. If JSON was requested, a refusal has no text part that could be parsed."""
        content, refusal = answered.message.content, answered.message.refusal
        parts: list[dict[str, Any]] = []
        if content and not (refusal and self.body.text and self.body.text.format.type != "text"):
            parts.append({"type": "output_text", "text": content, "annotations": [], "logprobs": []})
        if refusal:
            parts.append({"type": "refusal", "refusal": refusal})
        return parts

    def _item_events(self, index: int, item: dict[str, Any]) -> Iterator[str]:
        empty: dict[str, Any] = {"content": []} if "content" in item else {"arguments": ""}
        begun = {**item, "status": "in_progress", **empty}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        place = {"item_id": item["id"], "output_index": index}
        if "content" in item:
            for number, part in enumerate(item["content"]):
                yield from self._part_events({**place, "content_index": number}, part)
        else:
            name = "response.function_call_arguments"
            yield self._event(f"{name}.delta", **place, delta=item["arguments"])
            yield self._event(f"{name}.done", **place, arguments=item["arguments"], name=item["name"])
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _part_events(self, place: dict[str, Any], part: dict[str, Any]) -> Iterator[str]:
        kind, key = ("refusal", "refusal") if part["type"] == "refusal" else ("output_text", "text")
        logprobs: dict[str, Any] = {} if kind == "refusal" else {"logprobs": []}
        yield self._event("response.content_part.added", **place, part={**part, key: ""})
        yield self._event(f"response.{kind}.delta", **place, delta=part[key], **logprobs)
        yield self._event(f"response.{kind}.done", **place, **{key: part[key]}, **logprobs)
        yield self._event("response.content_part.done", **place, part=part)


def _call(number: int, call: ToolCall, decision_id: str) -> dict[str, Any]:
    return {
        "id": f"fc_{decision_id}_{number}",
        "type": "function_call",
        "call_id": call["id"],
        "name": call["name"],
        "arguments": json.dumps(call["args"], ensure_ascii=False),
        "status": "completed",
    }


def _usage(answered: ServedAnswer) -> dict[str, Any]:
    return {
        "input_tokens": answered.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answered.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answered.prompt_tokens + answered.completion_tokens,
    }
