"""A SQLite file that one run writes, a transaction a row, so that it can be killed at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from guard.errors import InputError
from guard.private_files import create_private


class JournalFile:
    """What journals share: opening, one writer at a time, errors that say what to do."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._translated():
            if str(path) != ":memory:":
                create_private(self.path)  # it holds prompts and answers
            self._db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _claim(self, tables: Iterable[str]) -> None:
        """Keep other writers out, and refuse a file that has other tables than these."""
        # One writer at a time, and a commit survives the death of the process.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        there = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if there - set(tables):
            raise InputError(f"'{self.path}' is a database of something else", fix="Give another file")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a path or damaged bytes that are no text
            fix = "Another run may be using it" if "locked" in str(error) else "Give another file"
            raise InputError(f"Cannot use the journal '{self.path}'", why=str(error), fix=fix) from error
