"""Numbered migrations of the review store, carried out by Alembic.

Adding one: write ``versions/v0003_what.py`` with ``revision = "0003"``, raise `HEAD`, and change
``tables.py``; a test holds all three together. Released migrations are never edited.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from guard.errors import StoreError
from guard.review.migrations.tables import REVIEWS

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["HEAD", "VERSION_TABLE", "check_known", "check_versioned", "current", "downgrade", "upgrade"]

#: The revision that this guard reads and writes.
HEAD = "0016"

_REVISIONS = [f"{number:04d}" for number in range(1, int(HEAD) + 1)]

#: A name of our own, so that a PostgreSQL database can be shared with another Alembic user.
VERSION_TABLE = "guard_version"

# Alembic's `context` and `op` belong to the process, not to the call.
_ONE_AT_A_TIME = threading.Lock()


def current(connection: Connection) -> str | None:
    """Return the database's revision; None where there is no review store yet."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision = connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE)))
    return None if revision is None else str(revision)


def check_versioned(tables: Iterable[str], revision: str | None) -> None:
    """Refuse a store whose version is lost: what its tables hold would be a guess.

    Raises:
        StoreError: there are reviews, and no version.
    """
    if revision is None and REVIEWS.name in tables:
        raise StoreError(
            "The review store has reviews, but the version of its schema is missing",
            why=f"the table {VERSION_TABLE} is empty or gone",
            fix="Restore the store from a backup, or give another one with --store or GUARD_STORE",
        )


def upgrade(connection: Connection, *, to: str = HEAD) -> None:
    """Bring a database to a revision, inside the caller's transaction.

    The caller holds the database's write lock, so several processes may open a store at once.

    Raises:
        StoreError: the database was written by a newer guard, or its revision is damaged.
    """
    revision = current(connection)
    check_versioned(sa.inspect(connection).get_table_names(), revision)
    check_known(revision)
    if revision != to:
        _run("upgrade", connection, to)


def downgrade(connection: Connection, *, to: str) -> None:
    """Take a database back to an earlier revision, inside the caller's transaction.

    What the earlier schema has no place for is lost. Revisions before 0003 cannot be reached.
    """
    _run("downgrade", connection, to)


def _run(direction: Literal["upgrade", "downgrade"], connection: Connection, to: str) -> None:
    # Imported here: a store that is up to date opens without the cost of Alembic.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _ONE_AT_A_TIME:
        getattr(command, direction)(config, to)


def check_known(revision: str | None) -> None:
    """Refuse a revision that is not one of this guard's.

    Raises:
        StoreError: a newer guard has written it, or it is damaged.
    """
    if revision is None or revision in _REVISIONS:
        return
    if revision.isdecimal() and revision > HEAD:
        raise StoreError(
            f"The review store has schema {revision}, this guard knows schemas up to {HEAD}",
            why="a newer guard has written it",
            fix="Upgrade guard, or give this one a store of its own with --store or GUARD_STORE",
        )
    raise StoreError(
        f"The review store has schema {revision!r:.40}, which no guard has", fix="Restore it from a backup"
    )
