"""Guards every model call of a LangChain agent.

    agent = create_agent(ChatGuard(model="smollm2"), tools, middleware=[GuardMiddleware("policy.yaml")])

Put it last in the list of middleware; an agent with another order is refused
(see `guard.langchain.agent.middleware_order`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware import types as langchain_types
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import Command

from guard.errors import EscalationError, InputError, did_you_mean
from guard.langchain.agent.agent_call import INTERRUPT, AgentCall, Ending, Rules
from guard.langchain.agent.buffered_model_call import acall_model, call_model
from guard.langchain.agent.middleware_order import refuse_wrong_order
from guard.langchain.agent.pending_review import Draft, ask, reviewed
from guard.langchain.attempts.trusted_fallbacks import Trusted, steps_of, trusted_names
from guard.langchain.call_options import NAMES, joined, read_config, read_mapping
from guard.langchain.chain.guarded_run import DECISION_EVENT
from guard.langchain.metadata import KEY, with_metadata
from guard.langchain.tracing import escalation_metadata, marked_event
from guard.policy.guarantee import refuse_guarantees
from guard.policy.policy import Policy, load_policy
from guard.review.handlers import (
    HANDLERS,
    NOBODY,
    Delivery,
    Handler,
    aescalate,
    as_named,
    check_handlers,
    escalate,
    log_handler,
)
from guard.runtime.call_state import CallState

if TYPE_CHECKING:
    from guard.review.store import Store


class Turn(TypedDict):
    """What the model's step tells the step after it.

    Attributes:
        draft: the answer that waits for a person, sealed; or None.
        ends: whether the agent has to be ended here.
    """

    draft: str | None
    ends: bool


class GuardState(AgentState[Any]):
    """The agent's state with what the guard keeps between two steps."""

    guard_turn: NotRequired[Annotated[Turn | None, PrivateStateAttr]]


