"""Figures of replayed calls with their intervals: coverage, people's work, wrong answers. Pure.

Wrong answers are counted from people's verdicts where there are enough of them for answers of the same kind (those that
were accepted, by audits; those that were escalated), and from the scores elsewhere, which holds as far as they are
calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.policy.bounds import Interval, exact_share
from guard.replay.deciding import ENDINGS, CallEnding, Replayed
from guard.replay.recorded import RecordedVerdict

#: Half the width of a normal 95 % interval, in standard deviations.
_DEVIATIONS = 1.96

#: With fewer verdicts of a kind the scores are used.
FEWEST_VERDICTS = 20


@dataclass(frozen=True, slots=True)
class ExpectedErrors:
    """Expected number of wrong answers among the accepted.

    Attributes:
        by_verdicts: estimate, low and high, from verdicts where there are enough, and scores elsewhere; None where the
            scores alone would be used.
        by_scores: the same from scores alone; None where an accepted answer has none.
        verdicts: verdicts in the first.
    """

    by_verdicts: Interval | None
    by_scores: Interval | None
    verdicts: int


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """Results of a policy on recorded calls.

    Attributes:
        name: of the policy.
        calls: number of calls.
        endings: number of calls by how they end.
        coverage: share of accepted answers, with low and high; calls that would ask again may be accepted or not.
        escalations_a_day: cases for people, with low and high.
        reviews_a_day: opinions that they are asked for: one or two a case, and audits.
        minutes_a_day: of their time, by the median time from claim to verdict; None where that is not known.
        errors: wrong answers among the accepted.
    """

    name: str
    calls: int
    endings: Mapping[CallEnding, int]
    coverage: Interval
    escalations_a_day: Interval
    reviews_a_day: float
    minutes_a_day: float | None
    errors: ExpectedErrors


def compute_figures(
    name: str,
    replayed: Sequence[Replayed],
    verdicts: Mapping[str, RecordedVerdict],
    *,
    days: float,
    minutes: float | None,
) -> PolicyFigures:
    """Return the figures of one policy.

    Args:
        name: of the policy.
        replayed: each call, at least one.
        verdicts: by decision id.
        days: number of days that the calls cover, above 0.
        minutes: minutes of a person's time per opinion, or None.
    """
    calls = len(replayed)
    endings = {ending: sum(each.ending == ending for each in replayed) for ending in ENDINGS}
    accepted, escalated, unknown = (endings[name] for name in ("accept", "escalate", "unknown"))
    reviews = sum(each.reviews + each.audit_rate for each in replayed) / days
    return PolicyFigures(
        name,
        calls,
        endings,
        coverage=exact_share(accepted, unknown, calls),
        escalations_a_day=scaled(exact_share(escalated, unknown, calls), calls / days),
        reviews_a_day=reviews,
        minutes_a_day=None if minutes is None else minutes * reviews,
        errors=expected_errors([each for each in replayed if each.ending == "accept"], verdicts),
    )


def expected_errors(accepted: Sequence[Replayed], verdicts: Mapping[str, RecordedVerdict]) -> ExpectedErrors:
    """Return the expected number of wrong answers.

    Args:
        accepted: calls that end with an accepted answer.
        verdicts: by decision id; of a call's last answer only.
    """
    known, rest, counted = [], list(accepted), 0
    for action, kind in (("accept", "audit"), ("escalate", "escalation")):
        group = [each for each in rest if _ended_in(each, action)]
        said = [verdicts[each.call.decision_id] for each in group if each.call.decision_id in verdicts]
        wrong = [verdict.wrong for verdict in said if verdict.kind == kind]
        if len(wrong) >= FEWEST_VERDICTS:
            known.append(_from_verdicts(sum(wrong), len(wrong), len(group)))
            counted += len(wrong)
            rest = [each for each in rest if not _ended_in(each, action)]
    by_scores = _from_scores(accepted)
    remaining = _from_scores(rest)
    by_verdicts = _added([*known, remaining]) if known and remaining is not None else None
    return ExpectedErrors(by_verdicts, _interval(by_scores) if by_scores else None, counted)


def _ended_in(replayed: Replayed, action: str) -> bool:
    """Return whether a call was decided so, with the same answer."""
    return replayed.call.action == action and replayed.is_last


# -- estimates with their variances ------------------------------------------------------------

_MeanAndVariance = tuple[float, float]


def _from_verdicts(wrong: int, said: int, answers: int) -> _MeanAndVariance:
    """Return errors among answers of which some, drawn at random, have verdicts; the variance is never 0."""
    share = (wrong + 0.5) / (said + 1)
    return answers * wrong / said, (answers**2) * share * (1 - share) / said + answers * share * (1 - share)


def _from_scores(answers: Sequence[Replayed]) -> _MeanAndVariance | None:
    scores = [each.p_wrong for each in answers]
    if any(score is None for score in scores):
        return None
    known = [float(score) for score in scores if score is not None]
    return math.fsum(known), math.fsum(score * (1 - score) for score in known)


def _added(parts: Sequence[_MeanAndVariance]) -> Interval:
    return _interval((math.fsum(each for each, _ in parts), math.fsum(variance for _, variance in parts)))


def _interval(estimate: _MeanAndVariance) -> Interval:
    mean, variance = estimate
    return mean, max(0.0, mean - _DEVIATIONS * math.sqrt(variance)), mean + _DEVIATIONS * math.sqrt(variance)


def scaled(interval: Interval, by: float) -> Interval:
    """Return an interval times a factor."""
    middle, low, high = (by * each for each in interval)
    return middle, low, high
