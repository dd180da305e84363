"""One guarded call of a chain: plans each attempt, settles it, and carries out the last decision.

The counterpart of `guard.runtime.loop` for chains, whose answers are whatever the chain gives. The call's state
is here and in its `CallState`; the runnable itself holds none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.runnables import Runnable

from guard.errors import (
    AbstainedError,
    CancelledError,
    ChatTemplateError,
    EscalationError,
    ForkError,
    GuardError,
    InputError,
    PromptTooLongError,
)
from guard.langchain.attempts.attempt_settings import AttemptSettings, Memory
from guard.langchain.attempts.buffered_run import Ran
from guard.langchain.attempts.complete_json import CutAnswerError
from guard.langchain.attempts.model_calls import ModelCall, Verdict, asked_text, judge, judge_failure, may_quote
from guard.langchain.attempts.trusted_fallbacks import trusted_names
from guard.langchain.chain.replies import text_of_output
from guard.langchain.chat.stream_monitor import RetractedError, Watch
from guard.langchain.messages import chat_turns, reasoning_of
from guard.langchain.metadata import message_defects
from guard.policy.defects import Defect
from guard.policy.document import Fallback, Retry
from guard.policy.policy import decide
from guard.records import Action, Attempt, Escalation, FinishReason, Outcome, Prompt, Sampling, Score
from guard.review.handlers import NOBODY, Delivery
from guard.runtime.call_state import OWN_ENGINE, CallState
from guard.runtime.deadline import late

if TYPE_CHECKING:
    from guard.langchain.chain.guarded_runnable import GuardedRunnable


@dataclass(frozen=True, slots=True)
class Plan:
    """One attempt to be run.

    Attributes:
        source: ``model`` for the chain itself, or the name of a fallback.
        runnable: the chain or the fallback.
        settings: for the models inside.
        started: on the clock of `time.monotonic`.
    """

    source: str
    runnable: Runnable[Any, Any]
    settings: AttemptSettings
    started: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class ChainCall:
    """The state of one guarded call.

    Attributes:
        guarded: what was called.
        state: of this call.
        asked: the chain's input.
        metadata: of the run, for those who take an escalation.
        live: whether the answer streams before it is decided on, so that nothing can be tried again.
    """

    guarded: GuardedRunnable[Any, Any]
    state: CallState
    asked: Any
    metadata: Mapping[str, Any]
    live: bool = False
    memory: Memory = field(default_factory=Memory)
    _call: ModelCall | None = None
    _ran: Ran | None = None
    _prompts: Mapping[str, Prompt] = field(default_factory=dict)

    @property
    def ran(self) -> Ran:
        """The last attempt."""
        assert self._ran is not None
        return self._ran

    # -- one attempt ---------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What to run next: the chain, or what the last decision says."""
        state, settings = self.state, self.state.settings
        attempt = AttemptSettings(
            max_tokens=max(1, state.budget.tokens - state.tokens_used),
            deadline=state.deadline,
            memory=self.memory,
            watch=self._watch() if self.live else None,
        )
        if isinstance(settings, Fallback) and settings.to is not None:
            return Plan(settings.to, self.guarded.fallback(settings.to), attempt)
        if isinstance(settings, Retry):
            sampling = settings.sampling(state.usage.retries)
            again = replace(
                attempt, sampling=sampling, instruction=settings.instruction, token_limit=settings.max_tokens
            )
            return Plan(OWN_ENGINE, self.guarded.runnable, again)
        return Plan(OWN_ENGINE, self.guarded.runnable, attempt)

    def settle(self, plan: Plan, ran: Ran) -> bool:
        """Decide about what came back; whether to go on.

        Raises:
            Exception: the chain's own error, where it is the caller's: the question was bad, or it came
                before any model had answered, so that it can tell nothing of an answer.
        """
        self._ran, self._prompts = ran, plan.settings.prompts
        known = [call.scored for call in ran.calls if call.scored]
        prompt_tokens, tokens = sum(one.prompt_tokens for one in known), sum(one.tokens for one in known)
        # The reader of a live answer has seen it; another one cannot take its place.
        self.state.note_use(prompt_tokens=prompt_tokens, completion_tokens=tokens, last=self.live)
        verdict = self._judge(plan, ran)
        self._call = verdict.call
        scored = verdict.call.scored if verdict.call else None
        return self.state.keep(
            Attempt(
                answer=_answer(ran),
                source=plan.source,
                score=_score(verdict, ran.error),
                decision=verdict.decision,
                prompt_tokens=prompt_tokens,
                completion_tokens=tokens,
                seconds=time.monotonic() - plan.started,
                sampling=scored.sampling if scored else plan.settings.sampling or Sampling(),
                error=verdict.error,
                finish_reason=_finish_reason(verdict, ran),
                reasoning=reasoning_of(ran.output) if ran.error is None else None,
            )
        )

    def _judge(self, plan: Plan, ran: Ran) -> Verdict:
        policy, route, usage = self.state.policy, self.state.route, self.state.usage
        if isinstance(ran.error, RetractedError) and ran.error.score is not None:
            score = ran.error.score
            decision = decide(policy, p_wrong=score.p_wrong, ood_score=score.ood_score, route=route, usage=usage)
            return Verdict(decision, next((call for call in ran.calls if call.cut), None), None)
        if self.state.late and not self.live and ran.error is None:
            return self._judge_error(late(plan.source))
        if isinstance(ran.error, CutAnswerError):
            verdict = judge(policy, ran.calls, join=self.guarded.joined(policy), route=route, usage=usage)
            # However good its score, there is no object to accept.
            return self._judge_error(ran.error) if verdict.decision.action is Action.ACCEPT else verdict
        if ran.error is not None and not may_quote(ran.error, ran.calls):
            return self._judge_error(ran.error)
        if plan.source != OWN_ENGINE and ran.error is None and not any(c.scored or c.unheard for c in ran.calls):
            return self._judge_unscored(plan.source, ran)
        return judge(policy, ran.calls, join=self.guarded.joined(policy), route=route, usage=usage)

    def _judge_unscored(self, source: str, ran: Ran) -> Verdict:
        """A fallback in which no model of guard's has answered is final where it is declared so."""
        if source in trusted_names(self.guarded.fallbacks):
            return Verdict(self.state.trusted(_output_defects(ran)), None, None)
        why = f"no scored model answered in the fallback '{source}', which is not declared as trusted"
        return judge_failure(self.state.policy, why, route=self.state.route, usage=self.state.usage)

    def _judge_error(self, error: Exception) -> Verdict:
        """There is no answer: bad questions and the chain's own errors are the caller's, the rest the policy's."""
        question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError) and not self.state.attempts
        settled = isinstance(error, CancelledError | ForkError | AbstainedError | EscalationError)
        if question or settled or not isinstance(error, GuardError) or self.state.shadow:
            raise error
        verdict = judge_failure(self.state.policy, str(error), route=self.state.route, usage=self.state.usage)
        if verdict.decision.action is Action.ACCEPT:  # there is nothing to accept
            raise error
        return verdict

    def _watch(self) -> Watch | None:
        """A look at the growing answer, where every model call counts. Which one is last is not known yet."""
        policy, route = self.state.policy, self.state.route
        join = self.guarded.joined(policy)
        if join.join != "worst" or join.tag is not None:
            return None
        usage = replace(self.state.usage, exhausted=True)

        def accepts(score: Score) -> bool:
            decision = decide(policy, p_wrong=score.p_wrong, ood_score=score.ood_score, route=route, usage=usage)
            return decision.action is Action.ACCEPT

        return Watch(accepts)

    # -- the last decision ---------------------------------------------------------------------

    def outcome(self, *, delivery: Delivery = NOBODY) -> Outcome:
        """What was done. Texts that were not accepted are not in it: they go to people only."""
        state = self.state
        shown = [replace(attempt, answer=None, reasoning=None) for attempt in state.attempts]
        if state.released:
            shown[-1] = state.attempts[-1]
        return state.outcome(attempts=shown, delivery=delivery)

    def escalation(self) -> Escalation:
        """The case for a person, with the answer that was not accepted."""
        prompt = self._prompt()
        return self.state.escalation(
            question=self.asked if isinstance(self.asked, str) else prompt.question,
            prompt=prompt,
            model=self._call.scored.model if self._call and self._call.scored else "",
            metadata=dict(self.metadata),
        )

    def _prompt(self) -> Prompt:
        """What the deciding model was asked, or the chain's input where no model was."""
        if self._call is None:
            return Prompt.raw(text_of_output(self.asked))
        asked = self._call.asked
        if all(isinstance(message, BaseMessage) for message in asked) and asked_text(asked) in self._prompts:
            return self._prompts[asked_text(asked)]
        if not all(isinstance(message, BaseMessage) for message in asked):
            return Prompt.raw("\n".join(map(str, asked)))
        try:
            return Prompt.chat(chat_turns(asked))
        except InputError:  # images, files: people get a description of them
            return Prompt.raw(get_buffer_string(list(asked)))

    def event(self) -> dict[str, Any]:
        """The last decision as listeners get it; it holds no text of an answer."""
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


