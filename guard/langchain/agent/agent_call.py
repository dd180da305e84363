"""One guarded model call of an agent: which request comes next, what is decided about each answer.

As in `guard.runtime.loop`, deciding is pure and bounded in attempts, tokens and time; here the model is called
by the agent, and an answer may call tools.
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

from guard.errors import (
    CancelledError,
    ChatTemplateError,
    ForkError,
    InputError,
    PromptTooLongError,
)
from guard.langchain.agent.pending_review import Draft, spoken
from guard.langchain.attempts.accounting import is_answer
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.langchain.attempts.model_calls import ModelCall, Verdict, asked_text, judge, judge_failure, may_quote
from guard.langchain.messages import chat_turns, reasoning_of
from guard.langchain.metadata import (
    KEY,
    ScoredCall,
    decision_metadata,
    finish_reason_of,
    message_defects,
    read_score,
)
from guard.policy.defects import Defect
from guard.policy.document import Fallback, Retry
from guard.policy.policy import Calls, Policy, decide, decide_error
from guard.records import Action, Attempt, Decision, Escalation, FinishReason, Prompt, Sampling, Score
from guard.review.handlers import Delivery, Handler
from guard.runtime.call_state import OWN_ENGINE, CallState, describe_error
from guard.runtime.deadline import late

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
    trusted: frozenset[str] = frozenset()

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
        ends: whether the agent has to be ended with it, since it would ask the model again otherwise. Where
            it would not, the hooks of other middleware see the text first.
    """

    response: ModelResponse[Any]
    draft: str | None = None
    ends: bool = False


