"""The loop of one guarded call: generate, sign, score, decide; bounded in attempts, tokens and time.

Decisions are pure (`guard.policy`); a `Call` plans each attempt, settles it, and in the end carries
out the last decision. It is the only place that holds a call's state.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import tenacity

from guard.backends.base import Engine
from guard.errors import (
    AbstainedError,
    CancelledError,
    CaptureError,
    ChatTemplateError,
    GuardError,
    InputError,
    PromptTooLongError,
    ScorerError,
)
from guard.escalation import aescalate, escalate
from guard.policy import NOTHING_USED, Used, decide, decide_error
from guard.policy_document import Abstain, Budget, Escalate, Fallback, Retry
from guard.records import (
    Action,
    Attempt,
    Decision,
    Escalation,
    Generation,
    Limits,
    Outcome,
    Prompt,
    Sampling,
    Score,
    Signals,
)
from guard.scorer import Scorer
from guard.signature import SignatureObserver

if TYPE_CHECKING:
    from guard.guard import Guard

#: A fallback that is no engine: it answers a prompt by its own means, and its answer is final.
#: May be a coroutine function.
Answerer = Callable[[Prompt], Any]

#: The name of the guard's own engine among the sources of an outcome's attempts.
OWN_ENGINE = "model"


@dataclass(frozen=True, slots=True)
class Source:
    """An engine with the scorer that fits it. Without a scorer its answers count as failed scoring."""

    name: str
    engine: Engine
    scorer: Scorer | None


def score_of(generation: Generation, observer: SignatureObserver, scorer: Scorer) -> Score:
    """Score a generation whose activations an observer has seen.

    Raises:
        CaptureError: the activations are missing or not finite.
    """
    if generation.capture_error:
        raise CaptureError("The layers were not recorded", why=generation.capture_error)
    signals = Signals(generation.logprobs, generation.entropies, generation.margins, observer.signature())
    return scorer.score(signals)


@dataclass(frozen=True, slots=True)
class Result:
    """What an attempt gave: a generation with what its layers said, or a callable's text."""

    text: str
    sampling: Sampling
    generation: Generation | None = None
    observer: SignatureObserver | None = None

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
    answerer: tuple[str, Answerer] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Where the answer comes from."""
        return self.source.name if self.source else cast(tuple[str, Answerer], self.answerer)[0]

    def run(self) -> Result:
        """Get the answer."""
        if self.source is None:
            answer = self._answerer()(self.prompt)
            return self._answered(asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer)
        observer = self._observer()
        generation = self.source.engine.generate(
            self.prompt, sampling=self.sampling, limits=self.limits, observer=observer
        )
        return Result(generation.text, generation.sampling, generation, observer)

    async def arun(self) -> Result:
        """`run` without blocking the event loop."""
        if self.source is None:
            answerer = self._answerer()
            if inspect.iscoroutinefunction(answerer):
                return self._answered(await answerer(self.prompt))
            answer = await asyncio.to_thread(answerer, self.prompt)
            return self._answered(await answer if inspect.isawaitable(answer) else answer)
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
        return score_of(result.generation, result.observer, self.source.scorer)

    def _observer(self) -> SignatureObserver:
        assert self.source is not None
        scorer = self.source.scorer
        return SignatureObserver(temperatures=scorer.schema.temperatures if scorer else (1.0,))

    def _answerer(self) -> Answerer:
        assert self.answerer is not None
        return self.answerer[1]

    def _answered(self, text: object) -> Result:
        if not isinstance(text, str):
            raise InputError(f"The fallback '{self.name}' must give a str, got {type(text).__name__}")
        return Result(text, self.sampling)


@dataclass(slots=True)
class Call:
    """One guarded call: plans each attempt, settles it, and carries out the last decision."""

    guard: Guard
    prompt: Prompt
    route: str | None
    sampling: Sampling
    limits: Limits
    metadata: dict[str, Any]
    decision_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    attempts: list[Attempt] = field(default_factory=list)
    used: Used = NOTHING_USED

    @property
    def bounds(self) -> dict[str, Any]:
        """For tenacity: go on while the policy wants another attempt, within the budget."""
        return {
            "retry": tenacity.retry_if_result(lambda goes_on: bool(goes_on)),
            "stop": tenacity.stop_after_attempt(self._budget.attempts),
            "wait": tenacity.wait_none(),
            "retry_error_callback": lambda _: None,
        }

    @property
    def _budget(self) -> Budget:
        return self.guard.policy.budget_for(self.route)

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
        settings = self.attempts[-1].decision.settings if self.attempts else None
        limits = self._limits_left()
        if isinstance(settings, Fallback) and settings.to is not None:
            target = self.guard.sources[settings.to]
            if isinstance(target, Source):
                return AttemptPlan(target, self.prompt, self.sampling, limits)
            return AttemptPlan(None, self.prompt, self.sampling, limits, answerer=(settings.to, target))
        own = Source(OWN_ENGINE, self.guard.engine, self.guard.scorer)
        if isinstance(settings, Retry):
            told = settings.instruction
            prompt = self.prompt.with_instruction(told) if told else self.prompt
            return AttemptPlan(own, prompt, settings.sampling(self.used.retries), limits)
        return AttemptPlan(own, self.prompt, self.sampling, limits)

    def _limits_left(self) -> Limits:
        """The call's limits, within what is left of the policy's budget; shadow mode changes nothing."""
        if self._shadow:
            return self.limits
        # The next attempt reads about the same prompt again.
        prompt_tokens = self.attempts[-1].prompt_tokens if self.attempts else 0
        tokens = max(1, min(self.limits.max_tokens, self._budget.tokens - self._tokens_used() - prompt_tokens))
        seconds = max(0.001, self._budget.seconds - (time.monotonic() - self.started))
        return replace(self.limits, max_tokens=tokens, timeout_s=min(seconds, self.limits.timeout_s or seconds))

    def _settle(self, plan: AttemptPlan, result: Result) -> bool:
        """Score what came back and decide about it."""
        self._note_use(result)
        error = None
        try:
            score = plan.score(result)
        except Exception as failure:  # noqa: BLE001 - fail closed: the policy says what happens
            score, error = None, _told(failure)
        return self._keep(plan, result, score, self._decide(plan, score, error), error)

    def _fail(self, plan: AttemptPlan, error: Exception) -> bool:
        """There is no answer: bad questions are the caller's, the rest is the policy's.

        Once the model has answered, the question was good; what fails then is the policy's too.
        """
        question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError) and not self.attempts
        if question or isinstance(error, CancelledError) or self._shadow:
            raise error
        self._note_use(None)
        decision = self._decide(plan, None, _told(error))
        if decision.action is Action.ACCEPT:  # there is nothing to accept
            raise error
        return self._keep(plan, None, None, decision, _told(error))

    def _decide(self, plan: AttemptPlan, score: Score | None, error: str | None) -> Decision:
        policy = self.guard.policy
        if error is not None:
            return decide_error(policy, error=error, route=self.route, used=self.used)
        if score is None:  # a callable has answered: the rule that sent us there trusts it
            return Decision(Action.ACCEPT, self.attempts[-1].decision.rule, f"'{plan.name}' answered", None)
        return decide(policy, p_wrong=score.p_wrong, route=self.route, used=self.used)

    def _note_use(self, result: Result | None) -> None:
        """Bring what has been used up to date before deciding, so that no decision oversteps it."""
        # The prompt counts twice, since another attempt would read it again.
        tokens = self._tokens_used() + (2 * result.prompt_tokens + result.completion_tokens if result else 0)
        budget = self._budget
        spent = (
            len(self.attempts) + 1 >= budget.attempts
            or tokens >= budget.tokens
            or time.monotonic() - self.started >= budget.seconds
        )
        self.used = replace(self.used, spent=spent)

    def _keep(
        self, plan: AttemptPlan, result: Result | None, score: Score | None, decision: Decision, error: str | None
    ) -> bool:
        """Add the attempt to the record; whether the decision asks for another."""
        self.attempts.append(
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
            )
        )
        settings = decision.settings
        if self._shadow:
            return False
        if isinstance(settings, Retry):
            self.used = replace(self.used, retries=self.used.retries + 1)
            return True
        if isinstance(settings, Fallback) and settings.to is not None:
            self.used = replace(self.used, fallbacks=self.used.fallbacks | {settings.to})
            return True
        return False

    def _tokens_used(self) -> int:
        return sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in self.attempts)

    # -- the last decision ---------------------------------------------------------------------

    def finish(self) -> Outcome:
        """Carry out the last decision."""
        to = self._escalate_to()
        if not to:
            return self._outcome()
        guard = self.guard
        delivery = escalate(self._escalation(), handlers=guard.handlers, to=to, timeout_s=guard.handler_timeout_s)
        return self._outcome(escalated_to=delivery.delivered, handler_errors=delivery.errors)

    async def afinish(self) -> Outcome:
        """`finish` without blocking the event loop."""
        to = self._escalate_to()
        if not to:
            return self._outcome()
        guard = self.guard
        delivery = await aescalate(
            self._escalation(), handlers=guard.handlers, to=to, timeout_s=guard.handler_timeout_s
        )
        return self._outcome(escalated_to=delivery.delivered, handler_errors=delivery.errors)

    @property
    def _shadow(self) -> bool:
        return self.guard.policy.mode == "shadow"

    def _escalate_to(self) -> tuple[str, ...]:
        settings = self.attempts[-1].decision.settings
        return settings.to if isinstance(settings, Escalate) and not self._shadow else ()

    def _outcome(self, *, escalated_to: tuple[str, ...] = (), handler_errors: tuple[str, ...] = ()) -> Outcome:
        last, shadow = self.attempts[-1], self._shadow
        decision = last.decision
        if isinstance(decision.settings, Abstain) and decision.settings.raises and not shadow:
            raise AbstainedError(
                f"The policy '{self.guard.policy.name}' abstained ({decision.rule})", why=decision.reason
            )
        return Outcome(
            answer=last.answer if shadow else _reply(last),
            action=Action.ACCEPT if shadow else _action(last),
            rule=decision.rule,
            reason=decision.reason,
            p_wrong=last.score.p_wrong if last.score else None,
            decision_id=self.decision_id,
            route=self.route,
            mode=self.guard.policy.mode,
            would_be=decision if shadow else None,
            attempts=tuple(self.attempts),
            escalated_to=escalated_to,
            errors=(*(attempt.error for attempt in self.attempts if attempt.error), *handler_errors),
            seconds=time.monotonic() - self.started,
        )

    def _escalation(self) -> Escalation:
        last = self.attempts[-1]
        return Escalation(
            decision_id=self.decision_id,
            question=self.prompt.question,
            prompt=self.prompt,
            answer=last.answer,
            p_wrong=last.score.p_wrong if last.score else None,
            rule=last.decision.rule,
            reason=last.decision.reason,
            route=self.route,
            policy=self.guard.policy.name,
            model=self.guard.engine.model.name,
            attempts=tuple(self.attempts),
            metadata=self.metadata,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


def _action(last: Attempt) -> Action:
    """Accepting what a fallback said is a fallback, not the model's own answer."""
    if last.decision.action is Action.ACCEPT and last.source != OWN_ENGINE:
        return Action.FALLBACK
    return last.decision.action


def _reply(last: Attempt) -> str | None:
    """What the caller gets."""
    match last.decision.settings:
        case Fallback(text=str(text)) | Abstain(text=text) | Escalate(reply=text):
            return text
    return last.answer


async def _awaited(answer: Awaitable[object]) -> object:
    return await answer


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, GuardError) else f"{type(error).__name__}: {error}"
