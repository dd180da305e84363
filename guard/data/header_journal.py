"""Journals that are bound to the settings of their run, which they keep by name in a table of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from guard.data.sqlite_journal import JournalFile, ShardHeader
from guard.errors import InputError


class HeaderJournal(JournalFile):
    """A journal that belongs to one run, and perhaps to one shard of it. Use as a context manager."""

    #: Name of the table of rows, and the statement that creates it; its primary key is ``key``.
    ROWS: ClassVar[str]
    SCHEMA: ClassVar[str]

    def __init__(self, path: str | Path, header: Mapping[str, str], shard: ShardHeader | None = None) -> None:
        super().__init__(path, shard)
        try:
            with self._translated():
                self._set_up(header)
            self._check_header(header)
            self._check_shard()
        except BaseException:
            self._db.close()
            raise

    def keys(self) -> set[str]:
        """Return the keys of all rows in the journal, including skipped ones."""
        with self._translated():
            return {key for (key,) in self._db.execute(f"SELECT key FROM {self.ROWS}")}

    def _set_up(self, header: Mapping[str, str]) -> None:
        self._claim(("header", self.ROWS))
        # Tables and header in one transaction: a journal with half a header would match no run.
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS header (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._db.execute(self.SCHEMA)
        if not self._db.execute("SELECT count(*) FROM header").fetchone()[0]:
            self._db.executemany("INSERT INTO header VALUES (?, ?)", header.items())
            self._begin_shard()
        self._db.execute("COMMIT")

    def _check_header(self, header: Mapping[str, str]) -> None:
        with self._translated():
            stored = dict(self._db.execute("SELECT name, value FROM header"))
        differing = [name for name in header if stored.get(name) != header[name]]
        if differing:
            details = "; ".join(f"{name}: {stored.get(name)} there, {header[name]} now" for name in differing)
            raise InputError(
                f"'{self.path}' holds the answers of another run",
                why=details,
                fix="Give another file, or delete this one to start again",
            )
