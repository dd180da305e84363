"""What several servers remember together for a while: small texts by kind, owner and name, gone when their time is up.

A server that finds nothing here refuses, or says that it knows nothing; nobody gets an answer because of a loss.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from guard.review.database import Database
from guard.review.migrations.tables import SHORT_LIVED
from guard.review.records import later

#: One write in this number removes what has expired.
_SWEEP_ONE_IN = 50


class ShortLived:
    """A table of short-lived texts. Safe under threads and processes; `Store.short_lived` returns the store's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(
        self, kind: str, owner: str, texts: Mapping[str, str], *, seconds: float, otherwise: str | None = None
    ) -> None:
        """Keep texts, in place of those with the same name; they are on disk when this returns.

        Args:
            kind: of the texts.
            owner: who may find them.
            texts: by name.
            seconds: for which they are kept.
            otherwise: what is kept where there is another text of that name; None for the new one.

        Raises:
            StoreError: the database failed.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            ends = later(now, seconds)
            rows = [
                {"kind": kind, "owner": owner, "name": name, "content": text, "ends_at": ends}
                for name, text in sorted(texts.items())  # in one order, so that two writers cannot wait for each other
            ]
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            insert = dialect.insert(SHORT_LIVED)
            new, old = insert.excluded, SHORT_LIVED.c
            same = sa.or_(old.ends_at <= now, old.content == new.content)
            content = new.content if otherwise is None else sa.case((same, new.content), else_=otherwise)
            changed = {"content": content, "ends_at": new.ends_at}
            connection.execute(insert.on_conflict_do_update(index_elements=_KEY, set_=changed), rows)
        if random.randrange(_SWEEP_ONE_IN) == 0:
            self.sweep()

    def find(self, kind: str, owner: str, name: str) -> str | None:
        """Return a text; None where there is none any more, or none of this owner.

        Raises:
            StoreError: the database failed.
        """
        wanted = (SHORT_LIVED.c.kind == kind, SHORT_LIVED.c.owner == owner, SHORT_LIVED.c.name == name)
        with self._database.read() as connection:
            at = self._database.now(connection)
            query = sa.select(SHORT_LIVED.c.content).where(*wanted, SHORT_LIVED.c.ends_at > at)
            found: str | None = connection.scalar(query)
        return found

    def sweep(self) -> int:
        """Remove what has expired, and return how many texts that were.

        Raises:
            StoreError: the database failed.
        """
        with self._database.write() as connection:
            at = self._database.now(connection)
            return int(connection.execute(sa.delete(SHORT_LIVED).where(SHORT_LIVED.c.ends_at <= at)).rowcount)


_KEY = [SHORT_LIVED.c.kind, SHORT_LIVED.c.owner, SHORT_LIVED.c.name]
