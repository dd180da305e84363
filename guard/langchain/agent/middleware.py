"""Guards every model call of a LangChain agent.

    agent = create_agent(ChatGuard(model="smollm2"), tools, middleware=[GuardMiddleware("policy.yaml")])

Put it last in the middleware list; an agent with another order is refused (see
`guard.langchain.agent.middleware_order`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import Command

from guard.errors import EscalationError, InputError
from guard.langchain.agent.agent_call import INTERRUPT, AgentCall, AgentRules, Ending
from guard.langchain.agent.buffered_model_call import model_call_steps
from guard.langchain.agent.middleware_order import refuse_wrong_order
from guard.langchain.agent.pending_review import PendingReview, request_review, reviewed
from guard.langchain.attempts.trusted_fallbacks import TrustedFallback, fallback_steps, trusted_names
from guard.langchain.call_options import NAMES, merged, read_config, read_mapping
from guard.langchain.metadata import KEY, with_metadata
from guard.langchain.tracing import DECISION_EVENT, escalation_metadata, event_step, marked_event
from guard.langchain.upstream_internals import extended_model_response, has_checkpointer
from guard.policy.cuts import refuse_cuts
from guard.policy.guarantee import refuse_guarantees
from guard.policy.policy import Policy, load_policy
from guard.policy.stopping import refuse_early
from guard.review.handlers import (
    HANDLERS,
    NOBODY,
    Delivery,
    Handler,
    as_named,
)
from guard.runtime.call_state import CallState
from guard.runtime.decision_log import log_decision, log_policy
from guard.runtime.monitored import audit_steps, find_monitor
from guard.runtime.resources import all_handlers, escalation_step, open_store
from guard.runtime.sources import missing_fallback
from guard.runtime.steps import Step, Steps, adrive, drive

if TYPE_CHECKING:
    from guard.audit.log import AuditLog
    from guard.review.store import Store


class Turn(TypedDict):
    """What the model's step passes to the step after it.

    Attributes:
        pending: token of the pending review, or None.
        ends: whether the agent must end here.
    """

    pending: str | None
    ends: bool


class GuardState(AgentState[Any]):
    """The agent's state with the guard's private entry between two steps."""

    guard_turn: NotRequired[Annotated[Turn | None, PrivateStateAttr]]


class GuardMiddleware(AgentMiddleware[GuardState, Any]):
    """Applies a policy to each model call of an agent.

    Before the decision nothing of an answer is visible in the state, in streams or to callbacks. The policy's actions:

    - ``accept``: the agent continues with the model's message, unchanged.
    - ``retry``: the model is called again with the rule's sampling and instruction.
    - ``fallback``: another chat model is called, or the rule's text is the answer.
    - ``abstain``: the agent ends with the rule's text, or with `AbstainedError`.
    - ``escalate``: the handlers receive the case. With ``interrupt`` among them the agent pauses for a reviewer, who
      approves, edits, rejects or responds; the model is not called again. Without it the agent ends with the rule's
      reply.

    Each decision is sent to callbacks as the custom event ``guard_decision``. In shadow mode nothing is held back or
    changed; the event reports what enforcement would do.

    Holds no state of a call: one instance can serve several agents and threads.
    """

    state_schema = GuardState

    def __init__(
        self,
        policy: str | Path | Policy = "balanced",
        *,
        route: str | None = None,
        fallbacks: Mapping[str, BaseChatModel | TrustedFallback] | None = None,
        handlers: Mapping[str, Handler] | None = None,
        store: Store | str | Path | None = None,
        handler_timeout_s: float = 10.0,
        audit_log: AuditLog | None = None,
    ) -> None:
        """
        Args:
            policy: a file, a built-in, or a `Policy`; its ``tools`` apply to answers that call tools.
            route: name of a section of the policy. A run may name another route and policy, as ``configurable`` keys
                of its config or in its context.
            fallbacks: chat models for the policy's ``fallback: {to: NAME}``. The same policy decides about one that
                scores its answers. The answer of another is final if it is declared `trusted`, and a scoring failure
                otherwise. Engines that the policy declares are loaded here, unless you pass a model of that name.
            handlers: for the policy's ``escalate: {to: [NAME]}``; ``log`` and ``review`` are built in unless you
                pass your own. ``interrupt`` is the pause, not a handler.
            store: the store of ``review``; by default in the user's data folder.
            handler_timeout_s: deadline of each handler, in seconds.
            audit_log: gets every decision before it is carried out. Where it cannot be written, the call raises
                `StoreError` and gives no answer.

        Raises:
            PolicyError: no such policy or route, it is invalid, or it has a risk guarantee, which no certificate covers
                here.
            InputError: a fallback or handler that the policy names is missing, a declared fallback has no scorer, or
                the policy streams live.
            ScorerError, EngineError: a declared fallback cannot be loaded.
        """
        super().__init__()
        self._settings = _MiddlewareSettings(
            as_named("fallbacks", fallbacks, "chat models"),
            as_named("handlers", handlers, HANDLERS),
            store,
            handler_timeout_s,
            audit_log,
        )
        self._rules = self._settings.rules(policy, route)

    @property
    def name(self) -> str:
        """The name of the guard's steps in the agent's graph.

        Raises:
            InputError: another middleware follows it in the list of the agent that is being built.
        """
        refuse_wrong_order(self)
        return super().name

    # -- calling the model ---------------------------------------------------------------------

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        """Call the model until the policy asks for no other attempt, and carry out the decision.

        Raises:
            InputError: the model does not score its answers, or the policy can pause the agent and there is no
                checkpointer.
            AbstainedError, EscalationError: according to the policy.
        """
        return drive(self._steps(request, handler))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        """`wrap_model_call` without blocking the event loop."""
        return await adrive(self._steps(request, handler))

    def _steps(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Steps[Any]:
        """Call the model until the policy asks for no other attempt, then carry out its last decision.

        Args:
            request: what the agent asks.
            handler: calls the model; a coroutine function where `adrive` runs the steps.
        """
        call = self._begin(request)
        again = True
        while again:
            request, settings, buffered = call.next_request(), call.attempt_settings(), not call.state.shadow
            source = call.state.source
            result = yield from model_call_steps(handler, request, settings, buffered=buffered, name=source)
            again = call.record_result(result)
            if call.state.released:
                yield from result.buffer.flush()
        yield event_step(DECISION_EVENT, call.event(), _event_config(call))
        yield from log_decision(call.rules.audit_log, call.state, call.escalation)
        yield from audit_steps(call.rules.monitor, call.state, call.escalation)
        delivery = yield from _delivery(call)
        return _result(call.ending(delivery))

    def _begin(self, request: ModelRequest[Any]) -> AgentCall:
        config = get_config()
        configurable = config.get("configurable") or {}
        rules = self._rules_for(config, request.runtime)
        # Without a checkpointer the agent would continue instead of pausing.
        if rules.may_pause and not has_checkpointer(configurable):
            raise InputError(
                f"The policy '{rules.policy.name}' can pause the agent for a reviewer",
                why="the agent has no checkpointer, so it cannot be resumed",
                fix="Give create_agent a checkpointer, such as langgraph's InMemorySaver()",
            )
        state = CallState(rules.policy, rules.route)
        thread = {"thread_id": configurable["thread_id"]} if "thread_id" in configurable else {}
        return AgentCall(rules, request, {**escalation_metadata(config), **thread}, state)

    def _rules_for(self, config: RunnableConfig, runtime: Runtime[Any] | None) -> AgentRules:
        """Return the rules of one run, which may name a route and a policy in its config or its context."""
        context = getattr(runtime, "context", None)
        named = merged(read_config(config), read_mapping(_as_mapping(context), "key of the context"))
        if not named:
            return self._rules
        policy = self._rules.policy if named.policy is None else named.policy
        return self._settings.rules(policy, self._rules.route if named.route is None else named.route)

    # -- after the model -----------------------------------------------------------------------

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Pause for a reviewer if a review is pending, and insert the reviewed answer."""
        return drive(_after_model(state))

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """`after_model` without blocking the event loop."""
        return await adrive(_after_model(state))


