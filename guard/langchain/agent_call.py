"""One guarded model call of an agent: which request comes next, what is decided about each answer.

As in `guard.loop`, deciding is pure and bounded in attempts, tokens and time; here the model is called
by the agent, and an answer may call tools.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from guard.errors import (
    AbstainedError,
    CancelledError,
    ChatTemplateError,
    GuardError,
    InputError,
    PromptTooLongError,
)
from guard.escalation import Delivery, Handler
from guard.langchain.attempt import ATTEMPT, AttemptSettings
from guard.langchain.messages import chat_turns
from guard.langchain.metadata import KEY, ScoredCall, decision_metadata, read_score
from guard.langchain.review import Draft, spoken
from guard.loop import OWN_ENGINE
from guard.policy import NOTHING_USED, Abstain, Escalate, Fallback, Policy, Retry, Used, decide, decide_error
from guard.records import Action, Attempt, Decision, Escalation, Prompt, Sampling, Score

#: The escalation target that is a pause of the agent.
INTERRUPT = "interrupt"

#: What the caller gets for a rejected answer where the policy gives no text.
REJECTED = "A reviewer rejected the answer."


@dataclass(frozen=True, slots=True)
class Rules:
    """What an agent's model calls are decided by; shared by all calls, so nothing here changes."""

    policy: Policy
    route: str | None
    fallbacks: Mapping[str, BaseChatModel]
    handlers: Mapping[str, Handler]
    handler_timeout_s: float

    @property
    def may_pause(self) -> bool:
        """Whether some rule of the policy pauses the agent."""
        return self.policy.mode == "enforce" and INTERRUPT in self.policy.handler_names()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a model call ends.

    Attributes:
        response: for the agent: the model's own, or one that says something in its place.
        draft: what waits for a person, sealed; None where nothing does.
        ends: whether the agent ends with it, whatever it still wanted from the model.
    """

    response: ModelResponse[Any]
    draft: str | None = None
    ends: bool = False


@dataclass(slots=True)
class AgentCall:
    """The state of one guarded model call."""

    rules: Rules
    request: ModelRequest[Any]
    thread_id: str | None
    decision_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    attempt_started: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    used: Used = NOTHING_USED
    response: ModelResponse[Any] | None = None

    # -- one attempt ---------------------------------------------------------------------------

    def next_request(self) -> ModelRequest[Any]:
        """What the model is asked next: as the agent wanted, or as the last decision says."""
        self.attempt_started = time.monotonic()
        settings = self.attempts[-1].decision.settings if self.attempts else None
        request = self.request
        if isinstance(settings, Fallback) and settings.to is not None:
            return request.override(model=self.rules.fallbacks[settings.to])
        if isinstance(settings, Retry):
            sampling = settings.sampling(self.used.retries)
            chosen = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")}
            chosen = {name: value for name, value in chosen.items() if value is not None}
            request = request.override(model_settings={**request.model_settings, **chosen})
            if settings.instruction:
                request = request.override(messages=_instructed(request.messages, settings.instruction))
        return request

    def limits(self) -> AttemptSettings:
        """What is left of the budget for the next answer, within that of a guarded chain around the agent."""
        budget = self.rules.policy.budget_for(self.rules.route)
        outer = ATTEMPT.get() or AttemptSettings()
        tokens, deadline = max(1, budget.tokens - self._tokens_used()), self.started + budget.seconds
        return replace(
            outer,
            # A retry of ours is sampled as its own rule says, not as that of the chain around it.
            sampling=None if self.used.retries else outer.sampling,
            max_tokens=min(tokens, outer.max_tokens or tokens),
            deadline=min(deadline, outer.deadline or deadline),
        )

    def settle(self, response: ModelResponse[Any]) -> bool:
        """Decide about an answer; whether another attempt follows.

        Raises:
            InputError: the model does not score its answers.
        """
        self.response = response
        message = self._message()
        call = read_score(message) if message else None
        self._note_use(call)
        tools = self._tools(message)
        error = None if message else "the model gave no message"
        if message and call is None:
            error = self._unscored(tools)
        elif call is not None:
            error = call.error
        if error is not None:
            decision = self._decide_error(error, tools)
        elif call is None:  # a fallback without scores has answered: the rule that sent us there trusts it
            decision = Decision(Action.ACCEPT, self.attempts[-1].decision.rule, f"'{self._source}' answered", None)
        else:
            policy, route = self.rules.policy, self.rules.route
            decision = decide(policy, p_wrong=call.p_wrong, route=route, used=self.used, tools=tools)
        return self._keep(_said(message) if message else None, call, decision, error)

    def fail(self, error: Exception) -> bool:
        """There is no answer: what the caller did wrong is raised, the rest is the policy's."""
        callers = (InputError, PromptTooLongError, ChatTemplateError, CancelledError)
        if isinstance(error, callers) or self.shadow:
            raise error
        self.response = None
        self._note_use(None)
        told = str(error) if isinstance(error, GuardError) else f"{type(error).__name__}: {error}"
        decision = self._decide_error(told, ())
        if decision.action is Action.ACCEPT:  # there is nothing to accept
            raise error
        return self._keep(None, None, decision, told)

    def _unscored(self, tools: Sequence[str]) -> str | None:
        """What is wrong with an answer that says nothing of its score."""
        if self._source == OWN_ENGINE:
            raise InputError(
                f"The answers of {type(self.request.model).__name__} have no score",
                why="they have no response_metadata['guard']",
                fix="Give create_agent a ChatGuard as its model",
            )
        if tools and self.rules.policy.tools:
            return f"'{self._source}' gives no scores, and its answer calls {', '.join(tools)}"
        return None

    def _decide_error(self, error: str, tools: Sequence[str]) -> Decision:
        return decide_error(self.rules.policy, error=error, route=self.rules.route, used=self.used, tools=tools)

    def _note_use(self, call: ScoredCall | None) -> None:
        """Bring what has been used up to date before deciding, so that no decision oversteps it."""
        budget = self.rules.policy.budget_for(self.rules.route)
        spent = (
            len(self.attempts) + 1 >= budget.attempts
            or self._tokens_used() + (call.prompt_tokens + call.tokens if call else 0) >= budget.tokens
            or time.monotonic() - self.started >= budget.seconds
        )
        self.used = replace(self.used, spent=spent)

    def _tokens_used(self) -> int:
        return sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in self.attempts)

    def _keep(self, answer: str | None, call: ScoredCall | None, decision: Decision, error: str | None) -> bool:
        self.attempts.append(
            Attempt(
                answer=answer,
                source=self._source,
                score=_score(call),
                decision=decision,
                prompt_tokens=call.prompt_tokens if call else 0,
                completion_tokens=call.tokens if call else 0,
                seconds=time.monotonic() - self.attempt_started,
                sampling=call.sampling if call else Sampling(),
                error=error,
            )
        )
        settings = decision.settings
        if self.shadow:
            return False
        if isinstance(settings, Retry):
            self.used = replace(self.used, retries=self.used.retries + 1)
            return True
        if isinstance(settings, Fallback) and settings.to is not None:
            self.used = replace(self.used, fallbacks=self.used.fallbacks | {settings.to})
            return True
        return False

    # -- the last decision ---------------------------------------------------------------------

    @property
    def decision(self) -> Decision:
        """The last decision."""
        return self.attempts[-1].decision

    @property
    def released(self) -> bool:
        """Whether the model's own answer goes to the caller."""
        return self.shadow or self.decision.action is Action.ACCEPT

    @property
    def handlers(self) -> tuple[str, ...]:
        """The handlers that the case is handed to; the agent's pause is none of them."""
        settings = self.decision.settings
        to = settings.to if isinstance(settings, Escalate) and not self.shadow else ()
        return tuple(name for name in to if name != INTERRUPT)

    @property
    def pauses(self) -> bool:
        """Whether the agent pauses for a person."""
        settings = self.decision.settings
        return isinstance(settings, Escalate) and INTERRUPT in settings.to and not self.shadow

    def ending(self, delivery: Delivery) -> Ending:
        """Carry out the last decision.

        Args:
            delivery: who took the case; nobody where it was for no handler.

        Raises:
            AbstainedError: where the policy says so.
        """
        if self.released and self.response is not None:
            return Ending(self.response)
        decision, settings = self.decision, self.decision.settings
        if isinstance(settings, Abstain) and settings.raises:
            raise AbstainedError(
                f"The policy '{self.rules.policy.name}' abstained ({decision.rule})", why=decision.reason
            )
        message = self._noted(delivery)
        said = spoken(message, _reply(decision) or "")
        response: ModelResponse[Any] = ModelResponse(result=[said])
        if not self.pauses:
            return Ending(response, ends=True)
        return Ending(response, draft=self._draft(message).seal())

    def event(self) -> dict[str, Any]:
        """What listeners are told of the decision; nothing of the answer."""
        last = self.attempts[-1]
        return {
            **self._told(),
            "p_wrong": last.score.p_wrong if last.score else None,
            "mode": self.rules.policy.mode,
            "source": last.source,
            "attempts": len(self.attempts),
            "tokens": self._tokens_used(),  # of all attempts; listeners hear of the released one only
            "tools": list(self._tools(self._message())),
        }

    def escalation(self) -> Escalation:
        """The case for a person."""
        last, request = self.attempts[-1], self.request
        prompt = Prompt.chat(
            chat_turns(request.messages),
            system=request.system_prompt,
            tools=[tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in request.tools],
        )
        call = self._scored()
        return Escalation(
            decision_id=self.decision_id,
            question=_question(request.messages),
            prompt=prompt,
            answer=last.answer,
            p_wrong=last.score.p_wrong if last.score else None,
            rule=last.decision.rule,
            reason=last.decision.reason,
            route=self.rules.route,
            policy=self.rules.policy.name,
            model=call.model if call else type(request.model).__name__,
            attempts=tuple(self.attempts),
            metadata={} if self.thread_id is None else {"thread_id": self.thread_id},
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _draft(self, message: AIMessage) -> Draft:
        rest = [other for other in self.response.result if not isinstance(other, AIMessage)] if self.response else []
        last = self.attempts[-1]
        return Draft(
            messages=(message, *rest),
            structured=self.response.structured_response if self.response else None,
            tools=self._tool_names(),
            about={
                **self._told(),
                "p_wrong": last.score.p_wrong if last.score else None,
                "question": _question(self.request.messages),
            },
            rejected_text=_reply(last.decision) or REJECTED,
            failed=self.response is None,
        )

    def _noted(self, delivery: Delivery) -> AIMessage:
        """The last answer, or an empty one, with what was decided about it."""
        message = self._message() or AIMessage(content="", id=f"guard-{self.decision_id}")
        noted = {**(message.response_metadata.get(KEY) or {"p_wrong": None}), "decision": self._told()}
        if self.attempts[-1].error:
            noted["error"] = self.attempts[-1].error
        if delivery.delivered or delivery.errors:
            noted["decision"] |= {"escalated_to": list(delivery.delivered), "errors": list(delivery.errors)}
        return message.model_copy(update={"response_metadata": {**message.response_metadata, KEY: noted}})

    def _told(self) -> dict[str, Any]:
        route, policy = self.rules.route, self.rules.policy.name
        return decision_metadata(self.decision, decision_id=self.decision_id, route=route, policy=policy)

    @property
    def shadow(self) -> bool:
        """Whether decisions are told and not carried out."""
        return self.rules.policy.mode == "shadow"

    @property
    def _source(self) -> str:
        settings = self.attempts[-1].decision.settings if self.attempts else None
        return settings.to if isinstance(settings, Fallback) and settings.to is not None else OWN_ENGINE

    def _message(self) -> AIMessage | None:
        messages = self.response.result if self.response else []
        return next((message for message in messages if isinstance(message, AIMessage)), None)

    def _scored(self) -> ScoredCall | None:
        message = self._message()
        return read_score(message) if message else None

    def _tool_names(self) -> tuple[str, ...]:
        tools = self.request.tools
        return tuple(
            str(convert_to_openai_tool(tool)["function"]["name"]) if isinstance(tool, dict) else tool.name
            for tool in tools
        )

    def _tools(self, message: AIMessage | None) -> tuple[str, ...]:
        """Names of the tools that an answer calls. A structured response is an answer, though made by a call."""
        called = [call["name"] for call in message.tool_calls] if message else []
        if self.request.response_format is not None:
            known = self._tool_names()
            called = [name for name in called if name in known]
        return tuple(called)


def _instructed(messages: list[AnyMessage], instruction: str) -> list[AnyMessage]:
    """The messages with an instruction for one attempt."""
    last = messages[-1] if messages else None
    if isinstance(last, HumanMessage) and isinstance(last.content, str):
        told = last.model_copy(update={"content": f"{last.content}\n\n{instruction}"})
        return [*messages[:-1], told]
    return [*messages, HumanMessage(content=instruction)]


def _said(message: AIMessage) -> str:
    """An answer as one text, its tool calls included."""
    calls = [f"{call['name']}({json.dumps(call['args'], default=str)})" for call in message.tool_calls]
    return "\n".join(part for part in (message.text, *calls) if part)


def _question(messages: Sequence[AnyMessage]) -> str:
    """The last thing that a person said."""
    asked = [message for message in messages if isinstance(message, HumanMessage)]
    return str(asked[-1].text) if asked else ""


def _score(call: ScoredCall | None) -> Score | None:
    if call is None or call.p_wrong is None:
        return None
    return Score(call.p_wrong, call.calibrated, call.baseline_p_wrong, call.score_seconds or 0.0)


def _reply(decision: Decision) -> str | None:
    match decision.settings:
        case Fallback(text=str(text)) | Abstain(text=text) | Escalate(reply=text):
            return text
    return None
