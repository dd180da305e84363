"""Journals that are bound to the settings of their run, which they keep by name in a table of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from guard.data.sqlite_journal import JournalFile
from guard.errors import InputError


class HeaderJournal(JournalFile[Mapping[str, str]]):
    """A journal whose run is identified by settings with names. Use as a context manager."""

    #: The statement that creates the table of rows.
    SCHEMA: ClassVar[str]

    def _create_tables(self) -> None:
        self._db.execute("CREATE TABLE IF NOT EXISTS header (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._db.execute(self.SCHEMA)

    def _write_header(self, header: Mapping[str, str]) -> None:
        self._db.executemany("INSERT INTO header VALUES (?, ?)", header.items())

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
