"""Journals of a guard's work: bound to the fingerprint of its models, scorers and rules."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from guard.data.sqlite_journal import JournalFile, ShardHeader
from guard.errors import InputError
from guard.policy.certificate import Fingerprint


class FingerprintJournal(JournalFile):
    """A journal that belongs to one fingerprint, and perhaps to one shard of the run."""

    #: Table that holds the fingerprint, and table of rows.
    TABLES: ClassVar[tuple[str, str]]

    def __init__(self, path: str | Path, fingerprint: Fingerprint, shard: ShardHeader | None = None) -> None:
        super().__init__(path, shard)
        try:
            with self._translated():
                stored = self._set_up(fingerprint)
            self._check(stored, fingerprint)
            self._check_shard()
        except BaseException:
            self._db.close()
            raise

    def keys(self) -> set[str]:
        """Return the keys of all rows in the journal, including skipped ones."""
        with self._translated():
            return {key for (key,) in self._db.execute(f"SELECT key FROM {self.TABLES[1]}")}

    @abstractmethod
    def _create_rows(self) -> None:
        """Create the table of rows where there is none."""

    def _set_up(self, fingerprint: Fingerprint) -> str:
        """Make the tables, and return the stored fingerprint."""
        header = self.TABLES[0]
        self._claim(self.TABLES)
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(f"CREATE TABLE IF NOT EXISTS {header} (content TEXT NOT NULL)")
        self._create_rows()
        if not self._db.execute(f"SELECT count(*) FROM {header}").fetchone()[0]:
            self._db.execute(f"INSERT INTO {header} VALUES (?)", (fingerprint.model_dump_json(),))
            self._begin_shard()
        self._db.execute("COMMIT")
        return str(self._db.execute(f"SELECT content FROM {header}").fetchone()[0])

    def _check(self, stored: str, fingerprint: Fingerprint) -> None:
        try:
            there = Fingerprint.model_validate_json(stored)
        except ValueError as error:
            raise InputError(f"'{self.path}' is damaged", why="its header", fix="Delete it to start again") from error
        differing = there.differences(fingerprint)
        if differing:
            raise InputError(
                f"'{self.path}' holds the answers of another run",
                why="; ".join(differing),
                fix="Give another file with --journal, or delete this one to start again",
            )