class ReviewedAnswer(BaseChatModel):
    """Emits a reviewed answer, so that streams show it.

    LangGraph's message stream shows each message id once, and the placeholder has used this one. A streaming model is
    always shown. It reports no tokens.

    Attributes:
        message: the reviewed answer.
    """

    message: AIMessage
    cache: bool | None = False

    @property
    def _llm_type(self) -> str:
        return "guard-reviewed-answer"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        bare = AIMessage(content=self.message.content, id=self.message.id, tool_calls=self.message.tool_calls)
        return ChatResult(generations=[ChatGeneration(message=bare)])

    def _stream(self, messages: list[BaseMessage], *_: Any, **keywords: Any) -> Iterator[ChatGenerationChunk]:
        calls = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=number)
            for number, call in enumerate(self.message.tool_calls)
        ]
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content=self.message.content, id=self.message.id, tool_call_chunks=calls, chunk_position="last"
            )
        )


def _event_config(call: AgentCall) -> RunnableConfig:
    return marked_event(ensure_config(), call.state.decision.action)


def _after_model(state: GuardState) -> Steps[dict[str, Any] | None]:
    """Pause the agent if a review is pending, then show the reviewed answer to streams."""
    update = _after(state)
    for message in _reviewed_messages(update):
        answer = ReviewedAnswer(message=message)
        yield Step(partial(answer.invoke, []), partial(answer.ainvoke, []))
    return update


