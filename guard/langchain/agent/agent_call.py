"""One guarded model call of an agent: the next request, and the decision about each answer.

As in `guard.runtime.loop`, decisions are pure and bounded in attempts, tokens and time. Here the agent calls the model,
and an answer may call tools.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from guard.audit.log import AuditLog
from guard.errors import (
    InputError,
)
from guard.langchain.agent.pending_review import PendingReview, with_text
from guard.langchain.attempts.accounting import is_answer
from guard.langchain.attempts.attempt_run import AttemptResult
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.langchain.attempts.model_calls import ModelCall, Verdict, judge, judge_failure, may_quote, prompt_text
from guard.langchain.messages import chat_turns, read_reasoning
from guard.langchain.metadata import (
    KEY,
    ScoredCall,
    decision_metadata,
    message_defects,
    read_finish_reason,
    read_score,
)
from guard.monitoring.acceptance import AcceptanceMonitor
from guard.outcome_export import span_list
from guard.policy.document import Fallback, Retry
from guard.policy.policy import Calls, Policy
from guard.records import Action, Attempt, Decision, Escalation, FinishReason, Prompt, Sampling
from guard.review.handlers import Delivery, Handler
from guard.runtime.call_state import OWN_ENGINE, CallState, describe_error
from guard.runtime.deadline import late
from guard.scores import Score, ScoreName

#: The escalation target that pauses the agent.
INTERRUPT = "interrupt"

#: Text that replaces a rejected answer if the policy has no text.
REJECTED = "A reviewer rejected the answer."


@dataclass(frozen=True, slots=True)
class AgentRules:
    """The settings of a `GuardMiddleware`, shared by all calls.

    Attributes:
        policy: decides.
        route: section of the policy, or None.
        fallbacks: chat models by name.
        handlers: escalation handlers by name.
        handler_timeout_s: deadline of each handler, in seconds.
        trusted: names of the fallbacks whose answers are final without a score.
        audit_log: gets every decision; None keeps none.
        monitor: draws audit cases; None where the policy has no ``audit`` section.
    """

    policy: Policy
    route: str | None
    fallbacks: Mapping[str, BaseChatModel]
    handlers: Mapping[str, Handler]
    handler_timeout_s: float
    trusted: frozenset[str] = frozenset()
    audit_log: AuditLog | None = None
    monitor: AcceptanceMonitor | None = None

    @property
    def may_pause(self) -> bool:
        """Whether some rule of the policy can pause the agent."""
        return self.policy.mode == "enforce" and INTERRUPT in self.policy.handler_names()


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a guarded model call.

    Attributes:
        response: response for the agent: the model's own, or one with a text in its place.
        pending: token of the review that is pending; None if there is none.
        ends: whether the agent must end here, because it would call the model again otherwise. If it would not, the
            hooks of other middleware see the text first.
    """

    response: ModelResponse[Any]
    pending: str | None = None
    ends: bool = False


