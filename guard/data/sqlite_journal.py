"""A SQLite file that one run writes with one transaction per row, so that it can be killed at any moment."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from guard.data.prompts import question_prompt
from guard.data.questions import Question, Row
from guard.errors import InputError
from guard.files.output_file import has_blank_name
from guard.files.private_files import create_private


def row_key(dataset: str, row: Row) -> str:
    """Return a row's key in a journal."""
    return f"{dataset}/{row.id}"


def asked_digest(row: Row) -> str:
    """Return a digest of what a row asks a model: passage, question and choices, or prompt and response.

    It has 32 hexadecimal digits. Accepted answers and graders are not part of it, since they can be improved without
    changing the model's answer.
    """
    prompt = question_prompt(row, system="") if isinstance(row, Question) else row.prompt
    response = None if isinstance(row, Question) else row.response
    content: list[Any] = [prompt.messages, prompt.text, response]
    if prompt.tools or prompt.template_options:
        content += [prompt.tools, prompt.template_options]
    canonical = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def differing_keys(asked: Iterable[tuple[str, str]], stored: Mapping[str, str]) -> list[str]:
    """Return the keys that a journal has for something else.

    Args:
        asked: keys and digests of rows.
        stored: the journal's digests by key.
    """
    return [key for key, digest in asked if stored.get(key, digest) != digest]


HeaderT = TypeVar("HeaderT")

#: The table in which the journal of a shard keeps its `ShardHeader`.
SHARD_TABLE = "shard"


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What the journal of a shard keeps of its run; see `guard.data.shards`.

    Attributes:
        number: of the shard, from 1.
        count: of all shards.
        rows: of this shard.
        whole: digest of the keys and prompts of all rows of the run, in order.
    """

    number: int
    count: int
    rows: int
    whole: str

    def differences(self, now: ShardHeader) -> list[str]:
        """Return in words what another header says otherwise."""
        shards = [f"{each.number}/{each.count}" for each in (self, now)]
        found = [f"shard: {shards[0]} there, {shards[1]} now"] if shards[0] != shards[1] else []
        return [*found, "the run has other rows now, or rows in another order"] if self.whole != now.whole else found


def read_shard(db: sqlite3.Connection) -> ShardHeader | None:
    """Return the shard that an open journal belongs to; None for the journal of a whole run.

    Raises:
        ValueError: it is damaged.
    """
    if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (SHARD_TABLE,)).fetchone()[0]:
        return None
    found = db.execute(f"SELECT number, count, rows, whole FROM {SHARD_TABLE}").fetchall()
    if len(found) != 1 or [type(value) for value in found[0]] != [int, int, int, str]:
        raise ValueError("what it says of its shard is damaged")
    return ShardHeader(*found[0])


class JournalFile(ABC, Generic[HeaderT]):
    """The common part of journals: opening, one writer at a time, one run, one shard, errors with a fix."""

    #: Table of what identifies the run, and table of rows, whose primary key is ``key``.
    TABLES: ClassVar[tuple[str, str]]

    def __init__(self, path: str | Path, header: HeaderT, shard: ShardHeader | None = None) -> None:
        """
        Args:
            path: of the file.
            header: what identifies the run.
            shard: that the journal belongs to; None for a whole run.
        """
        self.path, self._shard = Path(path), shard
        if has_blank_name(self.path):
            raise InputError(f"The journal's path {str(path)!r} is blank", fix="Name a file")
        self._is_new = str(path) != ":memory:" and not self.path.exists()
        with self._translated():
            if str(path) != ":memory:":
                create_private(self.path)  # it holds prompts and answers
            self._db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            with self._translated():
                self._set_up(header)
            self._check_header(header)
            self._check_shard()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file; delete it if it is new and the run failed before its first row."""
        useless = kind is not None and self._is_new and not self.keys()
        self._db.close()
        if useless:
            self.path.unlink(missing_ok=True)

    def keys(self) -> set[str]:
        """Return the keys of all rows in the journal, including skipped ones."""
        with self._translated():
            return {key for (key,) in self._db.execute(f"SELECT key FROM {self.TABLES[1]}")}

    @abstractmethod
    def answered(self) -> set[str]:
        """Return the keys of the rows that need not be asked again.

        A skipped row is tried again by each run: the next may have a larger context.
        """

    @abstractmethod
    def _create_tables(self) -> None:
        """Create both tables where there are none."""

    @abstractmethod
    def _write_header(self, header: HeaderT) -> None:
        """Store what identifies the run."""

    @abstractmethod
    def _check_header(self, header: HeaderT) -> None:
        """Refuse the journal of another run, and a damaged header.

        Raises:
            InputError: it is one of these.
        """

    def _set_up(self, header: HeaderT) -> None:
        self._claim()
        # Tables and header in one transaction: a journal with half a header would match no run.
        self._db.execute("BEGIN IMMEDIATE")
        self._create_tables()
        if not self._db.execute(f"SELECT count(*) FROM {self.TABLES[0]}").fetchone()[0]:
            self._write_header(header)
            self._begin_shard()
        self._db.execute("COMMIT")

    def _claim(self) -> None:
        """Lock the file for other writers, and refuse a file with other tables."""
        # One writer at a time, and a commit survives the death of the process.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        there = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if there - {*self.TABLES, SHARD_TABLE}:
            raise InputError(f"'{self.path}' is a database with other content", fix="Give another file")

    def _begin_shard(self) -> None:
        """Write the shard of a new journal, in the transaction that makes its tables."""
        if self._shard is not None:
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS {SHARD_TABLE} "
                "(number INTEGER NOT NULL, count INTEGER NOT NULL, rows INTEGER NOT NULL, whole TEXT NOT NULL)"
            )
            self._db.execute(f"INSERT INTO {SHARD_TABLE} VALUES (?, ?, ?, ?)", astuple(self._shard))

    def _check_shard(self) -> None:
        """Refuse the journal of another shard, of a whole run, or of a shard of other rows."""
        with self._translated():
            stored = read_shard(self._db)
        if stored == self._shard:
            return
        if stored is None:
            why = "it belongs to a whole run, and not to a shard"
        elif self._shard is None:
            why = f"it belongs to the shard {stored.number}/{stored.count}"
        else:
            why = "; ".join(stored.differences(self._shard))
        raise InputError(
            f"'{self.path}' is not the journal of this part of the run",
            why=why,
            fix="Give the same --shard and data as before, or another --journal; guard merge joins shards",
        )

    def _check_asked(self, rows: Iterable[tuple[str, Row]], stored: Mapping[str, str]) -> None:
        """Raise InputError where a row's key belongs to another question."""
        other = differing_keys(((row_key(dataset, row), asked_digest(row)) for dataset, row in rows), stored)
        if other:
            count = "1 row" if len(other) == 1 else f"{len(other)} rows"
            raise InputError(
                f"'{self.path}' has answers to other questions",
                why=f"{count} of the data have the id of a different row in the journal; the first is '{other[0]}'",
                fix="Give another file with --journal, or other ids to the rows that changed",
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a path or damaged bytes that are no text
            fix = "Another run may be using it" if "locked" in str(error) else "Give another file"
            raise InputError(f"Cannot use the journal '{self.path}'", why=str(error), fix=fix) from error
