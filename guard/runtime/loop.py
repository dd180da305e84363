"""The loop of one guarded call: generate, sign, score, decide; bounded in attempts, tokens and time.

Decisions are pure (`guard.policy.policy`); a `Call` plans each attempt, settles it, and in the end carries
out the last decision. The call's state is in its `CallState`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import tenacity

from guard.engines.protocols import Engine
from guard.errors import (
    CancelledError,
    CaptureError,
    ChatTemplateError,
    ForkError,
    InputError,
    PromptTooLongError,
    ScorerError,
)
from guard.policy.defects import Defect, defects_of
from guard.policy.document import Fallback, Retry
from guard.policy.policy import decide, decide_error
from guard.records import (
    Action,
    Attempt,
    Decision,
    Escalation,
    FinishReason,
    Generation,
    Limits,
    Outcome,
    Prompt,
    Sampling,
    Score,
)
from guard.review.handlers import aescalate, escalate
from guard.runtime.call_state import OWN_ENGINE, CallState, describe_error
from guard.runtime.deadline import acall_within, call_within
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

if TYPE_CHECKING:
    from guard.runtime.guard import Guard

#: A fallback that is no engine: it answers a prompt by its own means, and its answer is final.
#: May be a coroutine function.
FallbackFunction = Callable[[Prompt], Any]


@dataclass(frozen=True, slots=True)
class Source:
    """An engine with the scorer that fits it. Without a scorer its answers count as failed scoring."""

    name: str
    engine: Engine
    scorer: Scorer | None

    @property
    def template_options(self) -> Mapping[str, Any]:
        """Those that the scorer was calibrated with."""
        return self.scorer.artefact.prompting.template_options if self.scorer else {}

    def own_prompt(self, prompt: Prompt) -> Prompt:
        """Another model's prompt for this one: its chat template has options of its own."""
        return replace(prompt, template_options=self.template_options)


