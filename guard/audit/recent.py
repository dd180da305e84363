"""The end of the audit log: its last entries, and its last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from guard.audit.log import AuditLog, Entry
from guard.audit.tables import CHECKPOINTS, ENTRIES


@dataclass(frozen=True, slots=True)
class RecordedCheckpoint:
    """A checkpoint as the database keeps it.

    Attributes:
        size: number of entries.
        at: when it was made, ISO 8601 in UTC.
        root: of the tree, as hexadecimal digits.
        note: the signed note; None if it is not signed.
    """

    size: int
    at: str
    root: str
    note: str | None


def newest_entries(log: AuditLog, limit: int, *, before: int | None = None) -> list[Entry]:
    """Return the last entries, the newest first.

    Args:
        log: the log.
        limit: the largest number of entries.
        before: only those with smaller numbers than this.
    """
    query = sa.select(ENTRIES.c.number, ENTRIES.c.event, ENTRIES.c.leaf)
    query = query if before is None else query.where(ENTRIES.c.number < before)
    with log._database.read() as connection:
        return [Entry(*row) for row in connection.execute(query.order_by(ENTRIES.c.number.desc()).limit(limit))]


def latest_checkpoint(log: AuditLog) -> RecordedCheckpoint | None:
    """Return the newest checkpoint in the database; None before the first."""
    columns = (CHECKPOINTS.c.size, CHECKPOINTS.c.at, CHECKPOINTS.c.root, CHECKPOINTS.c.note)
    with log._database.read() as connection:
        row = connection.execute(sa.select(*columns).order_by(CHECKPOINTS.c.number.desc()).limit(1)).first()
    return None if row is None else RecordedCheckpoint(*row)