class GuardMiddleware(AgentMiddleware[GuardState, Any]):
    """Scores each model call of an agent and acts on it by a policy.

    Nothing of an answer is visible before its decision, in the state, in streams or by callbacks. The
    policy's actions mean:

    - ``accept``: the agent goes on with the model's message, untouched.
    - ``retry``: the model is called again, with the rule's sampling and instruction.
    - ``fallback``: another chat model is called, or the rule's text is the answer.
    - ``abstain``: the agent ends with the rule's text, or with `AbstainedError`.
    - ``escalate``: the handlers get the case. With ``interrupt`` among them the agent pauses for a
      person, who approves, edits, rejects or responds; the model is not called again for it. Without,
      the agent ends with the rule's reply.

    Each decision is told to listeners by the custom event ``guard_decision``. In shadow mode nothing is
    held back or changed; the event tells what would have been done.

    Holds no state of a call: one object can serve several agents and many threads.
    """

    state_schema = GuardState

    def __init__(
        self,
        policy: str | Path | Policy = "balanced",
        *,
        route: str | None = None,
        fallbacks: Mapping[str, BaseChatModel | Trusted] | None = None,
        handlers: Mapping[str, Handler] | None = None,
        store: Store | str | Path | None = None,
        handler_timeout_s: float = 10.0,
    ) -> None:
        """
        Args:
            policy: a file, a built-in, or a `Policy`; its ``tools`` hold for answers that call tools.
            route: name of a section of the policy. A run may name another route and another policy, as
                ``configurable`` keys of its config or in its context.
            fallbacks: chat models for the policy's ``fallback: {to: NAME}``. One that scores its answers
                is decided about by the same policy. The answer of any other is final where it is declared
                `trusted`, and else a failure of scoring. Engines that the
                policy declares itself are loaded here, unless you give a model of that name.
            handlers: for the policy's ``escalate: {to: [NAME]}``; ``log`` and ``review`` are there
                already unless you give your own. ``interrupt`` is the pause and no handler.
            store: where ``review`` keeps its cases; by default the user's data folder.
            handler_timeout_s: deadline of each handler, in seconds.

        Raises:
            PolicyError: no such policy or route, it is wrong, or it guarantees an error rate, which no
                certificate covers here.
            InputError: a fallback or handler that the policy names is not there, a fallback that it
                declares has no scorer, or it streams live.
            ScorerError, EngineError: a declared fallback cannot be loaded.
        """
        super().__init__()
        self._made_of = _Parts(
            as_named("fallbacks", fallbacks, "chat models"),
            as_named("handlers", handlers, HANDLERS),
            store,
            handler_timeout_s,
        )
        self._rules = self._made_of.rules(policy, route)

    @property
    def name(self) -> str:
        """The name of its steps in the agent's graph.

        Raises:
            InputError: the agent that is being built has it in the wrong place of its list of middleware.
        """
        refuse_wrong_order(self)
        return super().name

    # -- calling the model ---------------------------------------------------------------------

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        """Call the model until an answer is decided about, and carry the decision out.

        Raises:
            InputError: the model does not score its answers, or the policy may pause the agent and
                there is no checkpointer.
            AbstainedError, EscalationError: as the policy says.
        """
        call = self._begin(request)
        goes_on = True
        while goes_on:
            ran = call_model(handler, call.next_request(), call.limits(), hold=not call.state.shadow)
            goes_on = call.fail(ran.error, ran.calls) if ran.error else call.settle(ran.output, ran.calls)
            if call.state.released:
                ran.tape.play()
        dispatch_custom_event(DECISION_EVENT, call.event(), config=_told(call))
        return _result(call.ending(self._deliver(call)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        """`wrap_model_call` without blocking the event loop."""
        call = self._begin(request)
        goes_on = True
        while goes_on:
            ran = await acall_model(handler, call.next_request(), call.limits(), hold=not call.state.shadow)
            goes_on = call.fail(ran.error, ran.calls) if ran.error else call.settle(ran.output, ran.calls)
            if call.state.released:
                await ran.tape.aplay()
        await adispatch_custom_event(DECISION_EVENT, call.event(), config=_told(call))
        return _result(call.ending(await self._adeliver(call)))

    def _begin(self, request: ModelRequest[Any]) -> AgentCall:
        config = get_config()
        configurable = config.get("configurable") or {}
        rules = self._rules_for(config, request.runtime)
        # Without a checkpointer a pause would be none: the agent would just go on.
        if rules.may_pause and not configurable.get("__pregel_checkpointer"):
            raise InputError(
                f"The policy '{rules.policy.name}' may pause the agent for a person",
                why="the agent has no checkpointer, so it could not be resumed",
                fix="Give create_agent a checkpointer, such as langgraph's InMemorySaver()",
            )
        state = CallState(rules.policy, rules.route)
        thread = {"thread_id": configurable["thread_id"]} if "thread_id" in configurable else {}
        return AgentCall(rules, request, {**escalation_metadata(config), **thread}, state)

    def _rules_for(self, config: RunnableConfig, runtime: Runtime[Any] | None) -> Rules:
        """The rules of one run, which may name a route and a policy in its config or its context."""
        context = getattr(runtime, "context", None)
        named = joined(read_config(config), read_mapping(_as_mapping(context), "key of the context"))
        if not named:
            return self._rules
        return self._made_of.rules(named.policy or self._rules.policy, named.route or self._rules.route)

    def _deliver(self, call: AgentCall) -> Delivery:
        """Hand the case to the handlers that the policy names."""
        if not call.handlers:
            return NOBODY
        rules = call.rules
        try:
            return escalate(
                call.escalation(), handlers=rules.handlers, to=call.handlers, timeout_s=rules.handler_timeout_s
            )
        except EscalationError as error:
            return _left_to_the_pause(call, error)

    async def _adeliver(self, call: AgentCall) -> Delivery:
        """`_deliver` without blocking the event loop."""
        if not call.handlers:
            return NOBODY
        rules = call.rules
        try:
            return await aescalate(
                call.escalation(), handlers=rules.handlers, to=call.handlers, timeout_s=rules.handler_timeout_s
            )
        except EscalationError as error:
            return _left_to_the_pause(call, error)

    # -- after the model -----------------------------------------------------------------------

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Pause for a person where an answer waits for one, and put what they say in its place."""
        update = _after(state)
        for message in _reviewed_messages(update):
            ReviewedAnswer(message=message).invoke([])
        return update

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """`after_model` without blocking the event loop."""
        update = _after(state)
        for message in _reviewed_messages(update):
            await ReviewedAnswer(message=message).ainvoke([])
        return update


class ReviewedAnswer(BaseChatModel):
    """Says a reviewed answer, so that streams show it.

    LangGraph's message stream shows each message id once, and the placeholder has had this one. A model
    that streams is shown regardless. It costs no tokens and reports none.

    Attributes:
        message: what is said.
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


def _told(call: AgentCall) -> RunnableConfig:
    return marked_event(ensure_config(), call.state.decision.action)


def _after(state: GuardState) -> dict[str, Any] | None:
    """The update of the state after the model's step; pauses the agent where a draft waits."""
    turn = state.get("guard_turn") or _carried(state["messages"])
    if turn is None:
        return None
    if turn["draft"] is None:
        return {"guard_turn": None, "jump_to": "end"} if turn["ends"] else None
    draft = Draft.unseal(turn["draft"])
    return {"guard_turn": None, **reviewed(draft, ask(draft))}


def _reviewed_messages(update: Mapping[str, Any] | None) -> list[AIMessage]:
    messages = (update or {}).get("messages", [])
    return [message for message in messages if isinstance(message, AIMessage)]


#: Lets a model's step write private state. Before langchain 1.2.9 there was no such thing.
_Extended: Any = getattr(langchain_types, "ExtendedModelResponse", None)


def _result(ending: Ending) -> Any:
    """What the model's step gives the agent, with a word to the step after it."""
    waits = ending.draft is not None or ending.ends
    turn = Turn(draft=ending.draft, ends=ending.ends) if waits else None
    if _Extended is not None:
        return _Extended(ending.response, Command(update={"guard_turn": turn}))
    if turn is not None:  # the message that stands in the answer's place has to carry it
        (message,) = ending.response.result
        return ModelResponse(result=[with_metadata(cast(AIMessage, message), turn=turn)])
    return ending.response


def _carried(messages: Sequence[BaseMessage]) -> Turn | None:
    """What the last message carries for want of private state."""
    if _Extended is not None or not messages:
        return None
    turn: Turn | None = (messages[-1].response_metadata.get(KEY) or {}).get("turn")
    return turn


def _left_to_the_pause(call: AgentCall, error: EscalationError) -> Delivery:
    """No handler took the case: the person for whom the agent pauses still has it, if it pauses."""
    if not call.pauses:
        raise error
    return Delivery((), (str(error),))


# -- the parts ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    """What rules are made of, besides a policy and a route."""

    fallbacks: Mapping[str, BaseChatModel | Trusted]
    handlers: Mapping[str, Handler]
    store: Store | str | Path | None
    handler_timeout_s: float

    def rules(self, policy: str | Path | Policy, route: str | None) -> Rules:
        """The checked rules; errors as for `GuardMiddleware`."""
        chosen = load_policy(policy)
        chosen.check_route(route)
        refuse_guarantees(chosen, caller="an agent")
        _refuse_live(chosen)
        return Rules(
            policy=chosen,
            route=route,
            fallbacks=MappingProxyType(_all_fallbacks(chosen, steps_of(self.fallbacks))),
            handlers=MappingProxyType(_all_handlers(chosen, self.handlers, self.store)),
            handler_timeout_s=self.handler_timeout_s,
            trusted=trusted_names(self.fallbacks),
        )


def _as_mapping(context: Any) -> Mapping[str, Any]:
    """The context of a run: a mapping, or an object with attributes."""
    if isinstance(context, Mapping):
        return context
    return {name: getattr(context, name) for name in NAMES if hasattr(context, name)}


def _refuse_live(policy: Policy) -> None:
    if policy.streaming == "live" and policy.mode == "enforce":  # in shadow mode everything streams as it comes
        raise InputError(
            f"The policy '{policy.name}' streams live, and an agent's answers are held",
            why="text that was shown can neither wait for a person nor give way to a retry",
            fix="Write streaming: hold, or put guarded() around a chain that streams",
        )


def _all_fallbacks(policy: Policy, given: Mapping[str, BaseChatModel]) -> dict[str, BaseChatModel]:
    """The chat models by name, with those of the engines that the policy declares."""
    for name, model in given.items():
        if not isinstance(model, BaseChatModel):
            raise InputError(f"The fallback '{name}' must be a chat model", why=f"it is a {type(model).__name__}")
    declared = [name for name in policy.fallback_names() if name not in given]
    return {**given, **{name: _declared_fallback(policy, name, given) for name in declared}}


def _declared_fallback(policy: Policy, name: str, given: Mapping[str, BaseChatModel]) -> BaseChatModel:
    """A chat model on an engine that the policy declares; it shares the engine with other models of the process."""
    target = policy.fallbacks.get(name)
    if target is None:
        raise InputError(
            f"The policy '{policy.name}' falls back to '{name}', which is not there",
            fix=did_you_mean(name, given) or f"Pass a chat model: fallbacks={{'{name}': ...}}",
        )
    if target.scorer is None:
        raise InputError(
            f"The policy '{policy.name}' declares the fallback '{name}' without a scorer",
            why="none of its answers could be decided about",
            fix=f"Write fallbacks.{name}.scorer, or pass a chat model: fallbacks={{'{name}': ...}}",
        )
    from guard.langchain.chat.chat_guard import ChatGuard

    return ChatGuard(model=target.model, scorer=target.scorer)


def _all_handlers(policy: Policy, given: Mapping[str, Handler], store: Store | str | Path | None) -> dict[str, Handler]:
    """The handlers by name, with those that are always there."""
    if INTERRUPT in given:
        raise InputError(f"'{INTERRUPT}' is the agent's pause and cannot be a handler", fix="Give it another name")
    handlers: dict[str, Handler] = {"log": log_handler, **given}
    if policy.mode == "shadow":  # nothing is handed to anybody
        return handlers
    named = [name for name in policy.handler_names() if name != INTERRUPT]
    if "review" in named and "review" not in given:
        from guard.review.handlers import ReviewQueue
        from guard.review.store import Store

        handlers["review"] = ReviewQueue(store if isinstance(store, Store) else Store.open(store))
    check_handlers(named, handlers)
    return handlers
