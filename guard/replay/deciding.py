"""Decide a recorded call again by another policy. Pure.

An attempt that the policy asks for but that was not made is unknown, and so is the rest of an answer that was stopped
early where this policy would not have stopped it: such a call counts as neither accepted nor refused. Answers that were
completed are not stopped, since the log has no scores of an answer so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from guard.policy.document import ActionSettings, Escalate, Fallback, Retry
from guard.policy.policy import NO_USAGE, Policy, Usage, decide, decide_error
from guard.records import Action, Decision
from guard.replay.recorded import RecordedAttempt, RecordedCall

#: Source of the guard's own attempts.
_OWN = "model"

#: What becomes of a call: ``text`` is a fixed text, ``unknown`` would have asked again, or let a stopped answer go on.
CallEnding = Literal["accept", "text", "escalate", "abstain", "unknown"]
ENDINGS: tuple[CallEnding, ...] = ("accept", "text", "escalate", "abstain", "unknown")
_ENDINGS: dict[str, CallEnding] = {"accept": "accept", "fallback": "text", "escalate": "escalate", "abstain": "abstain"}


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of deciding a call again.

    Attributes:
        call: the call.
        ending: how it ends.
        attempt: number of the last attempt decided, from 0.
        p_wrong: score of that attempt, as selected by the policy; None without one.
        reviews: number of opinions that people must give: 0 unless escalated.
        audit_rate: share of accepted answers that people check; 0 unless accepted.
    """

    call: RecordedCall
    ending: CallEnding
    attempt: int
    p_wrong: float | None
    reviews: int = 0
    audit_rate: float = 0.0

    @property
    def is_last(self) -> bool:
        """Whether the call ended with this answer, so that it can have a verdict."""
        return self.attempt == len(self.call.attempts) - 1


def replay_call(policy: Policy, call: RecordedCall) -> Replayed:
    """Decide a call again.

    Args:
        policy: the policy, with the thresholds of its guarantees.
        call: the call, with its recorded attempts.

    Raises:
        PolicyError: the policy has no such route.

    Examples:
        >>> from guard.policy import parse_policy
        >>> policy = parse_policy("{version: 1, name: x, rules: [{accept: {below: 0.3}}, {escalate: {}}]}")
        >>> call = RecordedCall("1", "", None, "old", "abstain", (RecordedAttempt("model", {"guard": 0.2}),))
        >>> replay_call(policy, call).ending
        'accept'
    """
    usage, plan = NO_USAGE, policy.plan(call.route)
    for number, attempt in enumerate(call.attempts):
        usage = replace(usage, exhausted=number + 1 >= plan.budget.attempts)
        decision = _decision(policy, call.route, attempt, usage)
        if decision is None:
            break
        following = call.attempts[number + 1].source if number + 1 < len(call.attempts) else None
        again = _next_source(decision.settings)
        if again is None:
            return _ended(policy, call, number, decision)
        if again != following:
            break
        usage = _used(usage, decision.settings)
    return Replayed(call, "unknown", number, _p_wrong(policy, call.attempts[number]))


def as_recorded(call: RecordedCall, policy: Policy | None = None) -> Replayed:
    """Return the recorded result of a call.

    Args:
        call: the call.
        policy: selects the score for p_wrong; by default the score ``guard``.
    """
    last, name = call.attempts[-1], policy.score if policy else "guard"
    ending = _ENDINGS.get(call.action, "unknown")
    return Replayed(call, ending, len(call.attempts) - 1, last.scores.get(name), reviews=int(ending == "escalate"))


def _decision(policy: Policy, route: str | None, attempt: RecordedAttempt, usage: Usage) -> Decision | None:
    """Return the decision about an attempt; None where its score is not recorded, or its answer would have gone on."""
    if "stopped" in attempt.defects and not _would_stop(policy, route, attempt):
        return None
    if attempt.failed:
        return decide_error(policy, error="as recorded", route=route, usage=usage, defects=attempt.defects)
    p_wrong = _p_wrong(policy, attempt)
    if p_wrong is not None:
        plan = policy.plan(route)
        if plan.out_of_distribution is not None and attempt.ood_score is None:
            return None
        return decide(
            policy, p_wrong=p_wrong, ood_score=attempt.ood_score, route=route, usage=usage, defects=attempt.defects
        )
    if attempt.source == _OWN or attempt.scores or attempt.defects:
        return None
    return Decision(Action.ACCEPT, "trusted", "a function answered", None)


def _would_stop(policy: Policy, route: str | None, attempt: RecordedAttempt) -> bool:
    """Return whether a policy stops an answer early, too, where it was stopped."""
    early, p_wrong = policy.plan(route).early, _p_wrong(policy, attempt)
    return early is not None and p_wrong is not None and p_wrong > early.above


def _p_wrong(policy: Policy, attempt: RecordedAttempt) -> float | None:
    return attempt.scores.get(policy.score)


def _next_source(settings: ActionSettings | None) -> str | None:
    """Return the source that a decision asks next; None if it is the last."""
    if isinstance(settings, Retry):
        return _OWN
    return settings.to if isinstance(settings, Fallback) else None


def _used(usage: Usage, settings: ActionSettings | None) -> Usage:
    if isinstance(settings, Fallback) and settings.to is not None:
        return replace(usage, fallbacks=usage.fallbacks | {settings.to})
    return replace(usage, retries=usage.retries + 1)


def _ended(policy: Policy, call: RecordedCall, number: int, decision: Decision) -> Replayed:
    settings, audit = decision.settings, policy.plan(call.route).audit
    ending = _ENDINGS[decision.action.value]
    return Replayed(
        call,
        ending,
        number,
        _p_wrong(policy, call.attempts[number]),
        reviews=settings.terms.reviews if isinstance(settings, Escalate) else 0,
        audit_rate=audit.rate if audit and ending == "accept" else 0.0,
    )
