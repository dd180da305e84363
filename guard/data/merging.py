"""Merge the journals of all shards of a run into the journal that one process would have written."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from guard.data.shards import Shard
from guard.data.sqlite_journal import SHARD_TABLE, ShardHeader, read_shard
from guard.errors import InputError
from guard.files.output_file import check_writable
from guard.files.write_whole import replacing

_RECORDED = frozenset({"header", "answers"})
#: Tables of each kind of journal: that which says whose run it is, that of rows; and the command that writes it.
_KINDS = {
    _RECORDED: ("header", "answers", "guard record"),
    frozenset({"fingerprint", "trials"}): ("fingerprint", "trials", "guard certify"),
    frozenset({"scoring", "scores"}): ("scoring", "scores", "guard score"),
}
#: Shards that an error names one by one.
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class MergeResult:
    """A merged journal.

    Attributes:
        out: the journal.
        shards: number of journals in it.
        rows: number of rows in it, including those that the model could not be asked.
        command: whose journal it is, such as ``guard record``.
    """

    out: Path
    shards: int
    rows: int
    command: str


@dataclass(frozen=True, slots=True)
class _Opened:
    """The open journal of a shard."""

    path: Path
    db: sqlite3.Connection
    tables: frozenset[str]
    run: list[tuple[Any, ...]]
    shard: ShardHeader

    @property
    def rows(self) -> int:
        found: int = self.db.execute(f"SELECT count(*) FROM {_KINDS[self.tables][1]}").fetchone()[0]
        return found


def merge_shards(journals: Sequence[str | Path], *, out: str | Path) -> MergeResult:
    """Join the journals of all shards into the journal that one process would have written.

    Nothing is asked. Give the result to the same command as before, without its shard: it finds every row answered and
    writes its output.

    Args:
        journals: one of each shard, in any order.
        out: the journal to write; no file may be there.

    Raises:
        InputError: a shard is missing, given twice or not finished, a journal belongs to another run or is in use, or
            the output cannot be written.

    Examples:
        >>> merge_shards(["answers.parquet.1-of-2.journal"], out="whole.journal")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out = Path(out)
    check_writable(out, "journal")
    if out.exists():
        raise InputError(f"There is already a file '{out}'", why="it may hold answers", fix="Give another --out")
    paths = _distinct(journals)
    with contextlib.ExitStack() as opened:
        shards = sorted((opened.enter_context(_open(path)) for path in paths), key=_number)
        _check(shards)
        with replacing(out, private=True) as scratch:
            rows = _write(shards, scratch)
    return MergeResult(out, len(shards), rows, _KINDS[shards[0].tables][2])


def _distinct(journals: Sequence[str | Path]) -> list[Path]:
    """Return the journals' paths; each is opened and locked once."""
    if not journals:
        raise InputError("There is no journal to merge", fix="Give the journals of all shards")
    paths = [Path(path) for path in journals]
    names = Counter(path.resolve() for path in paths)
    if twice := [path for path in paths if names[path.resolve()] > 1]:
        raise InputError(f"The journal '{twice[0]}' is given twice", fix="Give each shard's journal once")
    return paths


def is_finished(journal: Path) -> bool:
    """Return whether a shard's journal is there, and has each of the shard's rows.

    Raises:
        InputError: it is no shard's journal, or a run uses it.
    """
    if not journal.is_file():
        return False
    with _open(journal) as opened:
        return opened.rows == opened.shard.rows


def _number(opened: _Opened) -> int:
    return opened.shard.number


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Opened]:
    """Open a journal, and lock it so that no run adds to it."""
    if not path.is_file():
        raise InputError(f"There is no journal '{path}'", fix="Give the journals that the shards have written")
    # Opened for writing although nothing is written: a read-only connection leaves files behind.
    with contextlib.closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as db:
        with _translated(path):
            db.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            kind = frozenset(tables - {SHARD_TABLE})
            shard = read_shard(db) if kind in _KINDS else None
            run = db.execute(f"SELECT * FROM {_KINDS[kind][0]} ORDER BY rowid").fetchall() if shard else []
        if shard is None:
            raise InputError(
                f"'{path}' is not the journal of a shard", fix="Give files that --shard has written, and no others"
            )
        yield _Opened(path, db, kind, run, shard)