@dataclass(slots=True)
class AgentCall:
    """One guarded model call.

    Attributes:
        rules: the settings of the middleware.
        request: the agent's request.
        metadata: metadata of the agent's run, for escalation handlers.
        state: attempts and usage of this call.
        attempt_started: start of the last attempt on the clock of `time.monotonic`.
        prompts: prompts as scored models read them in the last attempt, by `prompt_text` of the call.
        response: response of the last attempt; None if the model failed.
    """

    rules: AgentRules
    request: ModelRequest[Any]
    metadata: Mapping[str, Any]
    state: CallState
    attempt_started: float = 0.0
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    response: ModelResponse[Any] | None = None

    # -- one attempt ---------------------------------------------------------------------------

    def next_request(self) -> ModelRequest[Any]:
        """Return the next request: the agent's own, or the one that the last decision asks for."""
        self.attempt_started = time.monotonic()
        settings, request = self.state.settings, self.request
        if isinstance(settings, Fallback) and settings.to is not None:
            return request.override(model=self.rules.fallbacks[settings.to])
        if isinstance(settings, Retry):
            sampling = settings.sampling(self.state.usage.retries)
            chosen = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")}
            chosen["max_tokens"] = _higher_limit(self.state.retry_tokens, request)
            chosen = {name: value for name, value in chosen.items() if value is not None}
            request = request.override(model_settings={**request.model_settings, **chosen})
            if settings.instruction:
                request = request.override(messages=_instructed(request.messages, settings.instruction))
        return request

    def attempt_settings(self) -> AttemptSettings:
        """Return the settings of the next attempt, within the budget of a guarded chain around the agent."""
        state, outer = self.state, ATTEMPT.get() or AttemptSettings()
        tokens, deadline = max(1, state.budget.tokens - state.tokens_used), state.deadline
        settings = replace(
            outer,
            # The middleware's own retry is sampled by its own rule, not by that of the chain around it.
            sampling=None if state.usage.retries else outer.sampling,
            token_limit=None if state.usage.retries else outer.token_limit,
            max_tokens=min(tokens, outer.max_tokens or tokens),
            deadline=min(deadline, outer.deadline or deadline),
        )
        self.prompts = settings.prompts
        return settings

    def record_result(self, result: AttemptResult) -> bool:
        """Decide about an attempt; return whether another follows (see `record_response`, `record_failure`)."""
        if result.error is not None:
            return self.record_failure(result.error, result.calls)
        return self.record_response(result.output, result.calls)

    def record_response(self, response: ModelResponse[Any], calls: Sequence[ModelCall]) -> bool:
        """Decide about an answer; return whether another attempt follows.

        Args:
            response: response of the model's step.
            calls: model calls in that step.

        Raises:
            InputError: the model does not score its answers.
        """
        self.response = response
        message = self._message()
        call = read_score(message) if message else None
        if call:
            self.state.note_use(prompt_tokens=call.prompt_tokens, completion_tokens=call.tokens)
        else:
            self.state.note_use()
        tools = self._tools(message)
        error = None if message else "the model gave no message"
        if message and call is None:
            error = self._unscored_error(tools)
        elif call is not None:
            error = call.error or call.why_lacking(self.state.policy.score)
        if message and error is None:
            error = self._provenance_error(message, calls)
        if self.state.late and error is None:
            error = str(late(self.state.source))
        defects = message_defects(message) if message else ()
        if error is not None:
            decision = self.state.decide_error(error, tools=tools, defects=defects)
        elif call is None:  # an unscored fallback has answered
            decision = self.state.trusted(defects)
        else:
            decision = self.state.decide(call.deciding(self.state.policy.score), tools=tools, defects=defects)
        return self._keep(_answer_text(message) if message else None, call, decision, error)

    def record_failure(self, error: Exception, calls: Sequence[ModelCall]) -> bool:
        """Decide that there is no answer; return whether another attempt follows. Raise errors that are the caller's.

        Args:
            error: exception of the model, or of a step after it.
            calls: model calls that had finished before.
        """
        quotes = may_quote(error, calls)
        if self.state.is_callers(error, answered=quotes):
            raise error
        self.response = None
        scored = [call.scored for call in calls if call.scored]
        self.state.note_use(
            prompt_tokens=sum(one.prompt_tokens for one in scored),
            completion_tokens=sum(one.tokens for one in scored),
        )
        verdict = self._judge_failure(error, calls if quotes else ())
        if verdict.decision.action is Action.ACCEPT:  # nothing to accept; an answer that it quotes was accepted
            raise error
        text = f"{type(error).__name__} after the model had answered" if quotes else describe_error(error)
        return self._keep(None, verdict.call.scored if verdict.call else None, verdict.decision, text)

    def _judge_failure(self, error: Exception, calls: Sequence[ModelCall]) -> Verdict:
        """Decide by the scores of the answers that the error may quote, or, without any, that there is no answer."""
        if not calls:
            return judge_failure(self.state, describe_error(error))
        return judge(self.state, calls, join=Calls())

    def _unscored_error(self, tools: Sequence[str]) -> str | None:
        """Return why an answer without score metadata cannot be used."""
        if self.state.source == OWN_ENGINE:
            raise InputError(
                f"{type(self.request.model).__name__} does not score its answers",
                why="its messages have no response_metadata['guard']",
                fix="Give create_agent a ChatGuard as its model",
            )
        if tools and self.state.policy.tools:
            return f"'{self.state.source}' gives no scores, and its answer calls {', '.join(tools)}"
        if self.state.source not in self.rules.trusted:
            return f"'{self.state.source}' gives no scores and is not declared as trusted"
        return None

    def _provenance_error(self, message: AIMessage, calls: Sequence[ModelCall]) -> str | None:
        """Return why an answer may differ from what the model generated."""
        unaccounted = [call.failure for call in calls if call.unaccounted]
        if unaccounted:
            return unaccounted[0]
        if not is_answer(message, calls):
            return "the answer differs from what the model generated: something before the guard changed it"
        return None

    def _keep(self, answer: str | None, call: ScoredCall | None, decision: Decision, error: str | None) -> bool:
        return self.state.keep(
            Attempt(
                answer=answer,
                source=self.state.source,
                score=_score(call, self.state.policy.score),
                decision=decision,
                prompt_tokens=call.prompt_tokens if call else 0,
                completion_tokens=call.tokens if call else 0,
                seconds=time.monotonic() - self.attempt_started,
                sampling=call.sampling if call else Sampling(),
                error=error,
                finish_reason=call.finish_reason if call else self._unscored_finish_reason(),
                reasoning=read_reasoning(self._message()),
            )
        )

    def _unscored_finish_reason(self) -> FinishReason | None:
        message = self._message()
        return read_finish_reason(message) if message else None

    # -- the last decision ---------------------------------------------------------------------

    @property
    def handlers(self) -> tuple[str, ...]:
        """Handlers that receive the case; the agent's pause is not one of them."""
        return tuple(name for name in self.state.escalate_to if name != INTERRUPT)

    @property
    def pauses(self) -> bool:
        """Whether the agent pauses for a reviewer."""
        return INTERRUPT in self.state.escalate_to

    def ending(self, delivery: Delivery) -> Ending:
        """Carry out the last decision.

        Args:
            delivery: handlers that accepted the case.

        Raises:
            AbstainedError: the policy says so.
        """
        if self.state.released and self.response is not None:
            return Ending(self.response)
        self.state.check_abstention()
        message = self._with_decision(delivery)
        response: ModelResponse[Any] = ModelResponse(
            result=[with_text(message, self.state.reply_after(delivery) or "")]
        )
        if not self.pauses:
            return Ending(response, ends=self._loops)
        return Ending(response, pending=self._pending_review(message).to_token())

    def event(self) -> dict[str, Any]:
        """Return the decision as callbacks receive it; it contains no text of the answer."""
        state, last = self.state, self.state.attempts[-1]
        return {
            **self._decision_metadata(),
            "p_wrong": last.score.p_wrong if last.score else None,
            "mode": state.policy.mode,
            "source": last.source,
            "attempts": len(state.attempts),
            "finish_reason": last.finish_reason,
            "tokens": state.tokens_used,  # of all attempts; callbacks report only the released one
            "tools": list(self._tools(self._message())),
        }

    def _prompt(self) -> Prompt:
        """Return the prompt as the model read it, or the request if the model does not report that."""
        request = self.request
        system = [SystemMessage(request.system_prompt)] if request.system_prompt else []
        if (read := self.prompts.get(prompt_text([*system, *request.messages]))) is not None:
            return read
        return Prompt.chat(
            chat_turns(request.messages),
            system=request.system_prompt,
            tools=[tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in request.tools],
        )

    def escalation(self) -> Escalation:
        """Return the case for escalation handlers."""
        request = self.request
        call = self._scored()
        return self.state.escalation(
            question=_question(request.messages),
            prompt=self._prompt(),
            model=call.model if call else type(request.model).__name__,
            metadata=self.metadata,
        )

    def _pending_review(self, message: AIMessage) -> PendingReview:
        rest = [other for other in self.response.result if not isinstance(other, AIMessage)] if self.response else []
        last = self.state.attempts[-1]
        return PendingReview(
            messages=(message, *rest),
            structured=self.response.structured_response if self.response else None,
            tools=self._tool_names(),
            context={
                **self._decision_metadata(),
                "p_wrong": last.score.p_wrong if last.score else None,
                "finish_reason": last.finish_reason,
                "question": _question(self.request.messages),
                "spans": span_list(last.score.spans) if last.score else None,
            },
            rejected_text=self.state.reply or REJECTED,
            failed=self.response is None,
            loops=self._loops,
        )

    @property
    def _loops(self) -> bool:
        """Whether the agent calls the model until it has a structured response."""
        return self.request.response_format is not None

    def _with_decision(self, delivery: Delivery) -> AIMessage:
        """Return the last answer, or an empty one, with the decision in its metadata."""
        message = self._message() or AIMessage(content="", id=f"guard-{self.state.decision_id}")
        metadata = {**(message.response_metadata.get(KEY) or {"p_wrong": None}), "decision": self._decision_metadata()}
        if self.state.attempts[-1].error:
            metadata["error"] = self.state.attempts[-1].error
        if delivery.delivered or delivery.errors:
            metadata["decision"] |= {
                "escalated_to": list(delivery.delivered),
                "receipts": {name: str(receipt) for name, receipt in delivery.receipts.items()},
                "errors": list(delivery.errors),
            }
        return message.model_copy(update={"response_metadata": {**message.response_metadata, KEY: metadata}})

    def _decision_metadata(self) -> dict[str, Any]:
        state = self.state
        return decision_metadata(
            state.decision, decision_id=state.decision_id, route=state.route, policy=state.policy.name
        )

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
        """Return the names of the tools that an answer calls; a structured response is not a call."""
        called = [call["name"] for call in message.tool_calls] if message else []
        if self.request.response_format is not None:
            known = self._tool_names()
            called = [name for name in called if name in known]
        return tuple(called)


