"""One guarded call of an engine: generate, score, decide, until the policy is satisfied; then act.

`Call.steps` is the whole call, read from top to bottom. Decisions are pure (`guard.policy.policy`); a `CallState` holds
the state of the call.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from guard.engines import witness
from guard.engines.asked import RequestEngine
from guard.engines.callback_errors import is_from_signal_handler
from guard.engines.protocols import Engine
from guard.engines.tokenizing import TokenizingEngine
from guard.engines.tool_calls import called_names, offered_names
from guard.engines.tool_support import possible_forms
from guard.errors import ChatTemplateError, InputError
from guard.policy.defects import Defect, find_defects
from guard.policy.document import Fallback, Retry
from guard.policy.truncation import Truncation
from guard.records import Attempt, Decision, Escalation, FinishReason, Generation, Limits, Outcome, Prompt, Sampling
from guard.review.handlers import NOBODY
from guard.runtime.call_state import CallState, describe_error
from guard.runtime.deadline import call_step
from guard.runtime.decision_log import log_decision
from guard.runtime.early import EarlyMonitor, EarlyStop, StoppableAnswer, as_stopped, watched_steps
from guard.runtime.monitored import audit_steps, watch_step
from guard.runtime.resources import Resources, escalation_step
from guard.runtime.sources import FallbackFunction, Source, generation_step
from guard.runtime.steps import Step, Steps
from guard.scores import Score
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an attempt: a generation with the signature of its layers, or a callable's text.

    Attributes:
        text, sampling, generation, observer: of the answer.
        early: where it was stopped, or in shadow mode would have been.
        asked: tokens of the prompt of an answer that was stopped.
    """

    text: str
    sampling: Sampling
    generation: Generation | None = None
    observer: SignatureObserver | None = None
    early: EarlyStop | None = None
    asked: int = 0

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the generation ended; None for a callable's text."""
        if self.generation is None:
            return "early" if self.early else None
        return self.generation.finish_reason

    @property
    def defects(self) -> tuple[Defect, ...]:
        """Defects of the answer's form; one that shadow mode would have stopped counts as stopped."""
        return find_defects(self.text, "early" if self.early else self.finish_reason)

    @property
    def prompt_tokens(self) -> int:
        return self.generation.prompt_tokens if self.generation else self.asked

    @property
    def completion_tokens(self) -> int:
        if self.generation is None:
            return self.early.tokens if self.early else 0
        return self.generation.completion_tokens


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """One attempt to run: an engine with a scorer, or a callable."""

    source: Source | None
    prompt: Prompt
    sampling: Sampling
    limits: Limits
    function: tuple[str, FallbackFunction] | None = None
    cancel: threading.Event | None = None
    early: EarlyMonitor | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Name of the answer's source."""
        return self.source.name if self.source else cast(tuple[str, FallbackFunction], self.function)[0]

    def steps(self) -> Steps[Result]:
        """Get the answer."""
        if self.source is None:
            return self._answered((yield call_step(self._function(), self.prompt, self._seconds, name=self.name)))
        observer = self.source.observer()
        options: dict[str, Any] = {"sampling": self.sampling, "limits": self.limits, "observer": observer}
        if self.early is not None and self.source.scorer is not None:
            return (yield from self._watched(self.early.for_answer(self.source.scorer, observer), options))
        step = generation_step(self.source.engine, self.prompt, cancel=self.cancel, **options)
        generation: Generation = yield step
        return Result(generation.text, generation.sampling, generation, observer)

    def _watched(self, watched: StoppableAnswer, options: dict[str, Any]) -> Steps[Result]:
        """Get an answer that is stopped where it is likely to be wrong."""
        engine, observer = cast(RequestEngine, cast(Source, self.source).engine), options["observer"]
        stop: dict[str, Any] = {} if self.cancel is None else {"cancel": self.cancel}
        generation = yield from watched_steps(engine, self.prompt, watched, **stop, **options)
        if generation is not None:
            return Result(generation.text, generation.sampling, generation, observer, watched.stop)
        asked: int = yield self.prompt_tokens_step()
        return Result("".join(watched.text), self.sampling, None, observer, watched.stop, asked)

    def prompt_tokens_step(self) -> Step:
        """Count the prompt's tokens, which an engine reports with complete answers only; 0 without a vocabulary."""
        engine = self.source.engine if self.source is not None else None
        count = partial(_count_tokens, engine, self.prompt)
        return Step(count, partial(asyncio.to_thread, count))

    def score(self, result: Result) -> Score | None:
        """Return the score of a result; None for a callable's answer, which is final."""
        if self.source is None:
            return None
        if result.generation is None:
            scorer = cast(Scorer, self.source.scorer)
            return as_stopped(cast(EarlyStop, result.early), scorer, self.prompt, result.sampling)
        assert result.observer is not None
        return self.source.score(result.generation, result.observer, self.prompt)

    def called_tools(self, text: str) -> tuple[str, ...]:
        """Return the tools that an answer calls, or seems to: the strictest of their rules decides.

        Read more freely than by those who carry calls out, so that no way to write one escapes a tool's rule. Where
        the model writes calls in a form that guard does not read, every tool counts as called.
        """
        if not self.prompt.tools or self.source is None:
            return ()
        try:
            forms = possible_forms(self.source.engine, self.name, self.prompt)
        except ChatTemplateError:
            return offered_names(self.prompt.tools)
        return tuple(dict.fromkeys(name for form in forms for name in called_names(text, self.prompt.tools, form)))

    @property
    def _seconds(self) -> float:
        """Seconds left of the budget, for a callable."""
        assert self.limits.timeout_s is not None
        return self.limits.timeout_s

    def _function(self) -> FallbackFunction:
        assert self.function is not None
        return self.function[1]

    def _answered(self, text: object) -> Result:
        if not isinstance(text, str):
            raise InputError(f"The fallback '{self.name}' must give a str, got {type(text).__name__}")
        return Result(text, self.sampling)


