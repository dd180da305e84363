"""Puts one answer of an agent before a person, and carries out what the person says.

The request and the reply have the form of LangChain's own human-in-the-loop middleware, so that the
same review pages work for both:

    {"action_requests": [{"name", "args", "description"}], "review_configs": [...], "guard": {...}}
    {"decisions": [{"type": "approve"}]}

An answer that calls tools is one action a call. Any other answer is one action named ``answer`` with
the argument ``text``. A reply that does not fit is refused and asked for again, never taken for an
approval.
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

#: The action's name and its argument where an answer calls no tool.
ANSWER, TEXT = "answer", "text"

#: What a person may say, with the keys of each besides ``type``: (needed, optional).
_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "approve": (frozenset(), frozenset()),
    "edit": (frozenset({"edited_action"}), frozenset()),
    "reject": (frozenset(), frozenset({"message"})),
    "respond": (frozenset({"message"}), frozenset()),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer that waits for a person.

    Attributes:
        messages: what the model call gave: the answer, and a tool message where it is structured.
        structured: the structured response that was parsed from it, or None.
        tools: names of the tools that the agent has; an edited call must be of one of them.
        about: what the reviewer is told: question, p_wrong, rule, reason and so on.
        rejected_text: what the caller gets where the answer is rejected.
        failed: whether there is no answer, since the model failed.
        loops: whether the agent would ask the model again for a structured response.
    """

    messages: tuple[BaseMessage, ...]
    structured: Any
    tools: tuple[str, ...]
    about: Mapping[str, Any]
    rejected_text: str
    failed: bool = False
    loops: bool = False

    def seal(self) -> str:
        """The draft as text that shows nothing of the answer: streams of the state's values pass it on."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        _, data = JsonPlusSerializer().dumps_typed({**content, "messages": list(self.messages)})
        return base64.b85encode(zlib.compress(data)).decode()

    @classmethod
    def unseal(cls, sealed: str) -> Draft:
        """The draft that `seal` made the text of.

        Raises:
            ReviewError: the text is damaged.
        """
        try:
            data = zlib.decompress(base64.b85decode(sealed))
            content = JsonPlusSerializer().loads_typed(("msgpack", data))
            draft = cls(**content)
        except (ValueError, TypeError, zlib.error) as error:
            raise ReviewError("The answer under review cannot be read from the checkpoint", why=str(error)) from error
        return replace(draft, messages=tuple(draft.messages), tools=tuple(draft.tools))

    @property
    def message(self) -> AIMessage:
        """The answer."""
        return next(message for message in self.messages if isinstance(message, AIMessage))

    @property
    def is_structured(self) -> bool:
        """Whether it is a structured response, which can be approved or rejected only."""
        return self.structured is not None or len(self.messages) > 1

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls under review."""
        return [] if self.is_structured else self.message.tool_calls

    @property
    def allowed(self) -> tuple[str, ...]:
        """What the reviewer may decide."""
        if self.failed:
            return ("reject", "respond")
        return ("approve", "reject") if self.is_structured else tuple(_KEYS)

    def request(self) -> dict[str, Any]:
        """What the reviewer gets: a `HITLRequest`, with ``guard`` saying what is in doubt."""
        actions = [{"name": call["name"], "args": call["args"]} for call in self.message.tool_calls]
        if not actions:
            actions = [{"name": ANSWER, "args": {TEXT: self.message.text}}]
        description = _description(self.about, self.message.text if self.message.tool_calls else "")
        names = dict.fromkeys(action["name"] for action in actions)
        return {
            "action_requests": [{**action, "description": description} for action in actions],
            "review_configs": [{"action_name": name, "allowed_decisions": list(self.allowed)} for name in names],
            KEY: dict(self.about),
        }


def ask(draft: Draft) -> list[Mapping[str, Any]]:
    """Pause the agent until a person has decided; one checked decision for each action.

    A reply that is refused stays in the checkpoint, so raising an error for it would end the thread for
    good. The agent pauses again instead, and the request says in ``error`` what was wrong.
    """
    request = draft.request()
    while True:
        reply = interrupt(request)
        try:
            return read_reply(reply, draft)
        except ReviewError as error:
            request = {**draft.request(), "error": str(error)}


# -- the reply ---------------------------------------------------------------------------------


def read_reply(reply: Any, draft: Draft) -> list[Mapping[str, Any]]:
    """Check what a person has said, whole.

    Raises:
        ReviewError: it is not of the form ``{"decisions": [...]}`` with one allowed decision an action.
    """
    decisions = reply.get("decisions") if isinstance(reply, Mapping) else None
    if not isinstance(decisions, Sequence) or isinstance(decisions, str) or len(reply) != 1:
        form = 'Resume with {"decisions": [{"type": "approve"}]}, one decision an action'
        raise ReviewError("The review cannot be read", why=f"it is {_shown(reply)}", fix=form)
    actions = max(1, len(draft.message.tool_calls))
    if len(decisions) != actions:
        raise ReviewError(f"The review has {len(decisions)} decisions for {actions} actions", fix="Give one each")
    for decision in decisions:
        _check(decision, draft)
    return list(decisions)