def _after(state: GuardState) -> dict[str, Any] | None:
    """Return the state update after the model's step; pause the agent if a review is pending."""
    turn = state.get("guard_turn") or _turn_in_metadata(state["messages"])
    if turn is None:
        return None
    if turn["pending"] is None:
        return {"guard_turn": None, "jump_to": "end"} if turn["ends"] else None
    review = PendingReview.from_token(turn["pending"])
    return {"guard_turn": None, **reviewed(review, request_review(review))}


def _reviewed_messages(update: Mapping[str, Any] | None) -> list[AIMessage]:
    messages = (update or {}).get("messages", [])
    return [message for message in messages if isinstance(message, AIMessage)]


#: By which a model's step writes private state; None before langchain 1.2.9.
_EXTENDED_RESPONSE: Any = extended_model_response()


def _result(ending: Ending) -> Any:
    """Return the result of the model's step, with the turn for the step after it."""
    follows = ending.pending is not None or ending.ends
    turn = Turn(pending=ending.pending, ends=ending.ends) if follows else None
    if _EXTENDED_RESPONSE is not None:
        return _EXTENDED_RESPONSE(ending.response, Command(update={"guard_turn": turn}))
    if turn is not None:  # without private state, the message in the answer's place carries it
        (message,) = ending.response.result
        return ModelResponse(result=[with_metadata(cast(AIMessage, message), turn=turn)])
    return ending.response


def _turn_in_metadata(messages: Sequence[BaseMessage]) -> Turn | None:
    """Return the turn that the last message carries in its metadata, for versions without private state."""
    if _EXTENDED_RESPONSE is not None or not messages:
        return None
    turn: Turn | None = (messages[-1].response_metadata.get(KEY) or {}).get("turn")
    return turn


def _delivery(call: AgentCall) -> Steps[Delivery]:
    """Pass the case to the handlers that the policy names."""
    if not call.handlers:
        return NOBODY
    rules = call.rules
    try:
        delivery: Delivery = yield escalation_step(
            call.escalation(), rules.handlers, call.handlers, rules.handler_timeout_s
        )
    except EscalationError as error:
        return _undelivered_before_pause(call, error)
    return delivery


def _undelivered_before_pause(call: AgentCall, error: EscalationError) -> Delivery:
    """Return an empty delivery if the agent pauses, since its reviewer still gets the case; raise otherwise."""
    if not call.pauses:
        raise error
    return Delivery((), (str(error),))