@dataclass(slots=True)
class AgentCall:
    """The state of one guarded model call.

    Attributes:
        rules: decide about it.
        request: what the agent asks.
        metadata: of the agent's run, for those who take an escalation.
        state: of this call.
        attempt_started: on the clock of `time.monotonic`.
        prompts: what scored models read in the last attempt, by what they were asked.
        response: of the last attempt; None where the model failed.
    """

    rules: Rules
    request: ModelRequest[Any]
    metadata: Mapping[str, Any]
    state: CallState
    attempt_started: float = 0.0
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    response: ModelResponse[Any] | None = None

    # -- one attempt ---------------------------------------------------------------------------

    def next_request(self) -> ModelRequest[Any]:
        """What the model is asked next: as the agent wanted, or as the last decision says."""
        self.attempt_started = time.monotonic()
        settings, request = self.state.settings, self.request
        if isinstance(settings, Fallback) and settings.to is not None:
            return request.override(model=self.rules.fallbacks[settings.to])
        if isinstance(settings, Retry):
            sampling = settings.sampling(self.state.usage.retries)
            chosen = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")}
            chosen["max_tokens"] = settings.max_tokens
            chosen = {name: value for name, value in chosen.items() if value is not None}
            request = request.override(model_settings={**request.model_settings, **chosen})
            if settings.instruction:
                request = request.override(messages=_instructed(request.messages, settings.instruction))
        return request

    def limits(self) -> AttemptSettings:
        """What is left of the budget for the next answer, within that of a guarded chain around the agent."""
        state, outer = self.state, ATTEMPT.get() or AttemptSettings()
        tokens, deadline = max(1, state.budget.tokens - state.tokens_used), state.deadline
        limits = replace(
            outer,
            # A retry of ours is sampled as its own rule says, not as that of the chain around it.
            sampling=None if state.usage.retries else outer.sampling,
            token_limit=None if state.usage.retries else outer.token_limit,
            max_tokens=min(tokens, outer.max_tokens or tokens),
            deadline=min(deadline, outer.deadline or deadline),
        )
        self.prompts = limits.prompts
        return limits

    def settle(self, response: ModelResponse[Any], calls: Sequence[ModelCall]) -> bool:
        """Decide about an answer; whether another attempt follows.

        Args:
            response: of the model's step.
            calls: of the models that answered in it.

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
            error = self._unscored(tools)
        elif call is not None:
            error = call.error
        if message and error is None:
            error = self._unaccounted(message, calls)
        if self.state.late and error is None:
            error = str(late(self.state.source))
        defects = message_defects(message) if message else ()
        if error is not None:
            decision = self._decide_error(error, tools, defects)
        elif call is None:  # a fallback without scores has answered
            decision = self.state.trusted(defects)
        else:
            state = self.state
            decision = decide(
                state.policy,
                p_wrong=call.p_wrong,
                ood_score=call.ood_score,
                route=state.route,
                usage=state.usage,
                tools=tools,
                defects=defects,
            )
        return self._keep(_said(message) if message else None, call, decision, error)

    def fail(self, error: Exception, calls: Sequence[ModelCall]) -> bool:
        """There is no answer: what the caller did wrong is raised, the rest is the policy's.

        Args:
            error: of the model, or of a step after it.
            calls: of models that had answered before.
        """
        quotes = may_quote(error, calls)
        # What the first attempt could be asked, a later one may not: its fallback or instruction is the policy's.
        question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError) and not self.state.attempts
        if (question and not quotes) or isinstance(error, CancelledError | ForkError) or self.state.shadow:
            raise error
        self.response = None
        scored = [call.scored for call in calls if call.scored]
        self.state.note_use(
            prompt_tokens=sum(one.prompt_tokens for one in scored),
            completion_tokens=sum(one.tokens for one in scored),
        )
        verdict = self._judge_failure(error, calls if quotes else ())
        if verdict.decision.action is Action.ACCEPT:  # there is nothing to accept; an answer that it quotes may be told
            raise error
        text = f"{type(error).__name__} after the model had answered" if quotes else describe_error(error)
        return self._keep(None, verdict.call.scored if verdict.call else None, verdict.decision, text)

    def _judge_failure(self, error: Exception, calls: Sequence[ModelCall]) -> Verdict:
        """Decide by the scores of what was answered, as the error may quote it, or that there is no answer."""
        state = self.state
        if not calls:
            return judge_failure(state.policy, describe_error(error), route=state.route, usage=state.usage)
        return judge(state.policy, calls, join=Calls(), route=state.route, usage=state.usage)

    def _unscored(self, tools: Sequence[str]) -> str | None:
        """What is wrong with an answer that says nothing of its score."""
        if self.state.source == OWN_ENGINE:
            raise InputError(
                f"The answers of {type(self.request.model).__name__} have no score",
                why="they have no response_metadata['guard']",
                fix="Give create_agent a ChatGuard as its model",
            )
        if tools and self.state.policy.tools:
            return f"'{self.state.source}' gives no scores, and its answer calls {', '.join(tools)}"
        if self.state.source not in self.rules.trusted:
            return f"'{self.state.source}' gives no scores and is not declared as trusted"
        return None

    def _unaccounted(self, message: AIMessage, calls: Sequence[ModelCall]) -> str | None:
        """What is wrong with an answer that may not be what the model has said."""
        unheard = [call.failure for call in calls if call.unheard]
        if unheard:
            return unheard[0]
        if not is_answer(message, calls):
            return "the answer is not what the model has said: something between it and the guard has changed it"
        return None

    def _decide_error(self, error: str, tools: Sequence[str], defects: Sequence[Defect]) -> Decision:
        state = self.state
        about: dict[str, Any] = {"route": state.route, "usage": state.usage, "tools": tools, "defects": defects}
        return decide_error(state.policy, error=error, **about)

    def _keep(self, answer: str | None, call: ScoredCall | None, decision: Decision, error: str | None) -> bool:
        return self.state.keep(
            Attempt(
                answer=answer,
                source=self.state.source,
                score=_score(call),
                decision=decision,
                prompt_tokens=call.prompt_tokens if call else 0,
                completion_tokens=call.tokens if call else 0,
                seconds=time.monotonic() - self.attempt_started,
                sampling=call.sampling if call else Sampling(),
                error=error,
                finish_reason=call.finish_reason if call else self._foreign_ending(),
                reasoning=reasoning_of(self._message()),
            )
        )

    def _foreign_ending(self) -> FinishReason | None:
        message = self._message()
        return finish_reason_of(message) if message else None

    # -- the last decision ---------------------------------------------------------------------

    @property
    def handlers(self) -> tuple[str, ...]:
        """The handlers that the case is handed to; the agent's pause is none of them."""
        return tuple(name for name in self.state.escalate_to if name != INTERRUPT)

    @property
    def pauses(self) -> bool:
        """Whether the agent pauses for a person."""
        return INTERRUPT in self.state.escalate_to

    def ending(self, delivery: Delivery) -> Ending:
        """Carry out the last decision.

        Args:
            delivery: who took the case; nobody where it was for no handler.

        Raises:
            AbstainedError: where the policy says so.
        """
        if self.state.released and self.response is not None:
            return Ending(self.response)
        self.state.check_abstention()
        message = self._noted(delivery)
        response: ModelResponse[Any] = ModelResponse(result=[spoken(message, self.state.reply or "")])
        if not self.pauses:
            return Ending(response, ends=self._loops)
        return Ending(response, draft=self._draft(message).seal())

    def event(self) -> dict[str, Any]:
        """What listeners are told of the decision; nothing of the answer."""
        state, last = self.state, self.state.attempts[-1]
        return {
            **self._told(),
            "p_wrong": last.score.p_wrong if last.score else None,
            "mode": state.policy.mode,
            "source": last.source,
            "attempts": len(state.attempts),
            "finish_reason": last.finish_reason,
            "tokens": state.tokens_used,  # of all attempts; listeners hear of the released one only
            "tools": list(self._tools(self._message())),
        }

    def _prompt(self) -> Prompt:
        """What the model read, or what it was asked where it does not say what it made of that."""
        request = self.request
        system = [SystemMessage(request.system_prompt)] if request.system_prompt else []
        if (read := self.prompts.get(asked_text([*system, *request.messages]))) is not None:
            return read
        return Prompt.chat(
            chat_turns(request.messages),
            system=request.system_prompt,
            tools=[tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in request.tools],
        )

    def escalation(self) -> Escalation:
        """The case for a person."""
        request = self.request
        call = self._scored()
        return self.state.escalation(
            question=_question(request.messages),
            prompt=self._prompt(),
            model=call.model if call else type(request.model).__name__,
            metadata=self.metadata,
        )

    def _draft(self, message: AIMessage) -> Draft:
        rest = [other for other in self.response.result if not isinstance(other, AIMessage)] if self.response else []
        last = self.state.attempts[-1]
        return Draft(
            messages=(message, *rest),
            structured=self.response.structured_response if self.response else None,
            tools=self._tool_names(),
            about={
                **self._told(),
                "p_wrong": last.score.p_wrong if last.score else None,
                "finish_reason": last.finish_reason,
                "question": _question(self.request.messages),
            },
            rejected_text=self.state.reply or REJECTED,
            failed=self.response is None,
            loops=self._loops,
        )

    @property
    def _loops(self) -> bool:
        """Whether the agent asks the model again until it has a structured response."""
        return self.request.response_format is not None

    def _noted(self, delivery: Delivery) -> AIMessage:
        """The last answer, or an empty one, with what was decided about it."""
        message = self._message() or AIMessage(content="", id=f"guard-{self.state.decision_id}")
        noted = {**(message.response_metadata.get(KEY) or {"p_wrong": None}), "decision": self._told()}
        if self.state.attempts[-1].error:
            noted["error"] = self.state.attempts[-1].error
        if delivery.delivered or delivery.errors:
            noted["decision"] |= {
                "escalated_to": list(delivery.delivered),
                "receipts": {name: str(receipt) for name, receipt in delivery.receipts.items()},
                "errors": list(delivery.errors),
            }
        return message.model_copy(update={"response_metadata": {**message.response_metadata, KEY: noted}})

    def _told(self) -> dict[str, Any]:
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
        """Names of the tools that an answer calls. A structured response is an answer, though made by a call."""
        called = [call["name"] for call in message.tool_calls] if message else []
        if self.request.response_format is not None:
            known = self._tool_names()
            called = [name for name in called if name in known]
        return tuple(called)


def _instructed(messages: list[AnyMessage], instruction: str) -> list[AnyMessage]:
    """The messages with an instruction for one attempt: added to the user's last, or a turn of its own."""
    last = messages[-1] if messages else None
    if not isinstance(last, HumanMessage):
        return [*messages, HumanMessage(content=instruction)]
    own, added = last.content, f"\n\n{instruction}"
    told = f"{own}{added}" if isinstance(own, str) else [*own, {"type": "text", "text": added}]
    return [*messages[:-1], last.model_copy(update={"content": told})]


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
    return Score(call.p_wrong, call.calibrated, call.baseline_p_wrong, call.score_seconds or 0.0, call.ood_score)