def _check(decision: Any, draft: Draft) -> None:
    kind = decision.get("type") if isinstance(decision, Mapping) else None
    if not isinstance(kind, str):
        raise ReviewError("A decision needs a 'type'", why=f"it is {_shown(decision)}", fix=_known(draft))
    if kind not in draft.allowed:
        raise ReviewError(f"'{kind:.40}' is no decision that is allowed here", fix=did_you_mean(kind, draft.allowed))
    needed, optional = _KEYS[kind]
    given = {str(key) for key in decision} - {"type"}
    for key in sorted(given - needed - optional):
        raise ReviewError(f"'{kind}' takes no '{key:.40}'", fix=did_you_mean(key, needed | optional) or "Leave it out")
    for key in sorted(needed - given):
        raise ReviewError(f"'{kind}' needs '{key}'")
    message = decision.get("message", "-")
    if not isinstance(message, str) or not message.strip():
        raise ReviewError(f"The 'message' of '{kind}' must be a text", why=f"it is {_shown(message)}")
    if kind == "edit":
        _check_edit(decision["edited_action"], draft)


def _check_edit(action: Any, draft: Draft) -> None:
    name, args = (action.get("name"), action.get("args")) if isinstance(action, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(args, Mapping) or len(action) != 2:
        raise ReviewError("'edited_action' needs 'name' and 'args', and nothing else", why=f"it is {_shown(action)}")
    known = draft.tools if draft.calls else (ANSWER,)
    if name not in known:
        raise ReviewError(f"An edit cannot be of '{name:.40}'", fix=did_you_mean(name, known))
    text = args.get(TEXT)
    if not draft.calls and (set(args) != {TEXT} or not isinstance(text, str) or not text.strip()):
        raise ReviewError(f"The args of an edited answer must be {{'{TEXT}': TEXT}}", why=f"they are {_shown(args)}")


def _known(draft: Draft) -> str:
    return f"Allowed: {', '.join(draft.allowed)}"


def _shown(value: Any) -> str:
    """The kind of a value, for errors; the value itself may be an answer."""
    keys = f" with {', '.join(sorted(str(key)[:40] for key in list(value)[:5]))}" if isinstance(value, Mapping) else ""
    return "nothing" if value is None else f"a {type(value).__name__}{keys}"


def _description(about: Mapping[str, Any], text: str) -> str:
    p_wrong = about.get("p_wrong")
    doubt = "could not be scored" if p_wrong is None else f"is wrong with probability {p_wrong:.2f}"
    lines = [f"This answer {doubt}: {about['reason']}", f"Question: {about['question']}"]
    return "\n".join([*lines, f"The model also said: {text}"] if text else lines)


# -- carrying it out ---------------------------------------------------------------------------


def reviewed(draft: Draft, decisions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The update of the agent's state: the reviewed answer, under the same message id."""
    noted = with_metadata(draft.message, review={"decisions": [dict(decision) for decision in decisions]})
    if draft.calls:
        return {"messages": _reviewed_calls(draft, noted, decisions)}
    (decision,) = decisions
    if decision["type"] == "approve":
        rest = [message for message in draft.messages if message is not draft.message]
        structured = {} if draft.structured is None else {"structured_response": draft.structured}
        return {"messages": [noted, *rest], **structured}
    # The person has had the last word: a loop for structured output must not ask the model again. Where there
    # is none, the agent ends by itself, when the hooks of other middleware have seen the text.
    ends = {"jump_to": "end"} if draft.loops else {}
    return {"messages": [spoken(noted, _text(decision, draft))], **ends}


def _text(decision: Mapping[str, Any], draft: Draft) -> str:
    match decision["type"]:
        case "edit":
            return str(decision["edited_action"]["args"][TEXT])
        case "respond":
            return str(decision["message"])
    return draft.rejected_text


def _reviewed_calls(draft: Draft, message: AIMessage, decisions: Sequence[Mapping[str, Any]]) -> list[BaseMessage]:
    """The message with its edited calls, and an answer for each call that shall not run."""
    calls: list[ToolCall] = []
    answers: list[BaseMessage] = []
    for call, decision in zip(draft.calls, decisions, strict=True):
        match decision["type"]:
            case "edit":
                edited = decision["edited_action"]
                call = ToolCall(name=edited["name"], args=dict(edited["args"]), id=call["id"], type="tool_call")
            case "respond":
                answers.append(_tool_answer(call, str(decision["message"]), "success"))
            case "reject":
                reason = f" The reason: {decision['message']}" if "message" in decision else ""
                told = f"A reviewer rejected the call of {call['name']}. It was not run; do not call it again.{reason}"
                answers.append(_tool_answer(call, told, "error"))
        calls.append(call)
    return [message.model_copy(update={"tool_calls": calls}), *answers]


def _tool_answer(call: ToolCall, content: str, status: Any) -> ToolMessage:
    return ToolMessage(content=content, name=call["name"], tool_call_id=call["id"] or "", status=status)


def spoken(message: AIMessage, text: str) -> AIMessage:
    """A message that says this text in place of the model's, under the same id.

    Whatever may still hold the model's words is left out: tool calls, log-probabilities, raw replies.
    """
    kept = ("model_name", "model_provider", KEY)
    return AIMessage(
        content=text,
        id=message.id,
        name=message.name,
        usage_metadata=message.usage_metadata,
        response_metadata={key: value for key, value in message.response_metadata.items() if key in kept},
    )