def score_of(generation: Generation, observer: SignatureObserver, scorer: Scorer, prompt: Prompt) -> Score:
    """Score the answer to a prompt, whose activations an observer has seen.

    The score of a sampled answer is uncalibrated, and that of one under other template options than the scorer's.

    Raises:
        CaptureError: the activations are missing or not finite.
    """
    if generation.capture_error:
        raise CaptureError("The layers were not recorded", why=generation.capture_error)
    score = scorer.score(generation.signals(observer.signature()))
    same_options = prompt.messages is None or prompt.template_options == scorer.artefact.prompting.template_options
    return score if generation.sampling.is_greedy and same_options else replace(score, calibrated=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What an attempt gave: a generation with what its layers said, or a callable's text."""

    text: str
    sampling: Sampling
    generation: Generation | None = None
    observer: SignatureObserver | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the generation ended; None of a callable's text."""
        return self.generation.finish_reason if self.generation else None

    @property
    def defects(self) -> tuple[Defect, ...]:
        """What is wrong with the form of the answer."""
        return defects_of(self.text, self.finish_reason)

    @property
    def prompt_tokens(self) -> int:
        return self.generation.prompt_tokens if self.generation else 0

    @property
    def completion_tokens(self) -> int:
        return self.generation.completion_tokens if self.generation else 0


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """One attempt to be run: an engine with a scorer, or a callable that answers by itself."""

    source: Source | None
    prompt: Prompt
    sampling: Sampling
    limits: Limits
    function: tuple[str, FallbackFunction] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Where the answer comes from."""
        return self.source.name if self.source else cast(tuple[str, FallbackFunction], self.function)[0]

    def run(self) -> Result:
        """Get the answer."""
        if self.source is None:
            return self._answered(call_within(self._function(), self.prompt, self._seconds, name=self.name))
        observer = self._observer()
        generation = self.source.engine.generate(
            self.prompt, sampling=self.sampling, limits=self.limits, observer=observer
        )
        return Result(generation.text, generation.sampling, generation, observer)

    async def arun(self) -> Result:
        """`run` without blocking the event loop."""
        if self.source is None:
            return self._answered(await acall_within(self._function(), self.prompt, self._seconds, name=self.name))
        observer = self._observer()
        generation = await self.source.engine.agenerate(
            self.prompt, sampling=self.sampling, limits=self.limits, observer=observer
        )
        return Result(generation.text, generation.sampling, generation, observer)

    def score(self, result: Result) -> Score | None:
        """The score of what came back; None for a callable's answer, which is final."""
        if self.source is None:
            return None
        if self.source.scorer is None:
            raise ScorerError(
                f"The fallback '{self.name}' has no scorer", fix="Fit one with guard calibrate and declare it"
            )
        assert result.generation is not None
        assert result.observer is not None
        return score_of(result.generation, result.observer, self.source.scorer, self.prompt)

    def _observer(self) -> SignatureObserver:
        assert self.source is not None
        scorer = self.source.scorer
        return SignatureObserver(temperatures=scorer.schema.temperatures if scorer else (1.0,))

    @property
    def _seconds(self) -> float:
        """What is left of the budget; a callable only answers where there is one."""
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
    """One guarded call: plans each attempt, settles it, and carries out the last decision."""

    guard: Guard
    prompt: Prompt
    sampling: Sampling
    limits: Limits
    metadata: dict[str, Any]
    state: CallState

    @property
    def bounds(self) -> dict[str, Any]:
        """For tenacity: go on while the policy wants another attempt, within the budget."""
        return {
            "retry": tenacity.retry_if_result(lambda goes_on: bool(goes_on)),
            "stop": tenacity.stop_after_attempt(self.state.budget.attempts),
            "wait": tenacity.wait_none(),
            "retry_error_callback": lambda _: None,
        }

    # -- one attempt ---------------------------------------------------------------------------

    def attempt(self) -> bool:
        """Generate, sign, score, decide; whether to go on."""
        plan = self._plan()
        try:
            result = plan.run()
        except Exception as error:  # noqa: BLE001 - becomes the policy's action, or is raised there
            return self._fail(plan, error)
        return self._settle(plan, result)

    async def aattempt(self) -> bool:
        """`attempt` without blocking the event loop."""
        plan = self._plan()
        try:
            result = await plan.arun()
        except Exception as error:  # noqa: BLE001 - as above
            return self._fail(plan, error)
        return self._settle(plan, result)

    def _plan(self) -> AttemptPlan:
        """What to run next: the model, or what the last decision says."""
        settings, limits = self.state.settings, self._limits_left()
        if isinstance(settings, Fallback) and settings.to is not None:
            target = self.guard.sources[settings.to]
            if isinstance(target, Source):
                return AttemptPlan(target, target.own_prompt(self.prompt), self.sampling, limits)
            return AttemptPlan(None, self.prompt, self.sampling, limits, function=(settings.to, target))
        own = Source(OWN_ENGINE, self.guard.engine, self.guard.scorer)
        if isinstance(settings, Retry):
            instruction = settings.instruction
            prompt = self.prompt.with_instruction(instruction) if instruction else self.prompt
            limits = self._limits_left(settings.max_tokens)
            return AttemptPlan(own, prompt, settings.sampling(self.state.usage.retries), limits)
        return AttemptPlan(own, self.prompt, self.sampling, limits)

    def _limits_left(self, max_tokens: int | None = None) -> Limits:
        """The call's limits, within what is left of the policy's budget; shadow mode changes nothing.

        Args:
            max_tokens: of the attempt, in place of the call's.
        """
        state = self.state
        if state.shadow:
            return self.limits
        # The next attempt reads about the same prompt again.
        prompt_tokens = state.attempts[-1].prompt_tokens if state.attempts else 0
        wanted = max_tokens or self.limits.max_tokens
        tokens = max(1, min(wanted, state.budget.tokens - state.tokens_used - prompt_tokens))
        seconds = max(0.001, state.deadline - time.monotonic())
        return replace(self.limits, max_tokens=tokens, timeout_s=min(seconds, self.limits.timeout_s or seconds))

    def _settle(self, plan: AttemptPlan, result: Result) -> bool:
        """Score what came back and decide about it."""
        self.state.note_use(prompt_tokens=result.prompt_tokens, completion_tokens=result.completion_tokens)
        error = None
        try:
            score = plan.score(result)
        except Exception as failure:  # noqa: BLE001 - fail closed: the policy says what happens
            score, error = None, describe_error(failure)
        return self._keep(plan, result, score, self._decide(score, error, result.defects), error)

    def _fail(self, plan: AttemptPlan, error: Exception) -> bool:
        """There is no answer: bad questions are the caller's, the rest is the policy's.

        Once the model has answered, the question was good; what fails then is the policy's too.
        """
        state = self.state
        question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError) and not state.attempts
        if question or isinstance(error, CancelledError | ForkError) or state.shadow:
            raise error
        state.note_use()
        decision = self._decide(None, describe_error(error), ())
        if decision.action is Action.ACCEPT:  # there is nothing to accept
            raise error
        return self._keep(plan, None, None, decision, describe_error(error))

    def _decide(self, score: Score | None, error: str | None, defects: tuple[Defect, ...]) -> Decision:
        state = self.state
        context: dict[str, Any] = {"route": state.route, "usage": state.usage, "defects": defects}
        if error is not None:
            return decide_error(state.policy, error=error, **context)
        if score is None:  # a callable has answered
            return state.trusted(defects)
        return decide(state.policy, p_wrong=score.p_wrong, ood_score=score.ood_score, **context)

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
            )
        )

    # -- the last decision ---------------------------------------------------------------------

    def finish(self) -> Outcome:
        """Carry out the last decision."""
        state, guard = self.state, self.guard
        state.check_abstention()
        if not state.escalate_to:
            return state.outcome()
        delivery = escalate(
            self._escalation(), handlers=guard.handlers, to=state.escalate_to, timeout_s=guard.handler_timeout_s
        )
        return state.outcome(delivery=delivery)

    async def afinish(self) -> Outcome:
        """`finish` without blocking the event loop."""
        state, guard = self.state, self.guard
        state.check_abstention()
        if not state.escalate_to:
            return state.outcome()
        delivery = await aescalate(
            self._escalation(), handlers=guard.handlers, to=state.escalate_to, timeout_s=guard.handler_timeout_s
        )
        return state.outcome(delivery=delivery)

    def _escalation(self) -> Escalation:
        return self.state.escalation(
            question=self.prompt.question,
            prompt=self.prompt,
            model=self.guard.engine.model.name,
            metadata=self.metadata,
        )