# -- settings ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _MiddlewareSettings:
    """The settings of a middleware besides the policy and the route, which a run may change."""

    fallbacks: Mapping[str, BaseChatModel | TrustedFallback]
    handlers: Mapping[str, Handler]
    store: Store | str | Path | None
    handler_timeout_s: float
    audit_log: AuditLog | None

    def rules(self, policy: str | Path | Policy, route: str | None) -> AgentRules:
        """Return the checked rules; errors as for `GuardMiddleware`."""
        chosen = load_policy(policy)
        chosen.check_route(route)
        refuse_guarantees(chosen, caller="an agent")
        _refuse_live(chosen)
        refuse_cuts(chosen, caller="an agent", why="an answer may be a tool call, and the agent acts on it")
        refuse_early(chosen, caller="an agent", why="it decides on complete messages of its model")
        log_policy(self.audit_log, chosen)
        return AgentRules(
            policy=chosen,
            route=route,
            fallbacks=MappingProxyType(_all_fallbacks(chosen, fallback_steps(self.fallbacks))),
            handlers=MappingProxyType(_all_handlers(chosen, self.handlers, self.store)),
            handler_timeout_s=self.handler_timeout_s,
            trusted=trusted_names(self.fallbacks),
            audit_log=self.audit_log,
            monitor=find_monitor(chosen, partial(open_store, self.store)),
        )


def _as_mapping(context: Any) -> Mapping[str, Any]:
    """Return the context of a run, which is a mapping or an object with attributes, as a mapping."""
    if isinstance(context, Mapping):
        return context
    slots = [field.name for field in fields(context)] if is_dataclass(context) else []
    names = [*NAMES, *slots, *getattr(context, "__dict__", {})]
    return {name: getattr(context, name) for name in names if hasattr(context, name)}


def _refuse_live(policy: Policy) -> None:
    if policy.streaming == "live" and policy.mode == "enforce":  # in shadow mode everything streams as it comes
        raise InputError(
            f"The policy '{policy.name}' streams live, but an agent's answers are held",
            why="text that was shown cannot wait for a reviewer or be replaced by a retry",
            fix="Write streaming: hold, or put guarded() around a chain that streams",
        )


def _all_fallbacks(policy: Policy, given: Mapping[str, BaseChatModel]) -> dict[str, BaseChatModel]:
    """Return the chat models by name, with those that the policy declares."""
    for name, model in given.items():
        if not isinstance(model, BaseChatModel):
            raise InputError(f"The fallback '{name}' must be a chat model", why=f"it is a {type(model).__name__}")
    declared = [name for name in policy.fallback_names() if name not in given]
    return {**given, **{name: _declared_fallback(policy, name, given) for name in declared}}


def _declared_fallback(policy: Policy, name: str, given: Mapping[str, BaseChatModel]) -> BaseChatModel:
    """Return a chat model on an engine that the policy declares; models in the process share engines."""
    target = policy.fallbacks.get(name)
    if target is None:
        raise missing_fallback(policy, name, given, fix=f"Pass a chat model: fallbacks={{'{name}': ...}}")
    if target.scorer is None:
        raise InputError(
            f"The policy '{policy.name}' declares the fallback '{name}' without a scorer",
            why="the policy could decide about none of its answers",
            fix=f"Write fallbacks.{name}.scorer, or pass a chat model: fallbacks={{'{name}': ...}}",
        )
    from guard.langchain.chat.chat_guard import ChatGuard

    return ChatGuard(model=target.model, scorer=target.scorer)


def _all_handlers(policy: Policy, given: Mapping[str, Handler], store: Store | str | Path | None) -> dict[str, Handler]:
    """Return the handlers by name, with the built-in ones."""
    if INTERRUPT in given:
        raise InputError(f"'{INTERRUPT}' is the agent's pause and cannot name a handler", fix="Give it another name")
    return all_handlers(policy, given, partial(open_store, store), others=(INTERRUPT,))
