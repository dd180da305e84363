"""One guarded call of a chain: plans each attempt and decides about its result.

The counterpart of `guard.runtime.loop` for chains, whose answers have any type. The state of the call is kept here and
in its `CallState`; the runnable itself has none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.runnables import Runnable

from guard.errors import (
    AbstainedError,
    EscalationError,
    GuardError,
    InputError,
)
from guard.langchain.attempts.attempt_run import AttemptResult
from guard.langchain.attempts.attempt_settings import AttemptSettings
from guard.langchain.attempts.complete_json import IncompleteAnswerError
from guard.langchain.attempts.model_calls import ModelCall, Verdict, judge, judge_failure, may_quote, prompt_text
from guard.langchain.attempts.once_cache import OnceCache
from guard.langchain.chain.chain_rules import ChainRules
from guard.langchain.chain.replies import text_of_output
from guard.langchain.messages import chat_turns, read_reasoning
from guard.langchain.metadata import message_defects
from guard.policy.defects import Defect
from guard.policy.document import Fallback, Retry
from guard.records import Action, Attempt, Escalation, FinishReason, Outcome, Prompt, Sampling
from guard.review.handlers import NOBODY, Delivery
from guard.runtime.call_state import OWN_ENGINE, CallState, without_texts
from guard.runtime.deadline import late
from guard.runtime.stream_monitor import RetractedError, StreamMonitor
from guard.scores import Score, ScoreName


@dataclass(frozen=True, slots=True)
class ChainAttempt:
    """One attempt to run.

    Attributes:
        source: ``model`` for the chain itself, or the name of a fallback.
        runnable: the chain or the fallback.
        settings: settings for the models in it.
        started: start on the clock of `time.monotonic`.
    """

    source: str
    runnable: Runnable[Any, Any]
    settings: AttemptSettings
    started: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class ChainCall:
    """One guarded call.

    Attributes:
        rules: the settings of the guarded chain.
        state: attempts and usage of this call.
        input: the chain's input.
        metadata: metadata of the run, for escalation handlers.
        live: whether the answer streams before it is decided, so that nothing can be retried.
        once_cache: results of steps that run once in this call.
    """

    rules: ChainRules
    state: CallState
    input: Any
    metadata: Mapping[str, Any]
    live: bool = False
    once_cache: OnceCache = field(default_factory=OnceCache)
    _call: ModelCall | None = None
    _result: AttemptResult | None = None
    _prompts: Mapping[str, Prompt] = field(default_factory=dict)

    @property
    def result(self) -> AttemptResult:
        """The result of the last attempt."""
        assert self._result is not None
        return self._result

    # -- one attempt ---------------------------------------------------------------------------

    def next_attempt(self) -> ChainAttempt:
        """Return the attempt to run next: the chain, or what the last decision asks for."""
        state, settings = self.state, self.state.settings
        attempt = AttemptSettings(
            max_tokens=max(1, state.budget.tokens - state.tokens_used),
            deadline=state.deadline,
            once_cache=self.once_cache,
            monitor=self._monitor() if self.live else None,
        )
        if isinstance(settings, Fallback) and settings.to is not None:
            return ChainAttempt(settings.to, self.rules.fallback(settings.to), attempt)
        if isinstance(settings, Retry):
            sampling = settings.sampling(state.usage.retries)
            again = replace(
                attempt, sampling=sampling, instruction=settings.instruction, token_limit=state.retry_tokens or None
            )
            return ChainAttempt(OWN_ENGINE, self.rules.runnable, again)
        return ChainAttempt(OWN_ENGINE, self.rules.runnable, attempt)

    def record_result(self, attempt: ChainAttempt, result: AttemptResult) -> bool:
        """Decide about a result; return whether another attempt follows.

        Raises:
            Exception: an error of the chain that is the caller's: the question was invalid, or no model had answered
                yet, so that the error reveals nothing of an answer.
        """
        self._result, self._prompts = result, attempt.settings.prompts
        known = [call.scored for call in result.calls if call.scored]
        prompt_tokens, tokens = sum(one.prompt_tokens for one in known), sum(one.tokens for one in known)
        # The reader of a live stream has seen the answer, so another one cannot replace it.
        self.state.note_use(prompt_tokens=prompt_tokens, completion_tokens=tokens, last=self.live)
        verdict = self._judge(attempt, result)
        self._call = verdict.call
        scored = verdict.call.scored if verdict.call else None
        return self.state.keep(
            Attempt(
                answer=_answer(result),
                source=attempt.source,
                score=_score(verdict, result.error, self.state.policy.score),
                decision=verdict.decision,
                prompt_tokens=prompt_tokens,
                completion_tokens=tokens,
                seconds=time.monotonic() - attempt.started,
                sampling=scored.sampling if scored else attempt.settings.sampling or Sampling(),
                error=verdict.error,
                finish_reason=_finish_reason(verdict, result),
                reasoning=read_reasoning(result.output) if result.error is None else None,
            )
        )

    def _judge(self, attempt: ChainAttempt, result: AttemptResult) -> Verdict:
        error, calls, join = result.error, result.calls, self.rules.join
        if isinstance(error, RetractedError) and error.score is not None:
            return Verdict(self.state.decide(error.score), next((call for call in calls if call.abandoned), None), None)
        if self.state.late and error is None:
            return self._judge_error(late(attempt.source))
        if isinstance(error, IncompleteAnswerError):
            verdict = judge(self.state, calls, join=join)
            # However good the score, there is no object to accept.
            return self._judge_error(error) if verdict.decision.action is Action.ACCEPT else verdict
        if error is not None and not may_quote(error, calls):
            return self._judge_error(error)
        fallback = attempt.source != OWN_ENGINE
        if fallback and error is None and not any(call.scored or call.unaccounted for call in calls):
            return self._judge_unscored(attempt.source, result)
        return judge(self.state, calls, join=join)

    def _judge_unscored(self, source: str, result: AttemptResult) -> Verdict:
        """Decide about a fallback in which no scored model answered; it is final if it is declared trusted."""
        if self.rules.trusts(source):
            return Verdict(self.state.trusted(_output_defects(result)), None, None)
        why = f"no scored model answered in the fallback '{source}', which is not declared as trusted"
        return judge_failure(self.state, why)

    def _judge_error(self, error: Exception) -> Verdict:
        """Decide that there is no answer, or raise an error that is the caller's."""
        decided = isinstance(error, AbstainedError | EscalationError)  # by a guard inside the chain
        if decided or not isinstance(error, GuardError) or self.state.is_callers(error):
            raise error
        verdict = judge_failure(self.state, str(error))
        if verdict.decision.action is Action.ACCEPT:  # there is nothing to accept
            raise error
        return verdict

    def _monitor(self) -> StreamMonitor | None:
        """Return the monitor of a growing answer if every call counts; which call is last is not known yet."""
        join = self.rules.join
        if join.join != "worst" or join.tag is not None:
            return None
        exhausted = replace(self.state, usage=replace(self.state.usage, exhausted=True))
        return StreamMonitor(lambda score: exhausted.decide(score).action is Action.ACCEPT, exhausted.policy.score)

    # -- the last decision ---------------------------------------------------------------------

    def outcome(self, *, delivery: Delivery = NOBODY) -> Outcome:
        """Return the outcome. It contains no rejected text: that goes to escalation handlers only."""
        state = self.state
        shown = [without_texts(attempt) for attempt in state.attempts]
        if state.released:
            shown[-1] = state.attempts[-1]
        return state.outcome(attempts=shown, delivery=delivery)

    def escalation(self) -> Escalation:
        """Return the case for escalation handlers, with the rejected answer."""
        prompt = self._prompt()
        return self.state.escalation(
            question=self.input if isinstance(self.input, str) else prompt.question,
            prompt=prompt,
            model=self._call.scored.model if self._call and self._call.scored else "",
            metadata=dict(self.metadata),
        )

    def _prompt(self) -> Prompt:
        """Return the prompt of the deciding model, or the chain's input if no model decided."""
        if self._call is None:
            return Prompt.raw(text_of_output(self.input))
        inputs = self._call.inputs
        if not all(isinstance(message, BaseMessage) for message in inputs):
            return Prompt.raw("\n".join(map(str, inputs)))
        if prompt_text(inputs) in self._prompts:
            return self._prompts[prompt_text(inputs)]
        try:
            return Prompt.chat(chat_turns(inputs))
        except InputError:  # images and files: handlers get a description
            return Prompt.raw(get_buffer_string(list(inputs)))

    def event(self) -> dict[str, Any]:
        """Return the last decision as callbacks receive it; it contains no text of an answer."""
        state = self.state
        last, decision = state.attempts[-1], state.decision
        return {
            "decision_id": state.decision_id,
            "attempt": len(state.attempts),
            "source": last.source,
            "action": decision.action.value,
            "rule": decision.rule,
            "reason": decision.reason,
            "p_wrong": decision.p_wrong,
            "policy": state.policy.name,
            "route": state.route,
            "mode": state.policy.mode,
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": last.completion_tokens,
            "seconds": last.seconds,
            "finish_reason": last.finish_reason,
            "error": last.error,
        }