# -- what belongs together ---------------------------------------------------------------------


def _check(shards: Sequence[_Opened]) -> None:
    """Refuse journals that are not all shards of one run, each once and finished."""
    first = shards[0]
    for other in shards[1:]:
        if why := _difference(first, other):
            raise InputError(
                f"'{first.path}' and '{other.path}' are of different runs", why=why, fix="Merge shards of one run only"
            )
    for one, following in pairwise(shards):
        if one.shard.number == following.shard.number:
            raise InputError(
                f"The shard {_name(one)} is given twice",
                why=f"'{one.path}' and '{following.path}'",
                fix="Give one of them",
            )
    _check_all_there(shards)
    for each in shards:
        if each.rows != each.shard.rows:
            raise InputError(
                f"The shard {_name(each)} is not finished",
                why=f"'{each.path}' has {each.rows} of its {each.shard.rows} rows",
                fix=f"Run its command again, with --shard {_name(each)}: it continues where it stopped",
            )


def _difference(one: _Opened, other: _Opened) -> str:
    """Return why two journals do not belong to one run; empty if they do."""
    if one.tables != other.tables:
        return f"one is of {_KINDS[one.tables][2]}, the other of {_KINDS[other.tables][2]}"
    if one.shard.count != other.shard.count:
        return f"one is of {one.shard.count} shards, the other of {other.shard.count}"
    if one.shard.whole != other.shard.whole:
        return "their data, limit or seed differ: the runs have other rows, or rows in another order"
    if set(one.run) == set(other.run):
        return ""
    if one.tables != _RECORDED:
        return "their model, scorer or rules differ"
    names = sorted({str(name) for name, _ in set(one.run) ^ set(other.run)})
    return f"their settings differ: {', '.join(names)}"


def _check_all_there(shards: Sequence[_Opened]) -> None:
    count = shards[0].shard.count
    missing = sorted(set(range(1, count + 1)) - {each.shard.number for each in shards})
    if missing:
        named = ", ".join(f"{number}/{count}" for number in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise InputError(f"Shards are missing: {named}{more}", fix="Give the journals of all shards")


def _name(opened: _Opened) -> str:
    return str(Shard(opened.shard.number, opened.shard.count))


# -- the merged journal ------------------------------------------------------------------------


def _write(shards: Sequence[_Opened], path: Path) -> int:
    """Write all rows, one of each shard in turn, as one process would have; return their number."""
    header, content, _ = _KINDS[shards[0].tables]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        with _translated(path):
            db.execute("BEGIN")
            for (statement,) in shards[0].db.execute(
                "SELECT sql FROM sqlite_master WHERE type = 'table' AND name IN (?, ?)", (header, content)
            ):
                db.execute(statement)
            _copy(db, header, shards[0].run)
        for turn in _turns(shards, content):
            with _translated(path):
                _copy(db, content, turn)
        with _translated(path):
            db.execute("COMMIT")
            rows: int = db.execute(f"SELECT count(*) FROM {content}").fetchone()[0]
    return rows


def _turns(shards: Sequence[_Opened], table: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the first row of each shard, then the second of each, and so on."""
    cursors = [_rows(each, table) for each in shards]
    for turn in zip_longest(*cursors):
        yield [row for row in turn if row is not None]


def _rows(opened: _Opened, table: str) -> Iterator[tuple[Any, ...]]:
    with _translated(opened.path):
        yield from opened.db.execute(f"SELECT * FROM {table} ORDER BY rowid")


def _copy(db: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        db.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, OSError) as error:
        fix = (
            "Wait for the run that uses it" if "locked" in str(error) else "Run its command again, or restore the file"
        )
        raise InputError(f"Cannot use the journal '{path}'", why=str(error), fix=fix) from error