@dataclass(slots=True)
class Call:
    """One guarded call.

    Attributes:
        resources: engines and handlers.
        prompt, sampling, limits, metadata: what is asked.
        state: of this call.
        cancel: set from another thread to stop.
        live: whether the answer is shown before it is decided, so that no other attempt can replace it.
    """

    resources: Resources
    prompt: Prompt
    sampling: Sampling
    limits: Limits
    metadata: dict[str, Any]
    state: CallState
    cancel: threading.Event | None = None
    live: bool = False

    def steps(self) -> Steps[Outcome]:
        """Make attempts until the policy asks for no other, then carry out its last decision."""
        yield from watch_step(self.resources.monitor, self.state)
        yield from self.attempts()
        yield from self.record()
        self.state.check_abstention()
        return (yield from self._deliver())

    def record(self) -> Steps[None]:
        """Write the decision down before it is carried out, and draw an accepted answer for an audit.

        Raises:
            StoreError: it cannot be written; the caller gets no outcome.
        """
        yield from log_decision(self.resources.audit_log, self.state, self._case)
        yield from audit_steps(self.resources.monitor, self.state, self._case)

    def attempts(self) -> Steps[None]:
        """Make attempts until the policy asks for no other; the budget bounds them."""
        for _ in range(self.state.budget.attempts):
            plan = replace(self._plan(), cancel=self.cancel, early=self._early())
            try:
                result = yield from plan.steps()
            except Exception as error:  # noqa: BLE001 - becomes the policy's action, or is raised there
                another = self._fail(plan, error)
            else:
                another = self._score_and_decide(plan, result)
            if not another:
                return

    # -- one attempt ---------------------------------------------------------------------------

    def _early(self) -> EarlyMonitor | None:
        """Return what stops answers that are likely to be wrong; None if the policy stops none."""
        rule = self.state.policy.plan(self.state.route).early
        return None if rule is None else EarlyMonitor(rule, self.state.policy.score, stops=not self.state.shadow)

    def _plan(self) -> AttemptPlan:
        """Return the next attempt: by the model, or as the last decision says."""
        settings, limits, resources = self.state.settings, self._limits_left(), self.resources
        if isinstance(settings, Fallback) and settings.to is not None:
            target = resources.fallbacks[settings.to]
            if isinstance(target, Source):
                return AttemptPlan(target, target.own_prompt(self.prompt), self.sampling, limits)
            return AttemptPlan(None, self.prompt, self.sampling, limits, function=(settings.to, target))
        if isinstance(settings, Retry):
            instruction = settings.instruction
            prompt = self.prompt.with_instruction(instruction) if instruction else self.prompt
            return AttemptPlan(resources.own, prompt, settings.sampling(self.state.usage.retries), limits)
        return AttemptPlan(resources.own, self.prompt, self.sampling, limits)

    @property
    def _wanted(self) -> int:
        """Token limit of the attempt without the budget; a retry has no less room than the attempts before it."""
        own, state = self.limits.max_tokens, self.state
        return max(own, state.retry_tokens) if isinstance(state.settings, Retry) else own

    def _limits_left(self) -> Limits:
        """Return the limits of the next attempt, reduced to the remaining budget; shadow mode changes nothing."""
        state = self.state
        if state.shadow:
            return self.limits
        # The next attempt reads about the same prompt again.
        prompt_tokens = state.attempts[-1].prompt_tokens if state.attempts else 0
        tokens = max(1, min(self._wanted, state.budget.tokens - state.tokens_used - prompt_tokens))
        seconds = max(0.001, state.deadline - time.monotonic())
        return replace(self.limits, max_tokens=tokens, timeout_s=min(seconds, self.limits.timeout_s or seconds))

    def _score_and_decide(self, plan: AttemptPlan, result: Result) -> bool:
        """Score a result and decide about it; return whether another attempt follows."""
        if self.state.shadow:  # not decided here: a guarded call around this one must learn of the answer
            witness.begin(None).say(result.text)
        used = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
        self.state.note_use(**used, last=self.live, truncation=self._truncation(plan, result))
        error = None
        try:
            score = self._scored(plan, result)
        except Exception as failure:  # fail closed: the policy decides
            if is_from_signal_handler(failure):
                raise
            score, error = None, describe_error(failure)
        return self._keep(plan, result, score, self._decide(plan, result, score, error), error)

    def _truncation(self, plan: AttemptPlan, result: Result) -> Truncation | None:
        """Return where an answer was cut, before it is among the attempts; None if it is whole."""
        if plan.source is None or result.finish_reason != "length":
            return None
        state, asked, tokens = self.state, result.prompt_tokens, result.completion_tokens
        # A retry reads the prompt again.
        left = state.budget.tokens - state.tokens_used - 2 * asked - tokens
        return Truncation(
            tokens,
            plan.limits.max_tokens,
            self._wanted,
            min(left, plan.source.engine.model.context_tokens - asked),
            repeats=plan.source is self.resources.own and plan.prompt is self.prompt and result.sampling.is_greedy,
        )

    def _scored(self, plan: AttemptPlan, result: Result) -> Score | None:
        """Return the score that the policy decides on."""
        score = plan.score(result)
        return score and score.deciding(self.state.policy.score)

    def _fail(self, plan: AttemptPlan, error: Exception) -> bool:
        """Decide that there is no answer, or raise an error that is the caller's."""
        self.state.note_use(last=self.live)
        return self._keep(plan, None, None, self.state.decide_failure(error), describe_error(error))

    def _decide(self, plan: AttemptPlan, result: Result, score: Score | None, error: str | None) -> Decision:
        state, defects = self.state, result.defects
        if score is None and error is None:  # a function has answered
            return state.trusted(defects)
        tools = plan.called_tools(result.text) if state.policy.tools else ()
        if error is not None:
            return state.decide_error(error, tools=tools, defects=defects)
        assert score is not None
        has_form = bool(plan.prompt.tools or plan.prompt.response_format)
        decision = state.decide(score, tools=tools, defects=defects, has_form=has_form)
        if result.early is None or plan.early is None:
            return decision
        reason = f"{decision.reason}: {result.early.reason(plan.early.rule.above)}"
        return replace(decision, reason=reason, p_wrong=result.early.score.p_wrong)

    def _keep(
        self, plan: AttemptPlan, result: Result | None, score: Score | None, decision: Decision, error: str | None
    ) -> bool:
        return self.state.keep(
            Attempt(
                answer=result.text if result else None,
                source=plan.name,
                score=score,
                decision=decision,
                prompt_tokens=result.prompt_tokens if result else 0,
                completion_tokens=result.completion_tokens if result else 0,
                seconds=time.monotonic() - plan.started,
                sampling=result.sampling if result else plan.sampling,
                error=error,
                finish_reason=result.finish_reason if result else None,
                reasoning=result.generation.reasoning if result and result.generation else None,
                generation=result.generation if result else None,
            )
        )

    # -- the last decision ---------------------------------------------------------------------

    def _deliver(self) -> Steps[Outcome]:
        """Hand an escalated case to its handlers, and return the outcome."""
        resources, delivery = self.resources, NOBODY
        if to := self.state.escalate_to:
            delivery = yield escalation_step(self._case(), resources.handlers, to, resources.handler_timeout_s)
        return self.state.outcome(delivery=delivery)

    def _case(self) -> Escalation:
        scorer = self.resources.own.scorer
        return self.state.escalation(
            question=self.prompt.question,
            prompt=self.prompt,
            model=self.resources.own.engine.model.name,
            metadata=self.metadata,
            scorer=f"sha256:{scorer.sha256}" if scorer else None,
        )


def _count_tokens(engine: Engine | None, prompt: Prompt) -> int:
    return len(engine.encode(prompt)) if isinstance(engine, TokenizingEngine) else 0