def _answer(result: AttemptResult) -> str | None:
    """Return the output as text; for a stopped live answer, the text that was shown."""
    was_stopped = isinstance(result.error, RetractedError) and bool(result.chunks)
    return text_of_output(result.output) if result.error is None or was_stopped else None


def _output_defects(result: AttemptResult) -> tuple[Defect, ...]:
    """Return the defects of an answer that no scored model gave."""
    truncated: tuple[Defect, ...] = ()
    if any("truncated" in call.defects for call in result.calls):
        truncated = ("truncated",)
    if isinstance(result.output, BaseMessage):
        return message_defects(result.output) or truncated
    blank = isinstance(result.output, str) and not result.output.strip()
    return (*truncated, "empty") if blank else truncated


def _finish_reason(verdict: Verdict, result: AttemptResult) -> FinishReason | None:
    """Return how the answer ended that was decided about."""
    if verdict.call is not None:
        return verdict.call.finish_reason
    return result.calls[-1].finish_reason if result.calls and result.error is None else None


def _score(verdict: Verdict, error: Exception | None, name: ScoreName) -> Score | None:
    """Return the score of this name that the decision rests on."""
    if isinstance(error, RetractedError):
        return error.score
    scored = verdict.call.scored if verdict.call else None
    return None if verdict.decision.p_wrong is None or scored is None else scored.deciding(name)