def _higher_limit(tokens: int, request: ModelRequest[Any]) -> int | None:
    """Return the token limit of a retry: no lower than that of the request, or else of the model; None keeps that."""
    own = request.model_settings.get("max_tokens") or getattr(request.model, "max_tokens", None)
    return max(tokens, own) if tokens and isinstance(own, int) else tokens or None


def _instructed(messages: list[AnyMessage], instruction: str) -> list[AnyMessage]:
    """Return the messages with an instruction, appended to the user's last message or as a message of its own."""
    last = messages[-1] if messages else None
    if not isinstance(last, HumanMessage):
        return [*messages, HumanMessage(content=instruction)]
    own, added = last.content, f"\n\n{instruction}"
    content: Any = f"{own}{added}" if isinstance(own, str) else [*own, {"type": "text", "text": added}]
    return [*messages[:-1], last.model_copy(update={"content": content})]


def _answer_text(message: AIMessage) -> str:
    """Return an answer as one text, including its tool calls."""
    calls = [f"{call['name']}({json.dumps(call['args'], default=str)})" for call in message.tool_calls]
    return "\n".join(part for part in (message.text, *calls) if part)


def _question(messages: Sequence[AnyMessage]) -> str:
    """Return the text of the user's last message."""
    asked = [message for message in messages if isinstance(message, HumanMessage)]
    return str(asked[-1].text) if asked else ""


def _score(call: ScoredCall | None, name: ScoreName) -> Score | None:
    known = call is not None and call.p_wrong is not None and call.why_lacking(name) is None
    return call.deciding(name) if call is not None and known else None