def _answer(ran: Ran) -> str | None:
    """The output as text; of a live answer that was stopped, what was shown of it."""
    was_stopped = isinstance(ran.error, RetractedError) and bool(ran.chunks)
    return text_of_output(ran.output) if ran.error is None or was_stopped else None


def _output_defects(ran: Ran) -> tuple[Defect, ...]:
    """What is wrong with the form of an answer that no model of guard's gave."""
    cut: tuple[Defect, ...] = ("truncated",) if any("truncated" in call.defects for call in ran.calls) else ()
    if isinstance(ran.output, BaseMessage):
        return message_defects(ran.output) or cut
    blank = isinstance(ran.output, str) and not ran.output.strip()
    return (*cut, "empty") if blank else cut


def _finish_reason(verdict: Verdict, ran: Ran) -> FinishReason | None:
    """How the answer ended that was decided on."""
    if verdict.call is not None:
        return verdict.call.finish_reason
    return ran.calls[-1].finish_reason if ran.calls and ran.error is None else None


def _score(verdict: Verdict, error: Exception | None) -> Score | None:
    """The score that the decision was made on."""
    p_wrong = verdict.decision.p_wrong
    if isinstance(error, RetractedError):
        return error.score
    scored = verdict.call.scored if verdict.call else None
    if p_wrong is None or scored is None:
        return None
    seconds = scored.score_seconds or 0.0
    return Score(p_wrong, scored.calibrated, scored.baseline_p_wrong, seconds, scored.ood_score)
