"""The model calls of one attempt, as callbacks tell of them, and what a policy says about them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from guard.engines import witness
from guard.errors import ChatTemplateError, GuardError, InputError, PromptTooLongError
from guard.langchain.metadata import ScoredCall, finish_reason_of, message_defects, read_score
from guard.policy.defects import Defect
from guard.policy.document import SEVERITY
from guard.policy.policy import Calls, Policy, Usage, decide, decide_error
from guard.records import Decision, FinishReason

#: How LangChain's callbacks call a model that reports its answers to `guard.engines.witness`.
MODEL_TYPE = "guard"


def asked_text(messages: Sequence[Any]) -> str:
    """What a model is asked, as one text to compare by."""
    return "\n".join(f"{message.type}: {message.text}" for message in messages)


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model call that has given an answer, or a part of one.

    Attributes:
        asked: the messages or the prompts that the model was given.
        tags: of the step.
        scored: what its message says of its score; None where the model is not scored by guard.
        tools: names of the tools that the answer calls.
        cut: whether the answer was abandoned before its end.
        message: the answer; None where it is no chat message.
        unheard: whether the call was not told by callbacks, so that nothing else is known of it.
    """

    asked: tuple[Any, ...]
    tags: frozenset[str]
    scored: ScoredCall | None
    tools: tuple[str, ...] = ()
    cut: bool = False
    message: AIMessage | None = field(default=None, repr=False)
    unheard: bool = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the answer ended; None where it is not known."""
        return finish_reason_of(self.message) if self.message else None

    @property
    def defects(self) -> tuple[Defect, ...]:
        """What is wrong with the answer's form."""
        return message_defects(self.message) if self.message else ()

    @property
    def failure(self) -> str | None:
        """Why the call has no usable score, or None where it has one."""
        if self.unheard:
            return "a scored model has answered in the chain unseen by its callbacks"
        if self.cut:
            return "an answer was abandoned before its end"
        if self.scored is None:
            return "a model call in the chain has no score: its model is not scored by guard"
        return self.scored.error


@dataclass(slots=True)
class _Started:
    asked: tuple[Any, ...]
    tags: frozenset[str]
    has_text: bool = False


@dataclass(slots=True)
class CallLog:
    """Collects the model calls of one attempt, in the order in which they ended. Thread-safe."""

    calls: list[ModelCall] = field(default_factory=list)
    _started: dict[UUID, _Started] = field(default_factory=dict)
    _mutex: Any = field(default_factory=threading.Lock)

    def note(self, event: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Take one callback; those that tell nothing of models are passed over."""
        run: UUID = keywords["run_id"]
        with self._mutex:
            match event:
                case "on_chat_model_start" | "on_llm_start":
                    asked = arguments[1][0] if event == "on_chat_model_start" else arguments[1]
                    self._started[run] = _Started(tuple(asked), frozenset(keywords.get("tags") or ()))
                    if (keywords.get("invocation_params") or {}).get("_type") == MODEL_TYPE:
                        witness.expect(run, asked_text(asked))
                case "on_llm_new_token" | "on_stream_event" if run in self._started:
                    self._started[run].has_text = True
                case "on_llm_end" if run in self._started:
                    witness.forget(run)
                    self.calls += _answers(self._started.pop(run), arguments[0])
                case "on_llm_error" if run in self._started:
                    witness.forget(run)
                    started = self._started.pop(run)
                    if started.has_text:  # the chain may have used what there was
                        self.calls.append(ModelCall(started.asked, started.tags, None, cut=True))

    def all(self) -> tuple[ModelCall, ...]:
        """Every call that has given text; one that is still running has not come to its end."""
        with self._mutex:
            running = [started for started in self._started.values() if started.has_text]
            return (*self.calls, *(ModelCall(one.asked, one.tags, None, cut=True) for one in running))


def _answers(started: _Started, response: LLMResult) -> list[ModelCall]:
    generations = [generation for many in response.generations for generation in many]
    messages = [one.message if isinstance(one, ChatGeneration) else None for one in generations]
    return [_answer(started, message) for message in messages]


def _answer(started: _Started, message: BaseMessage | None) -> ModelCall:
    if not isinstance(message, AIMessage):
        return ModelCall(started.asked, started.tags, None)
    tools = tuple(call["name"] for call in message.tool_calls)
    return ModelCall(started.asked, started.tags, read_score(message), tools, message=message)


# -- deciding ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says about an attempt, and the call that it is about.

    Attributes:
        decision: to be carried out.
        call: the model call that decided; None where none did.
        error: why there was no usable score, or None.
    """

    decision: Decision
    call: ModelCall | None
    error: str | None


def judge(policy: Policy, calls: Sequence[ModelCall], *, join: Calls, route: str | None, usage: Usage) -> Verdict:
    """Decide about an attempt by the scores of its model calls.

    Each call that counts is decided on by itself, so that rules of tools meet the answer that calls
    them; the most careful decision is taken, and of equals the one on the worst score. A call
    without a score is worse than any.
    """
    for call in calls:
        if call.unheard:  # its text may be the one that comes out, whichever call decides otherwise
            return _failed(policy, call.failure or "", call, route, usage)
    counting = [call for call in calls if join.tag is None or join.tag in call.tags]
    if not counting:
        error = "no model call in the chain was scored"
        if calls and join.tag is not None:
            error = f"no model call in the chain has the tag '{join.tag}'"
        return _failed(policy, error, None, route, usage)
    if join.join == "last":
        counting = counting[-1:]
    return max((_judge_one(policy, call, route, usage) for call in counting), key=_severity)


def may_quote(error: Exception, calls: Sequence[ModelCall]) -> bool:
    """Whether the text of an error may tell an answer: a step failed after a model had answered.

    Failures of guard's own engines and scorers do not quote answers.
    """
    question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError)
    return bool(calls) and (question or not isinstance(error, GuardError))


def judge_failure(policy: Policy, error: str, *, route: str | None, usage: Usage) -> Verdict:
    """Decide about an attempt that failed before its scores were known."""
    return _failed(policy, error, None, route, usage)


def _judge_one(policy: Policy, call: ModelCall, route: str | None, usage: Usage) -> Verdict:
    if call.failure is not None:
        return _failed(policy, call.failure, call, route, usage)
    assert call.scored is not None
    scored = call.scored
    about: dict[str, Any] = {"route": route, "usage": usage, "tools": call.tools, "defects": call.defects}
    decision = decide(policy, p_wrong=scored.p_wrong, ood_score=scored.ood_score, **about)
    return Verdict(decision, call, None)


def _failed(policy: Policy, error: str, call: ModelCall | None, route: str | None, usage: Usage) -> Verdict:
    about: dict[str, Any] = {"tools": call.tools, "defects": call.defects} if call else {}
    return Verdict(decide_error(policy, error=error, route=route, usage=usage, **about), call, error)


def _severity(verdict: Verdict) -> tuple[int, float]:
    p_wrong = verdict.decision.p_wrong
    return SEVERITY[verdict.decision.action], 2.0 if p_wrong is None else p_wrong
