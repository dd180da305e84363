"""What would change, counted on the held-out answers: coverage, people's work, wrong answers. Pure.

The held-out answers are a random sample of all that were accepted or sent to people. Each is scored by the new scorer
and decided by the policy with its new thresholds; shares come with exact intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.policy.bounds import Interval, exact_share
from guard.policy.defects import find_defects
from guard.policy.policy import Policy
from guard.recalibration.dividing import JudgedAnswer
from guard.recalibration.taking import Traffic
from guard.replay.deciding import Replayed, as_recorded, replay_call
from guard.replay.figures import scaled
from guard.replay.recorded import RecordedAttempt, RecordedCall


@dataclass(frozen=True, slots=True)
class ExpectedFigures:
    """What becomes of a route's answers; each with low and high at 95 %.

    Attributes:
        coverage: share of the answers that are accepted.
        escalations_a_day: of them that go to people.
        reviews_a_day: opinions that people are asked for, audits included.
        minutes_a_day: of their time; None where the time for one opinion is not known.
        errors: share of wrong answers among the accepted; None where none is accepted.
        unknown: number of sampled answers for which the policy would ask again, so that their end is not known.
    """

    coverage: Interval
    escalations_a_day: Interval
    reviews_a_day: float
    minutes_a_day: float | None
    errors: Interval | None
    unknown: int


@dataclass(frozen=True, slots=True)
class ExpectedChange:
    """What a new scorer and its thresholds change on a route.

    Attributes:
        route: None for calls without one.
        sampled: number of held-out answers.
        answers_a_day: that were accepted or sent to people.
        estimated: whether that is estimated from the labels, since the audit log has no decisions.
        present: as it was decided.
        proposed: by the new scorer and thresholds.
    """

    route: str | None
    sampled: int
    answers_a_day: float
    estimated: bool
    present: ExpectedFigures
    proposed: ExpectedFigures


def expected_change(
    route: str | None,
    sample: Sequence[JudgedAnswer],
    scored: Mapping[str, Mapping[str, Any]],
    policy: Policy,
    traffic: Traffic,
    answers: Iterable[JudgedAnswer],
) -> ExpectedChange:
    """Return what would change on a route.

    Args:
        route: None for calls without one.
        sample: its held-out answers, at least one.
        scored: by their ids, ``scores`` and ``ood_score`` by the new scorer, or ``error``.
        policy: with the new thresholds.
        traffic: how many answers there were.
        answers: all with a verdict; they say how many there were where the log does not.
    """
    calls = [_call(each, scored[each.row.id]) for each in sample]
    number, estimated = _number(route, traffic, answers)
    a_day = number / traffic.days

    audit = policy.plan(route).audit

    def figures(decided: Iterable[Replayed]) -> ExpectedFigures:
        return _figures(list(decided), sample, a_day, traffic.minutes, audit.rate if audit else 0.0)

    present = figures(as_recorded(call, policy) for call in calls)
    proposed = figures(replay_call(policy, call) for call in calls)
    return ExpectedChange(route, len(sample), a_day, estimated, present, proposed)


def _call(answer: JudgedAnswer, scored: Mapping[str, Any]) -> RecordedCall:
    """Return the call that an answer was given in, as the new scorer would have scored it."""
    failed = "error" in scored
    scores, ood_score = ({}, None) if failed else (scored["scores"], scored["ood_score"])
    defects = find_defects(answer.row.response, None)
    attempt = RecordedAttempt("model", scores, ood_score, failed, tuple(defects))
    action = "accept" if answer.is_audit else "escalate"
    content = answer.content
    return RecordedCall(answer.row.id, content["created_at"], answer.route, content["policy"], action, (attempt,))


def _number(route: str | None, traffic: Traffic, answers: Iterable[JudgedAnswer]) -> tuple[float, bool]:
    """Return how many answers were accepted or sent to people, and whether that is estimated from the labels."""
    if traffic.logged is None:
        return sum(each.row.weight for each in answers if each.route == route), True
    counts = traffic.logged.get(route or "", {})
    return counts.get("accept", 0) + counts.get("escalate", 0), False


def _figures(
    decided: Sequence[Replayed], sample: Sequence[JudgedAnswer], a_day: float, minutes: float | None, rate: float
) -> ExpectedFigures:
    total = len(decided)
    ends = [each.ending for each in decided]
    unknown, accepted = ends.count("unknown"), ends.count("accept")
    wrong = sum(bool(each.row.wrong) for each, end in zip(sample, ends, strict=True) if end == "accept")
    reviews = a_day * (sum(each.reviews for each in decided) + rate * accepted) / total
    return ExpectedFigures(
        exact_share(accepted, unknown, total),
        scaled(exact_share(ends.count("escalate"), unknown, total), a_day),
        reviews,
        None if minutes is None else minutes * reviews,
        exact_share(wrong, 0, accepted) if accepted else None,
        unknown,
    )
