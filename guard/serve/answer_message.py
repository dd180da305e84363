"""Answers as OpenAI messages, and errors for answers that lack the requested form.

The form is checked even if decoding is not constrained: JSON that is truncated, malformed or violates its schema, and
unreadable tool calls are errors, never answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from guard.engines.strict_json import DECODER, json_text
from guard.engines.tool_calls import ParsedAnswer, ToolCall, offered_names, parse_tool_calls
from guard.policy.policy import Policy
from guard.records import Action, Outcome
from guard.serve.asked import Asked, WantedForm
from guard.serve.json_schemas import follows
from guard.serve.request_errors import RequestError
from guard.serve.verdict import is_models


@dataclass(frozen=True, slots=True)
class AnswerMessage:
    """What the caller gets.

    Attributes:
        content: the text, or None.
        refusal: the policy's text if it gives no answer, else None.
        calls: the tool calls.
        reasoning: the model's thoughts before the answer, or None.
        finish_reason: OpenAI's finish reason.
    """

    content: str | None
    refusal: str | None = None
    calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    finish_reason: str = "stop"

    def body(self) -> dict[str, Any]:
        """Return the message object of a response."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call_body(call) for call in self.calls]
        return message


def call_body(call: ToolCall) -> dict[str, Any]:
    """Return a tool call in OpenAI's form.

    Examples:
        >>> call_body({"type": "tool_call", "id": "call_1", "name": "look", "args": {"at": 1}})["function"]
        {'name': 'look', 'arguments': '{"at": 1}'}
    """
    arguments = json.dumps(call["args"], ensure_ascii=False)
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def answer_message(outcome: Outcome, asked: Asked, *, content_filter: bool = False) -> AnswerMessage:
    """Return what the caller of a guarded call gets.

    Args:
        outcome: the outcome of the call.
        asked: the request.
        content_filter: give answers that the policy refuses the finish reason ``content_filter`` instead of ``stop``.

    Raises:
        RequestError: the answer was accepted, but lacks the requested form.
    """
    if is_models(outcome):
        return read_answer(outcome.answer or "", outcome.finish_reason, asked.form, reasoning=outcome.reasoning)
    refused = outcome.action is Action.ABSTAIN or asked.form.schema is not None
    text = outcome.answer
    words = text or _why_no_answer(outcome, asked.target.guard.policy)
    ending = "content_filter" if content_filter and outcome.action is Action.ABSTAIN else "stop"
    return AnswerMessage(text if refused else words, words if refused else None, finish_reason=ending)


def _why_no_answer(outcome: Outcome, policy: Policy) -> str:
    """Say which rule gives no answer, and of an answer that was cut what to raise."""
    cut = outcome.finish_reason == "length" and policy.plan(outcome.route).stopped_by(("truncated",)) is not None
    return f"The policy '{policy.name}' gives no answer ({outcome.rule}){f': {outcome.reason}' if cut else ''}."


def read_answer(text: str, ended: str | None, form: WantedForm, *, reasoning: str | None = None) -> AnswerMessage:
    """Return the parts of a model's answer.

    Args:
        text: the answer.
        ended: guard's finish reason.
        form: the form that the answer must have.
        reasoning: the model's thoughts before the answer.

    Raises:
        RequestError: the answer lacks that form.
    """
    cut = ended == "length"
    if form.schema is not None:
        return AnswerMessage(_checked_json(text, form, cut=cut), reasoning=reasoning)
    if not form.tools:
        return AnswerMessage(text, reasoning=reasoning, finish_reason="length" if cut else "stop")
    names = offered_names(form.tools)
    parsed = parse_tool_calls(text, names, form.reads, tools=form.tools, demanded=form.demanded)
    _check_calls(parsed, form, cut=cut)
    ending = "tool_calls" if parsed.calls else "length" if cut else "stop"
    return AnswerMessage(parsed.text or None, None, parsed.calls, reasoning, ending)


def _checked_json(text: str, form: WantedForm, *, cut: bool) -> str:
    """Return the JSON text of an answer."""
    found = None if cut else json_text(text)
    if found is None:
        raise _unfit("The answer is not one complete JSON text", "it reached its token limit" if cut else "", "json")
    value = DECODER.decode(found)
    if not form.schema and not isinstance(value, dict):
        raise _unfit("The answer is JSON, but not an object", "", "json")
    if form.schema and not follows(value, form.schema):
        raise _unfit("The answer does not follow the JSON Schema", "", "json")
    return found


def _check_calls(parsed: ParsedAnswer, form: WantedForm, *, cut: bool) -> None:
    """Refuse calls that cannot be executed, and an answer without the required call."""
    if parsed.invalid:
        raise _unfit("A tool call in the answer cannot be executed", parsed.invalid[0]["error"] or "", "tool_call")
    if cut and parsed.calls:
        raise _unfit("The answer with the tool call is truncated", "it reached its token limit", "tool_call")
    if form.demanded and not parsed.calls:
        raise _unfit("The answer calls no tool, but tool_choice requires one", "", "tool_call")
    if form.only is not None and any(call["name"] != form.only for call in parsed.calls):
        raise _unfit(f"The answer calls a tool other than '{form.only}'", "", "tool_call")
    if not form.parallel and len(parsed.calls) > 1:
        raise _unfit("The answer calls several tools, but parallel_tool_calls is false", "", "tool_call")


def _unfit(what: str, why: str, kind: str) -> RequestError:
    return RequestError(
        what,
        why=why,
        fix="Raise the token limit" if "limit" in why else "",
        status=422,
        kind="guard_invalid_answer",
        code=f"invalid_{kind}",
    )
