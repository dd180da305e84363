"""Figures of the queue: waiting cases, verdicts by reviewer, and agreement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.review.agreement import cohen_kappa, krippendorff_alpha
from guard.review.migrations.tables import EVENTS, REVIEWS
from guard.review.queries import IS_PENDING

#: Fewest shared cases for the agreement of two people.
FEWEST_SHARED = 20


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two people.

    Attributes:
        reviewers: the two people.
        cases: number of cases on which both gave an opinion.
        kappa: Cohen's kappa; None with fewer than `FEWEST_SHARED` cases, or if it is undefined.
    """

    reviewers: tuple[str, str]
    cases: int
    kappa: float | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue in figures.

    Attributes:
        by_status: cases by status; statuses without cases are left out.
        audits: audit cases by ``waiting``, ``overdue``, ``right`` and ``wrong``, which `by_status` counts too.
        oldest: when the case that has waited longest came in; None where none waits.
        late, claimed, disputed: waiting cases that are late, that somebody has, on which two opinions differ.
        by_reviewer: verdicts and opinions by person and kind, such as ``{"ann": {"approved": 3, "opinion": 1}}``.
        shared: number of cases with two opinions.
        agreements: agreement of each pair of people with shared cases.
        alpha: Krippendorff's alpha over all cases with two opinions; None with fewer than `FEWEST_SHARED`.
    """

    by_status: Mapping[str, int]
    audits: Mapping[str, int]
    oldest: str | None
    late: int
    claimed: int
    disputed: int
    by_reviewer: Mapping[str, Mapping[str, int]]
    shared: int
    agreements: tuple[Agreement, ...]
    alpha: float | None


def read_stats(connection: Connection, at: str) -> QueueStats:
    """Return the queue in figures at a time; see `guard.review.store.Store.stats`."""
    by_status = connection.execute(
        sa.select(REVIEWS.c.status, sa.func.count().label("cases")).group_by(REVIEWS.c.status)
    )
    opinions = [labels for labels in _opinions(connection) if len(labels) > 1]
    agreements = tuple(_agreements(opinions))
    enough = len(opinions) >= FEWEST_SHARED
    return QueueStats(
        by_status={row.status: row.cases for row in by_status},
        audits=_audits(connection, at),
        oldest=connection.scalar(sa.select(sa.func.min(REVIEWS.c.created_at)).where(IS_PENDING)),
        late=_waiting(connection, REVIEWS.c.due_at <= at),
        claimed=_waiting(connection, REVIEWS.c.claimed_until > at),
        disputed=_waiting(connection, REVIEWS.c.disputed == 1),
        by_reviewer=_by_reviewer(connection),
        shared=len(opinions),
        agreements=agreements,
        alpha=krippendorff_alpha([list(labels.values()) for labels in opinions]) if enough else None,
    )


def _audits(connection: Connection, at: str) -> dict[str, int]:
    """Count audit cases by what has become of them; one that nobody has checked in time counts as wrong."""
    overdue = sa.case((REVIEWS.c.due_at <= at, "overdue"), else_="waiting")
    verdict = sa.case((IS_PENDING, overdue), else_=REVIEWS.c.draft)
    query = sa.select(verdict, sa.func.count()).where(REVIEWS.c.kind == sa.literal_column("'audit'"))
    found = {str(name): int(count) for name, count in connection.execute(query.group_by(verdict))}
    return {name: found.get(name, 0) for name in ("waiting", "overdue", "right", "wrong")}


def _waiting(connection: Connection, condition: sa.ColumnElement[bool]) -> int:
    query = sa.select(sa.func.count()).select_from(REVIEWS).where(IS_PENDING, condition)
    return int(connection.scalar(query) or 0)


def _by_reviewer(connection: Connection) -> dict[str, dict[str, int]]:
    """Count verdicts and opinions, without those that were undone."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    kinds = {"opinion": ("opinion", 1), "withdrawn": ("opinion", -1), "skipped": ("skipped", 1)}
    query = sa.select(EVENTS.c.who, EVENTS.c.what, sa.func.count()).where(EVENTS.c.what.in_(tuple(kinds)))
    for who, what, count in connection.execute(query.group_by(EVENTS.c.who, EVENTS.c.what)):
        kind, sign = kinds[what]
        found[who][kind] += sign * count
    verdicts = sa.select(REVIEWS.c.reviewer, REVIEWS.c.status, sa.func.count()).where(~IS_PENDING)
    for who, status, count in connection.execute(verdicts.group_by(REVIEWS.c.reviewer, REVIEWS.c.status)):
        found[who][status] += count
    return {who: dict(+counts) for who, counts in sorted(found.items()) if +counts}


def _opinions(connection: Connection) -> Iterator[dict[str, Hashable]]:
    """Yield the labels by person for each case with opinions."""
    query = sa.select(EVENTS.c.review_id, EVENTS.c.who, EVENTS.c.what, EVENTS.c.draft, EVENTS.c.verdict)
    query = query.where(EVENTS.c.what.in_(("opinion", "withdrawn"))).order_by(EVENTS.c.review_id, EVENTS.c.number)
    cases: dict[str, dict[str, Hashable]] = defaultdict(dict)
    for review_id, who, what, draft, verdict in connection.execute(query):
        if what == "opinion":
            cases[review_id][who] = draft or verdict
        else:
            cases[review_id].pop(who, None)
    yield from cases.values()


def _agreements(opinions: list[dict[str, Hashable]]) -> Iterator[Agreement]:
    pairs: dict[tuple[str, str], list[tuple[Hashable, Hashable]]] = defaultdict(list)
    for labels in opinions:
        for one, other in combinations(sorted(labels), 2):
            pairs[one, other].append((labels[one], labels[other]))
    for people, said in sorted(pairs.items()):
        yield Agreement(people, len(said), cohen_kappa(said) if len(said) >= FEWEST_SHARED else None)
