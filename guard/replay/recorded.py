"""Calls in the audit log: every attempt with its scores, the decision, and the verdict of people.

Only the log also has accepted answers; the review queue has only cases for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Row

from guard.audit.log import AuditLog
from guard.audit.recent import newest_entries
from guard.policy.defects import Defect
from guard.review.migrations.tables import REPEATS, REVIEWS
from guard.review.queries import IS_PENDING
from guard.review.store import Store

#: Decisions whose verdicts are read by one query.
_AT_ONCE = 500

#: Entries at the end of the log among which the latest decision is looked for.
_NEWEST = 500


@dataclass(frozen=True, slots=True)
class RecordedAttempt:
    """One attempt.

    Attributes:
        source: ``model``, or the name of the fallback that answered.
        scores: the probabilities that were computed, by the score's name.
        ood_score: None if unknown.
        failed: whether generation or scoring failed.
        defects: of the answer's form.
    """

    source: str
    scores: Mapping[str, float]
    ood_score: float | None = None
    failed: bool = False
    defects: tuple[Defect, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One guarded call.

    Attributes:
        decision_id: of the call.
        at: when it was decided; ISO 8601, UTC.
        route: the caller's, or None.
        policy: the name of the policy that decided.
        action: what it decided last: ``accept``, ``fallback`` (a fixed text), ``escalate``, ``abstain``; in shadow mode
            also ``retry``.
        attempts: in order.
        policy_sha256: digest of that policy; empty if unknown.
    """

    decision_id: str
    at: str
    route: str | None
    policy: str
    action: str
    attempts: tuple[RecordedAttempt, ...]
    policy_sha256: str = ""


@dataclass(frozen=True, slots=True)
class RecordedVerdict:
    """Verdict of people on the final answer of a call.

    Attributes:
        wrong: whether it is wrong.
        kind: ``audit`` of an accepted answer, or ``escalation``.
    """

    wrong: bool
    kind: Literal["audit", "escalation"]


def read_calls(log: AuditLog, *, since: str, route: str | None = None) -> list[RecordedCall]:
    """Return the calls of a log from a time on.

    Args:
        log: the audit log, with decisions.
        since: ISO 8601, UTC.
        route: only these.

    Raises:
        StoreError: the log cannot be read.
    """
    events = (json.loads(entry.event) for entry in log.entries(_first_since(log, since)))
    decisions = (event for event in events if event["kind"] == "decision" and event["at"] >= since)
    return [_call(event) for event in decisions if route is None or event["route"] == route]


def read_document(log: AuditLog, call: RecordedCall) -> str | None:
    """Return the document of the policy that decided a call, as `guard.policy.policy.Policy.document`.

    Args:
        log: the audit log with the call.
        call: the call.

    Returns:
        None where the log does not have it.

    Raises:
        StoreError: the log cannot be read.
    """
    events = (json.loads(entry.event) for entry in log.entries(subject=f"policy {call.policy}"))
    documents = (event.get("document") for event in events if event.get("policy_sha256") == call.policy_sha256)
    return next((str(each) for each in documents if each), None)


def read_latest_document(log: AuditLog) -> str | None:
    """Return the document of the policy that decided the latest call, as `read_document` does.

    Args:
        log: the audit log, of which only the newest entries are read.

    Raises:
        StoreError: the log cannot be read.
    """
    events = (json.loads(entry.event) for entry in newest_entries(log, _NEWEST))
    latest = next((event for event in events if event["kind"] == "decision"), None)
    return None if latest is None else read_document(log, _call(latest))


def within_newest(log: AuditLog, since: str, newest: int) -> str:
    """Return the time from which a log is read: `since`, or that of the oldest of its newest entries if that is later.

    Args:
        log: the audit log.
        since: ISO 8601, UTC.
        newest: number of entries, whatever they are about.

    Raises:
        StoreError: the log cannot be read.
    """
    last = next(iter(newest_entries(log, 1)), None)
    if last is None or last.number < newest:
        return since
    oldest = next(log.entries(last.number + 1 - newest))
    return max(since, str(json.loads(oldest.event)["at"]))


def read_verdicts(store: Store, decisions: Sequence[str]) -> dict[str, RecordedVerdict]:
    """Return the final verdicts on decisions by their ids; those of identical cases count for each of them.

    Args:
        store: the review store.
        decisions: ids; verdicts on others are not read.

    Raises:
        StoreError: the store cannot be read.
    """
    database = store._database
    rows: list[Row[Any]] = []
    with database.read() as connection:
        final = sa.and_(~IS_PENDING, REVIEWS.c.final_at <= database.now(connection), REVIEWS.c.draft.is_not(None))
        columns = (REVIEWS.c.draft, REVIEWS.c.kind)
        own = sa.select(REVIEWS.c.decision_id, *columns).where(final)
        repeated = sa.select(REPEATS.c.decision_id, *columns).join(REVIEWS, REVIEWS.c.id == REPEATS.c.review_id)
        for begin in range(0, len(decisions), _AT_ONCE):
            some = decisions[begin : begin + _AT_ONCE]
            rows += connection.execute(own.where(REVIEWS.c.decision_id.in_(some)))
            rows += connection.execute(repeated.where(final, REPEATS.c.decision_id.in_(some)))
    return {row.decision_id: RecordedVerdict(row.draft == "wrong", row.kind) for row in rows}


def _call(event: Mapping[str, Any]) -> RecordedCall:
    attempts = tuple(
        RecordedAttempt(each["source"], each["scores"], each["ood_score"], each["failed"], tuple(each["defects"]))
        for each in event["tried"]
    )
    subject, at, route, policy, action = (event[name] for name in ("subject", "at", "route", "policy", "action"))
    return RecordedCall(subject, at, route, policy, action, attempts, event["policy_sha256"])


def _first_since(log: AuditLog, since: str) -> int:
    """Return the number of the first entry from a time on, by halving: entries are in the order of their times."""
    low, high = 0, len(log)
    while low < high:
        middle = (low + high) // 2
        entry = next(log.entries(middle), None)
        if entry is None or json.loads(entry.event)["at"] >= since:
            high = middle
        else:
            low = middle + 1
    return low
