"""One guarded call of a chain: plans each attempt, settles it, and carries out the last decision.

The counterpart of `guard.loop` for chains, whose answers are whatever the chain gives. It is the only
place that holds a call's state; the runnable itself holds none.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.runnables import Runnable

from guard.errors import (
    AbstainedError,
    CancelledError,
    ChatTemplateError,
    EscalationError,
    GuardError,
    InputError,
    PromptTooLongError,
)
from guard.langchain.attempt import AttemptSettings, Memory
from guard.langchain.calls import ModelCall, Verdict, judge, judge_failure
from guard.langchain.holding import Ran
from guard.langchain.live import RetractedError, Watch
from guard.langchain.messages import chat_turns
from guard.langchain.replies import text_of_output
from guard.loop import OWN_ENGINE
from guard.policy import NOTHING_USED, Abstain, Escalate, Fallback, Policy, Retry, Used, decide
from guard.records import Action, Attempt, Decision, Escalation, Outcome, Prompt, Sampling, Score

if TYPE_CHECKING:
    from guard.langchain.runnable import GuardedRunnable


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
        policy: resolved.
        asked: the chain's input.
        metadata: of the run, for those who take an escalation.
        live: whether the answer streams before it is decided on, so that nothing can be tried again.
    """

    guarded: GuardedRunnable[Any, Any]
    policy: Policy
    asked: Any
    metadata: Mapping[str, Any]
    live: bool = False
    decision_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    attempts: list[Attempt] = field(default_factory=list)
    used: Used = NOTHING_USED
    memory: Memory = field(default_factory=Memory)
    _call: ModelCall | None = None
    _ran: Ran | None = None

    @property
    def shadow(self) -> bool:
        """Whether decisions are only recorded."""
        return self.policy.mode == "shadow"

    @property
    def decision(self) -> Decision:
        """The last one."""
        return self.attempts[-1].decision

    @property
    def ran(self) -> Ran:
        """The last attempt."""
        assert self._ran is not None
        return self._ran

    # -- one attempt ---------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What to run next: the chain, or what the last decision says."""
        settings = self.decision.settings if self.attempts else None
        attempt = AttemptSettings(
            max_tokens=max(1, self._budget.tokens - self._tokens_used()),
            deadline=self.started + self._budget.seconds,
            memory=self.memory,
            watch=self._watch() if self.live else None,
        )
        if isinstance(settings, Fallback) and settings.to is not None:
            return Plan(settings.to, self.guarded.fallback(settings.to), attempt)
        if isinstance(settings, Retry):
            told = replace(attempt, sampling=settings.sampling(self.used.retries), instruction=settings.instruction)
            return Plan(OWN_ENGINE, self.guarded.runnable, told)
        return Plan(OWN_ENGINE, self.guarded.runnable, attempt)

    def settle(self, plan: Plan, ran: Ran) -> bool:
        """Decide about what came back; whether to go on.

        Raises:
            Exception: the chain's own error, where it is the caller's: the question was bad, or it came
                before any model had answered, so that it can tell nothing of an answer.
        """
        self._ran = ran
        self._note_use(ran)
        verdict = self._judge(plan, ran)
        self._call = verdict.call
        answer = text_of_output(ran.output) if ran.error is None else None
        scored = verdict.call.scored if verdict.call else None
        known = [call.scored for call in ran.calls if call.scored]
        self.attempts.append(
            Attempt(
                answer=answer,
                source=plan.source,
                score=_score(verdict, ran.error),
                decision=verdict.decision,
                prompt_tokens=sum(one.prompt_tokens for one in known),
                completion_tokens=sum(one.tokens for one in known),
                seconds=time.monotonic() - plan.started,
                sampling=scored.sampling if scored else plan.settings.sampling or Sampling(),
                error=verdict.error,
            )
        )
        return self._goes_on(verdict.decision)

    def _judge(self, plan: Plan, ran: Ran) -> Verdict:
        route, used = self.guarded.route, self.used
        if isinstance(ran.error, RetractedError) and ran.error.score is not None:
            decision = decide(self.policy, p_wrong=ran.error.score.p_wrong, route=route, used=used)
            return Verdict(decision, None, None)
        if ran.error is not None and (isinstance(ran.error, GuardError) or not ran.calls):
            return self._judge_error(ran.error)
        if plan.source != OWN_ENGINE and ran.error is None and not any(call.scored for call in ran.calls):
            # No model of guard's has answered: the rule that sent us there trusts who did.
            reason = f"'{plan.source}' answered"
            return Verdict(Decision(Action.ACCEPT, self.decision.rule, reason, None), None, None)
        return judge(self.policy, ran.calls, join=self.guarded.joined(self.policy), route=route, used=used)

    def _judge_error(self, error: Exception) -> Verdict:
        """There is no answer: bad questions and the chain's own errors are the caller's, the rest the policy's."""
        question = isinstance(error, InputError | PromptTooLongError | ChatTemplateError) and not self.attempts
        settled = isinstance(error, CancelledError | AbstainedError | EscalationError)
        if question or settled or not isinstance(error, GuardError) or self.shadow:
            raise error
        verdict = judge_failure(self.policy, str(error), route=self.guarded.route, used=self.used)
        if verdict.decision.action is Action.ACCEPT:  # there is nothing to accept
            raise error
        return verdict

    def _goes_on(self, decision: Decision) -> bool:
        settings = decision.settings
        if self.shadow or self.live:
            return False
        if isinstance(settings, Retry):
            self.used = replace(self.used, retries=self.used.retries + 1)
            return True
        if isinstance(settings, Fallback) and settings.to is not None:
            self.used = replace(self.used, fallbacks=self.used.fallbacks | {settings.to})
            return True
        return False

    def _note_use(self, ran: Ran) -> None:
        """Bring what has been used up to date before deciding, so that no decision oversteps it."""
        known = [call.scored for call in ran.calls if call.scored]
        # The prompts count twice, since another attempt would read them again.
        tokens = self._tokens_used() + sum(2 * one.prompt_tokens + one.tokens for one in known)
        spent = (
            self.live  # the reader has seen this answer; another one cannot take its place
            or len(self.attempts) + 1 >= self._budget.attempts
            or tokens >= self._budget.tokens
            or time.monotonic() - self.started >= self._budget.seconds
        )
        self.used = replace(self.used, spent=spent)

    def _watch(self) -> Watch | None:
        """A look at the growing answer, where every model call counts. Which one is last is not known yet."""
        join = self.guarded.joined(self.policy)
        if join.join != "worst" or join.tag is not None:
            return None
        used = replace(self.used, spent=True)

        def accepts(p_wrong: float) -> bool:
            said = decide(self.policy, p_wrong=p_wrong, route=self.guarded.route, used=used)
            return said.action is Action.ACCEPT

        return Watch(accepts)

    @property
    def _budget(self) -> Any:
        return self.policy.budget_for(self.guarded.route)

    def _tokens_used(self) -> int:
        return sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in self.attempts)

    # -- the last decision ---------------------------------------------------------------------

    @property
    def accepted(self) -> bool:
        """Whether the caller gets what the last attempt gave."""
        return self.shadow or self.decision.action is Action.ACCEPT

    def escalate_to(self) -> tuple[str, ...]:
        """The handlers that the case is for; empty where it is not escalated."""
        settings = self.decision.settings
        return settings.to if isinstance(settings, Escalate) and not self.shadow else ()

    def check_abstention(self) -> None:
        """Raise where the policy wants an exception in place of an answer."""
        settings = self.decision.settings
        if isinstance(settings, Abstain) and settings.raises and not self.shadow:
            raise AbstainedError(
                f"The policy '{self.policy.name}' abstained ({self.decision.rule})", why=self.decision.reason
            )

    def reply(self) -> str | None:
        """The policy's own text, in place of an answer."""
        match self.decision.settings:
            case Fallback(text=str(text)) | Abstain(text=text) | Escalate(reply=text):
                return text
        return None

    def outcome(self, *, escalated_to: tuple[str, ...] = (), handler_errors: tuple[str, ...] = ()) -> Outcome:
        """What was done. Texts that were not accepted are not in it: they go to people only."""
        last, decision = self.attempts[-1], self.decision
        shown = [*(replace(attempt, answer=None) for attempt in self.attempts[:-1]), last]
        if not self.accepted:
            shown[-1] = replace(last, answer=None)
        action = decision.action
        if self.shadow:
            action = Action.ACCEPT
        elif action is Action.ACCEPT and last.source != OWN_ENGINE:
            action = Action.FALLBACK
        return Outcome(
            answer=last.answer if self.accepted else self.reply(),
            action=action,
            rule=decision.rule,
            reason=decision.reason,
            p_wrong=last.score.p_wrong if last.score else None,
            decision_id=self.decision_id,
            route=self.guarded.route,
            mode=self.policy.mode,
            would_be=decision if self.shadow else None,
            attempts=tuple(shown),
            escalated_to=escalated_to,
            errors=(*(attempt.error for attempt in self.attempts if attempt.error), *handler_errors),
            seconds=time.monotonic() - self.started,
        )

    def escalation(self) -> Escalation:
        """The case for a person, with the answer that was not accepted."""
        last, prompt = self.attempts[-1], self._prompt()
        return Escalation(
            decision_id=self.decision_id,
            question=self.asked if isinstance(self.asked, str) else prompt.question,
            prompt=prompt,
            answer=last.answer,
            p_wrong=last.score.p_wrong if last.score else None,
            rule=last.decision.rule,
            reason=last.decision.reason,
            route=self.guarded.route,
            policy=self.policy.name,
            model=self._call.scored.model if self._call and self._call.scored else "",
            attempts=tuple(self.attempts),
            metadata=dict(self.metadata),
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _prompt(self) -> Prompt:
        """What the deciding model was asked, or the chain's input where no model was."""
        if self._call is None:
            return Prompt.raw(text_of_output(self.asked))
        asked = self._call.asked
        if not all(isinstance(message, BaseMessage) for message in asked):
            return Prompt.raw("\n".join(map(str, asked)))
        try:
            return Prompt.chat(chat_turns(asked))
        except InputError:  # images, files: people get a description of them
            return Prompt.raw(get_buffer_string(list(asked)))

    def event(self) -> dict[str, Any]:
        """The last decision as listeners get it; it holds no text of an answer."""
        last, decision = self.attempts[-1], self.decision
        return {
            "decision_id": self.decision_id,
            "attempt": len(self.attempts),
            "source": last.source,
            "action": decision.action.value,
            "rule": decision.rule,
            "reason": decision.reason,
            "p_wrong": decision.p_wrong,
            "policy": self.policy.name,
            "route": self.guarded.route,
            "mode": self.policy.mode,
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": last.completion_tokens,
            "seconds": last.seconds,
            "error": last.error,
        }


def _score(verdict: Verdict, error: Exception | None) -> Score | None:
    """The score that the decision was made on."""
    p_wrong = verdict.decision.p_wrong
    if isinstance(error, RetractedError):
        return error.score
    scored = verdict.call.scored if verdict.call else None
    if p_wrong is None or scored is None:
        return None
    return Score(p_wrong, scored.calibrated, scored.baseline_p_wrong, scored.score_seconds or 0.0)
