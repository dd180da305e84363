"""Compare a policy with the recorded decisions of the last days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import sqlalchemy as sa

from guard.errors import InputError
from guard.policy.durations import parse_duration
from guard.policy.policy import Policy
from guard.replay.deciding import as_recorded, replay_call
from guard.replay.documents import PolicyLine, compare_documents
from guard.replay.figures import PolicyFigures, compute_figures
from guard.replay.recorded import RecordedCall, read_calls, read_document, read_verdicts, within_newest
from guard.review.migrations.tables import EVENTS
from guard.review.records import later
from guard.review.store import Store

#: Newest pairs of claim and verdict whose median time is taken, and how long a claim may lie before it counts.
_TIMED, _LONGEST_S = 1000, 3600.0


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """Recorded decisions beside those of another policy.

    Attributes:
        since: ISO 8601, UTC.
        days: number of days from then to now.
        route: only these calls; None for all.
        present: figures of the recorded decisions.
        proposed: figures of the policy.
        changed: calls that end differently, by how they ended and would end, such as ``{"escalate": {"accept": 3}}``.
        cut: whether `since` is later than the time that was asked for, since the log has more entries than were read.
        lines: what differs between the document of the policy that decided the latest call and the other policy's; None
            where the log does not have that document.
    """

    since: str
    days: float
    route: str | None
    present: PolicyFigures
    proposed: PolicyFigures
    changed: dict[str, dict[str, int]]
    cut: bool
    lines: tuple[PolicyLine, ...] | None


def replay(
    store: Store, policy: Policy, *, since: str = "7d", route: str | None = None, newest: int | None = None
) -> PolicyComparison:
    """Decide recorded calls again.

    Args:
        store: store with an audit log of decisions (``audit_log=``, ``--audit-log``) and the verdicts of people.
        policy: the policy, with the thresholds of its certificates.
        since: a duration such as ``7d`` or ``12h``, or an ISO 8601 time with its offset.
        route: only calls on this route.
        newest: number of entries at the end of the audit log that are read at most; None for all.

    Raises:
        InputError: the time cannot be read, or no decision was recorded since then.
        PolicyError: the policy lacks a route of the calls, or a certificate.
        StoreError: the store cannot be read.

    Examples:
        >>> import guard
        >>> found = guard.replay.replay(store, guard.load_policy("strict"))  # doctest: +SKIP
        >>> found.proposed.coverage, found.present.coverage  # doctest: +SKIP
        ((0.31, 0.28, 0.34), (0.52, 0.49, 0.55))
    """
    with store._database.read() as connection:
        now = store._database.now(connection)
    log, asked = store.audit_log(), parse_since(since, now)
    begin = asked if newest is None else within_newest(log, asked, newest)
    calls = read_calls(log, since=begin, route=route)
    if not calls:
        raise InputError(
            "There is nothing to replay",
            why=f"the audit log has no decision since {begin[:16].replace('T', ' ')} UTC",
            fix="Log decisions with audit_log=store.audit_log(), guard ask --audit-log or guard serve --audit-log",
        )
    verdicts, minutes = read_verdicts(store, [call.decision_id for call in calls]), read_minutes(store)
    present = [as_recorded(call, policy) for call in calls]
    proposed = [replay_call(policy, call) for call in calls]
    days = days_between(begin, now)
    changed: dict[str, dict[str, int]] = {}
    for before, after in zip(present, proposed, strict=True):
        if before.ending != after.ending:
            row = changed.setdefault(before.ending, {})
            row[after.ending] = row.get(after.ending, 0) + 1
    document = read_document(log, calls[-1])
    return PolicyComparison(
        begin,
        days,
        route,
        compute_figures(_names(calls), present, verdicts, days=days, minutes=minutes),
        compute_figures(policy.name, proposed, verdicts, days=days, minutes=minutes),
        changed,
        cut=begin > asked,
        lines=None if document is None else compare_documents(document, policy.document),
    )


def read_minutes(store: Store) -> float | None:
    """Return the median minutes from a person's claim to their verdict or opinion; None with fewer than five.

    Raises:
        StoreError: the store cannot be read.
    """
    ended = EVENTS.alias("ended")
    decided = ended.c.what.in_(("approved", "edited", "rejected", "opinion"))
    claim = (
        sa.select(sa.func.max(EVENTS.c.at))
        .where(EVENTS.c.review_id == ended.c.review_id, EVENTS.c.who == ended.c.who, EVENTS.c.what == "claimed")
        .where(EVENTS.c.number < ended.c.number)
        .scalar_subquery()
    )
    query = sa.select(claim, ended.c.at).where(decided).order_by(ended.c.number.desc()).limit(_TIMED)
    with store._database.read() as connection:
        pairs = [(begin, end) for begin, end in connection.execute(query) if begin is not None]
    seconds = [_seconds(begin, end) for begin, end in pairs]
    worked = [each for each in seconds if each <= _LONGEST_S]
    return median(worked) / 60 if len(worked) >= 5 else None


def days_between(begin: str, end: str) -> float:
    """Return the number of days between two stored times, above 0."""
    return max(_seconds(begin, end) / 86_400, 1e-9)


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def parse_since(since: str, now: str) -> str:
    """Return a time in the stored form.

    Args:
        since: a duration such as ``7d`` before now, or an ISO 8601 time with its offset.
        now: in the stored form.

    Raises:
        InputError: the time cannot be read.
    """
    seconds = parse_duration(since)
    if seconds is not None:
        return later(now, -seconds)
    try:
        parsed = datetime.fromisoformat(since)
        if parsed.tzinfo is None:
            raise ValueError(since)
    except ValueError:
        raise InputError(
            f"'{since:.60}' is no time to replay from", fix="Write 7d, 12h, or 2026-11-26T00:00:00+00:00"
        ) from None
    return parsed.astimezone(UTC).isoformat(timespec="milliseconds")


def _names(calls: Sequence[RecordedCall]) -> str:
    names = sorted({call.policy for call in calls})
    return ", ".join(names) if len(names) < 4 else f"{len(names)} policies"
