"""Who has some cases now, and which are decided: a few columns, for pages that stay open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from guard.review.migrations.tables import REVIEWS
from guard.review.queries import on_routes
from guard.review.records import storable_text

if TYPE_CHECKING:
    from guard.review.store import Store

#: Cases that are asked about at once, at most.
MOST = 100


@dataclass(frozen=True, slots=True)
class CaseState:
    """What of a case changes while others work.

    Attributes:
        id, status, reviewer, assigned_to: as in `guard.review.records.Review`.
        holder: who has it claimed now, or None.
    """

    id: str
    status: str
    reviewer: str | None
    assigned_to: str | None
    holder: str | None


def case_states(store: Store, ids: Sequence[str], *, routes: frozenset[str] | None = None) -> list[CaseState]:
    """Return the states of cases; those that are not there, or on other routes, are left out.

    Args:
        store: where they are.
        ids: whole ids, of which the first `MOST` are looked up.
        routes: only these; None for all.
    """
    names = ("id", "status", "reviewer", "assigned_to", "claimed_by", "claimed_until")
    wanted = [storable_text(name) for name in ids[:MOST]]
    with store._database.read() as connection:
        at = store._database.now(connection)
        query = sa.select(*(REVIEWS.c[name] for name in names)).where(REVIEWS.c.id.in_(wanted), *on_routes(routes))
        rows = connection.execute(query).all()
    return [_state(row, at) for row in rows]


def _state(row: sa.Row[tuple[str, ...]], at: str) -> CaseState:
    held = row.status == "pending" and row.claimed_until is not None and row.claimed_until > at
    return CaseState(row.id, row.status, row.reviewer, row.assigned_to, row.claimed_by if held else None)
