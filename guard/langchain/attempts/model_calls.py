"""The model calls of one attempt, as callbacks report them, and the policy's decision about them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from guard.engines import witness
from guard.errors import ChatTemplateError, GuardError, InputError, PromptTooLongError, ScorerError
from guard.langchain.metadata import ScoredCall, message_defects, read_finish_reason, read_score
from guard.policy.defects import Defect
from guard.policy.document import SEVERITY
from guard.policy.policy import Calls
from guard.records import Decision, FinishReason
from guard.runtime.call_state import CallState

#: The ``_type`` by which callbacks identify a model that reports its answers to `guard.engines.witness`.
MODEL_TYPE = "guard"


def prompt_text(messages: Sequence[Any]) -> str:
    """Return a model call's messages as one text, for comparison."""
    return "\n".join(f"{message.type}: {message.text}" for message in messages)


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model call that produced an answer, or part of one.

    Attributes:
        inputs: messages or prompts that the model received.
        tags: tags of the step.
        scored: score metadata of the answer; None if guard does not score the model.
        tools: names of the tools that the answer calls.
        abandoned: whether the answer was abandoned before its end.
        message: the answer; None if it is no chat message.
        unaccounted: whether no callback reported the call, so that nothing else is known of it.
    """

    inputs: tuple[Any, ...]
    tags: frozenset[str]
    scored: ScoredCall | None
    tools: tuple[str, ...] = ()
    abandoned: bool = False
    message: AIMessage | None = field(default=None, repr=False)
    unaccounted: bool = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason why the answer ended; None if unknown."""
        return read_finish_reason(self.message) if self.message else None

    @property
    def defects(self) -> tuple[Defect, ...]:
        """Defects of the answer's form."""
        return message_defects(self.message) if self.message else ()

    @property
    def failure(self) -> str | None:
        """Reason why the call has no usable score; None if it has one."""
        if self.unaccounted:
            return "a scored model answered in the chain, but no callback reported the call"
        if self.abandoned:
            return "an answer was abandoned before its end"
        if self.scored is None:
            return "a model call in the chain has no score: its model is not scored by guard"
        return self.scored.error


@dataclass(slots=True)
class _Started:
    inputs: tuple[Any, ...]
    tags: frozenset[str]
    has_text: bool = False


@dataclass(slots=True)
class CallLog:
    """Collects the model calls of one attempt in the order in which they ended. Thread-safe."""

    calls: list[ModelCall] = field(default_factory=list)
    _started: dict[UUID, _Started] = field(default_factory=dict)
    _mutex: Any = field(default_factory=threading.Lock)

    def record(self, event: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Process one callback; callbacks that do not concern models are ignored."""
        run: UUID = keywords["run_id"]
        with self._mutex:
            match event:
                case "on_chat_model_start" | "on_llm_start":
                    inputs = arguments[1][0] if event == "on_chat_model_start" else arguments[1]
                    self._started[run] = _Started(tuple(inputs), frozenset(keywords.get("tags") or ()))
                    if (keywords.get("invocation_params") or {}).get("_type") == MODEL_TYPE:
                        witness.expect(run, prompt_text(inputs))
                case "on_llm_new_token" | "on_stream_event" if run in self._started:
                    self._started[run].has_text = True
                case "on_llm_end" if run in self._started:
                    witness.forget(run)
                    self.calls += _answers(self._started.pop(run), arguments[0])
                case "on_llm_error" if run in self._started:
                    witness.forget(run)
                    started = self._started.pop(run)
                    if started.has_text:  # the chain may have used the text
                        self.calls.append(ModelCall(started.inputs, started.tags, None, abandoned=True))

    def all(self) -> tuple[ModelCall, ...]:
        """Return every call that produced text; one that is still running counts as abandoned."""
        with self._mutex:
            running = [started for started in self._started.values() if started.has_text]
            return (*self.calls, *(ModelCall(one.inputs, one.tags, None, abandoned=True) for one in running))


def _answers(started: _Started, response: LLMResult) -> list[ModelCall]:
    generations = [generation for many in response.generations for generation in many]
    messages = [one.message if isinstance(one, ChatGeneration) else None for one in generations]
    return [_answer(started, message) for message in messages]


def _answer(started: _Started, message: BaseMessage | None) -> ModelCall:
    if not isinstance(message, AIMessage):
        return ModelCall(started.inputs, started.tags, None)
    tools = tuple(call["name"] for call in message.tool_calls)
    return ModelCall(started.inputs, started.tags, read_score(message), tools, message=message)


# -- deciding ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """The policy's decision about an attempt, with the call that it rests on.

    Attributes:
        decision: the decision.
        call: the deciding model call; None if no call decided.
        error: reason why there was no usable score, or None.
    """

    decision: Decision
    call: ModelCall | None
    error: str | None


def judge(state: CallState, calls: Sequence[ModelCall], *, join: Calls) -> Verdict:
    """Decide about an attempt by the scores of its model calls.

    Each counting call is decided separately, so that tool rules apply to the answer that calls the tool. The strictest
    decision wins; among equals, the one on the worst score. A call without a score is worse than any.
    """
    for call in calls:
        if call.unaccounted:  # its text may be the output, whatever is decided about the other calls
            return judge_failure(state, call.failure or "", call)
    counting = [call for call in calls if join.tag is None or join.tag in call.tags]
    if not counting:
        error = "no model call in the chain was scored"
        if calls and join.tag is not None:
            error = f"no model call in the chain has the tag '{join.tag}'"
        return judge_failure(state, error)
    if join.join == "last":
        counting = counting[-1:]
    return max((_judge_one(state, call) for call in counting), key=_severity)


def may_quote(error: Exception, calls: Sequence[ModelCall]) -> bool:
    """Return whether an error's text may quote an answer: a step failed after a model had answered.

    Errors of guard's own engines and scorers do not quote answers.
    """
    question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError)
    return bool(calls) and (question or not isinstance(error, GuardError))


def judge_failure(state: CallState, error: str, call: ModelCall | None = None) -> Verdict:
    """Decide about an attempt without a usable score.

    Args:
        state: of the guarded call.
        error: reason why there is none.
        call: the model call that it concerns; None where no call is known.
    """
    tools, defects = (call.tools, call.defects) if call else ((), ())
    return Verdict(state.decide_error(error, tools=tools, defects=defects), call, error)


def _judge_one(state: CallState, call: ModelCall) -> Verdict:
    if call.failure is not None:
        return judge_failure(state, call.failure, call)
    assert call.scored is not None
    try:
        score = call.scored.deciding(state.policy.score)
    except ScorerError as error:
        return judge_failure(state, str(error), call)
    return Verdict(state.decide(score, tools=call.tools, defects=call.defects), call, None)


def _severity(verdict: Verdict) -> tuple[int, float]:
    p_wrong = verdict.decision.p_wrong
    return SEVERITY[verdict.decision.action], 2.0 if p_wrong is None else p_wrong
