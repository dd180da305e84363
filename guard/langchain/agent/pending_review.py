"""Requests a person's review of one answer of an agent, and applies the reviewer's decisions.

The request and the reply have the form of LangChain's human-in-the-loop middleware, so that the same review pages work
for both:

    {"action_requests": [{"name", "args", "description"}], "review_configs": [...], "guard": {...}}
    {"decisions": [{"type": "approve"}]}

Each tool call of an answer is one action. Any other answer is one action named ``answer`` with the argument ``text``.
An invalid reply is refused and requested again; it never counts as an approval.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import interrupt

from guard.errors import ReviewError, did_you_mean
from guard.langchain.metadata import KEY, with_metadata

#: Name and argument of the action for an answer that calls no tool.
ANSWER, TEXT = "answer", "text"

#: A reviewer's possible decisions, with the (required, optional) keys of each besides ``type``.
_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "approve": (frozenset(), frozenset()),
    "edit": (frozenset({"edited_action"}), frozenset()),
    "reject": (frozenset(), frozenset({"message"})),
    "respond": (frozenset({"message"}), frozenset()),
}


@dataclass(frozen=True, slots=True)
class PendingReview:
    """An answer that waits for a reviewer.

    Attributes:
        messages: messages of the model call: the answer, and a tool message for a structured response.
        structured: the parsed structured response, or None.
        tools: names of the agent's tools; an edited call must name one of them.
        context: information for the reviewer: question, p_wrong, rule, reason and more.
        rejected_text: text that replaces a rejected answer.
        failed: whether there is no answer because the model failed.
        loops: whether the agent would call the model again for a structured response.
    """

    messages: tuple[BaseMessage, ...]
    structured: Any
    tools: tuple[str, ...]
    context: Mapping[str, Any]
    rejected_text: str
    failed: bool = False
    loops: bool = False

    def to_token(self) -> str:
        """Return the review as text that does not show the answer, since streams of the state's values contain it."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        _, data = JsonPlusSerializer().dumps_typed({**content, "messages": list(self.messages)})
        return base64.b85encode(zlib.compress(data)).decode()

    @classmethod
    def from_token(cls, token: str) -> PendingReview:
        """Return the review that `to_token` encoded.

        Raises:
            ReviewError: the token is damaged.
        """
        try:
            data = zlib.decompress(base64.b85decode(token))
            content = JsonPlusSerializer().loads_typed(("msgpack", data))
            review = cls(**content)
        except (ValueError, TypeError, zlib.error) as error:
            raise ReviewError("The answer under review cannot be read from the checkpoint", why=str(error)) from error
        return replace(review, messages=tuple(review.messages), tools=tuple(review.tools))

    @property
    def message(self) -> AIMessage:
        """The answer."""
        return next(message for message in self.messages if isinstance(message, AIMessage))

    @property
    def is_structured(self) -> bool:
        """Whether the answer is a structured response, which can only be approved or rejected."""
        return self.structured is not None or len(self.messages) > 1

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls under review."""
        return [] if self.is_structured else self.message.tool_calls

    @property
    def allowed(self) -> tuple[str, ...]:
        """The decisions that the reviewer may make."""
        if self.failed:
            return ("reject", "respond")
        return ("approve", "reject") if self.is_structured else tuple(_KEYS)

    def request(self) -> dict[str, Any]:
        """Return the reviewer's request: a `HITLRequest` with the context under ``guard``."""
        actions = [{"name": call["name"], "args": call["args"]} for call in self.message.tool_calls]
        if not actions:
            actions = [{"name": ANSWER, "args": {TEXT: self.message.text}}]
        description = _description(self.context, self.message.text if self.message.tool_calls else "")
        names = dict.fromkeys(action["name"] for action in actions)
        return {
            "action_requests": [{**action, "description": description} for action in actions],
            "review_configs": [{"action_name": name, "allowed_decisions": list(self.allowed)} for name in names],
            KEY: dict(self.context),
        }


def request_review(review: PendingReview) -> list[Mapping[str, Any]]:
    """Pause the agent until a reviewer has decided; return one checked decision for each action.

    A refused reply stays in the checkpoint, so an exception would end the thread for good. Instead the agent pauses
    again, and the ``error`` of the request says what was wrong.
    """
    request = review.request()
    while True:
        reply = interrupt(request)
        try:
            return read_reply(reply, review)
        except ReviewError as error:
            request = {**review.request(), "error": str(error)}


# -- the reply ---------------------------------------------------------------------------------


def read_reply(reply: Any, review: PendingReview) -> list[Mapping[str, Any]]:
    """Check a reviewer's reply as a whole.

    Raises:
        ReviewError: it is not of the form ``{"decisions": [...]}`` with one allowed decision per action.
    """
    decisions = reply.get("decisions") if isinstance(reply, Mapping) else None
    if not isinstance(decisions, Sequence) or isinstance(decisions, str) or len(reply) != 1:
        form = 'Resume with {"decisions": [{"type": "approve"}]}, one decision per action'
        raise ReviewError("The review cannot be parsed", why=f"it is {_shown(reply)}", fix=form)
    actions = max(1, len(review.message.tool_calls))
    if len(decisions) != actions:
        raise ReviewError(f"The review has {len(decisions)} decisions for {actions} actions", fix="Give one each")
    for decision in decisions:
        _check(decision, review)
    return list(decisions)


