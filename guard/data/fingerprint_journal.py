"""Journals of a guard's work: bound to the fingerprint of its models, scorers and rules."""

from __future__ import annotations

from abc import abstractmethod

from guard.data.sqlite_journal import JournalFile
from guard.errors import InputError
from guard.policy.certificate import Fingerprint


class FingerprintJournal(JournalFile[Fingerprint]):
    """A journal whose run is identified by a fingerprint. Use as a context manager."""

    @abstractmethod
    def _create_rows(self) -> None:
        """Create the table of rows where there is none."""

    def _create_tables(self) -> None:
        self._db.execute(f"CREATE TABLE IF NOT EXISTS {self.TABLES[0]} (content TEXT NOT NULL)")
        self._create_rows()

    def _write_header(self, header: Fingerprint) -> None:
        self._db.execute(f"INSERT INTO {self.TABLES[0]} VALUES (?)", (header.model_dump_json(),))

    def _check_header(self, header: Fingerprint) -> None:
        with self._translated():
            stored = str(self._db.execute(f"SELECT content FROM {self.TABLES[0]}").fetchone()[0])
        try:
            there = Fingerprint.model_validate_json(stored)
        except ValueError as error:
            raise InputError(f"'{self.path}' is damaged", why="its header", fix="Delete it to start again") from error
        differing = there.differences(header)
        if differing:
            raise InputError(
                f"'{self.path}' holds the answers of another run",
                why="; ".join(differing),
                fix="Give another file with --journal, or delete this one to start again",
            )