def _check(decision: Any, review: PendingReview) -> None:
    kind = decision.get("type") if isinstance(decision, Mapping) else None
    if not isinstance(kind, str):
        raise ReviewError("A decision needs a 'type'", why=f"it is {_shown(decision)}", fix=_known(review))
    if kind not in review.allowed:
        raise ReviewError(f"'{kind:.40}' is not an allowed decision here", fix=did_you_mean(kind, review.allowed))
    needed, optional = _KEYS[kind]
    given = {str(key) for key in decision} - {"type"}
    for key in sorted(given - needed - optional):
        raise ReviewError(
            f"'{kind}' has no key '{key:.40}'", fix=did_you_mean(key, needed | optional) or "Leave it out"
        )
    for key in sorted(needed - given):
        raise ReviewError(f"'{kind}' needs '{key}'")
    message = decision.get("message", "-")
    if not isinstance(message, str) or not message.strip():
        raise ReviewError(f"The 'message' of '{kind}' must be a non-empty text", why=f"it is {_shown(message)}")
    if kind == "edit":
        _check_edit(decision["edited_action"], review)


def _check_edit(action: Any, review: PendingReview) -> None:
    name, args = (action.get("name"), action.get("args")) if isinstance(action, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(args, Mapping) or len(action) != 2:
        raise ReviewError("'edited_action' needs 'name' and 'args', and no other key", why=f"it is {_shown(action)}")
    known = review.tools if review.calls else (ANSWER,)
    if name not in known:
        raise ReviewError(f"An edit cannot name '{name:.40}'", fix=did_you_mean(name, known))
    text = args.get(TEXT)
    if not review.calls and (set(args) != {TEXT} or not isinstance(text, str) or not text.strip()):
        raise ReviewError(f"The args of an edited answer must be {{'{TEXT}': TEXT}}", why=f"they are {_shown(args)}")


def _known(review: PendingReview) -> str:
    return f"Allowed: {', '.join(review.allowed)}"


def _shown(value: Any) -> str:
    """Return the type of a value, for errors; the value itself may be an answer."""
    keys = f" with {', '.join(sorted(str(key)[:40] for key in list(value)[:5]))}" if isinstance(value, Mapping) else ""
    return "nothing" if value is None else f"a {type(value).__name__}{keys}"


def _description(context: Mapping[str, Any], text: str) -> str:
    p_wrong = context.get("p_wrong")
    doubt = "could not be scored" if p_wrong is None else f"is wrong with probability {p_wrong:.2f}"
    lines = [f"This answer {doubt}: {context['reason']}", f"Question: {context['question']}"]
    return "\n".join([*lines, f"The model also said: {text}"] if text else lines)


# -- applying the decisions -------------------------------------------------------------------


def reviewed(review: PendingReview, decisions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the update of the agent's state: the reviewed answer, under the same message id."""
    message = with_metadata(review.message, review={"decisions": [dict(decision) for decision in decisions]})
    if review.calls:
        return {"messages": _reviewed_calls(review, message, decisions)}
    (decision,) = decisions
    if decision["type"] == "approve":
        rest = [one for one in review.messages if one is not review.message]
        structured = {} if review.structured is None else {"structured_response": review.structured}
        return {"messages": [message, *rest], **structured}
    # The reviewer's decision is final, so a loop for structured output must not call the model again. Without such a
    # loop the agent ends by itself after the hooks of other middleware have seen the text.
    ends = {"jump_to": "end"} if review.loops else {}
    return {"messages": [with_text(message, _text(decision, review))], **ends}


def _text(decision: Mapping[str, Any], review: PendingReview) -> str:
    match decision["type"]:
        case "edit":
            return str(decision["edited_action"]["args"][TEXT])
        case "respond":
            return str(decision["message"])
    return review.rejected_text


def _reviewed_calls(
    review: PendingReview, message: AIMessage, decisions: Sequence[Mapping[str, Any]]
) -> list[BaseMessage]:
    """Return the message with its edited calls, and a tool message for each call that must not run."""
    calls: list[ToolCall] = []
    answers: list[BaseMessage] = []
    for call, decision in zip(review.calls, decisions, strict=True):
        match decision["type"]:
            case "edit":
                edited = decision["edited_action"]
                call = ToolCall(name=edited["name"], args=dict(edited["args"]), id=call["id"], type="tool_call")
            case "respond":
                answers.append(_tool_answer(call, str(decision["message"]), "success"))
            case "reject":
                reason = f" The reason: {decision['message']}" if "message" in decision else ""
                text = f"A reviewer rejected the call of {call['name']}. It was not run; do not call it again.{reason}"
                answers.append(_tool_answer(call, text, "error"))
        calls.append(call)
    return [message.model_copy(update={"tool_calls": calls}), *answers]


def _tool_answer(call: ToolCall, content: str, status: Any) -> ToolMessage:
    return ToolMessage(content=content, name=call["name"], tool_call_id=call["id"] or "", status=status)


def with_text(message: AIMessage, text: str) -> AIMessage:
    """Return a message with this text in place of the model's, under the same id.

    Everything that may contain the model's words is dropped: tool calls, log-probabilities, spans, raw replies.
    """
    kept = ("model_name", "model_provider", KEY)
    metadata = {key: value for key, value in message.response_metadata.items() if key in kept}
    if isinstance(metadata.get(KEY), Mapping):
        metadata[KEY] = {**metadata[KEY], "spans": None}
    return AIMessage(
        content=text,
        id=message.id,
        name=message.name,
        usage_metadata=message.usage_metadata,
        response_metadata=metadata,
    )
