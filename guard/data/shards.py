"""Shards of a long run: parts of its rows for several processes, each with its own journal.

    guard record --shard 1/8 ... guard record --shard 8/8 -> eight journals -> guard merge -> the journal of one process

A row's shard depends only on the rows, so shards run independently. Each journal stores the number of its shard and a
digest of all rows of the run, so that `merge_shards` can refuse journals that do not belong together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from guard.data.questions import Row
from guard.data.sqlite_journal import ShardHeader, asked_digest, row_key
from guard.errors import InputError
from guard.files.output_file import choose_journal

#: Shards of one run at most.
MOST_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a run.

    Attributes:
        number: from 1.
        count: of all parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a shard.

        Raises:
            InputError: the text is not NUMBER/COUNT.

        Examples:
            >>> Shard.parse("3/8")
            Shard(number=3, count=8)
            >>> Shard.parse("0/8")
            Traceback (most recent call last):
            guard.errors.InputError: '0/8' is not a shard. ...
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text) if isinstance(text, str) else None
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count <= MOST_SHARDS:
            raise InputError(
                f"{text!r:.40} is not a shard",
                why=f"a shard is NUMBER/COUNT, from 1/COUNT to COUNT/COUNT, with at most {MOST_SHARDS:,} shards",
                fix="Write --shard 3/8 (shard='3/8') for the third of eight",
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, position: int) -> bool:
        """Return whether the row at a position of the whole run, from 0, is in this shard."""
        return position % self.count == self.number - 1

    def journal(self, out: Path, given: str | Path | None) -> Path:
        """Return the shard's journal: the given file, or ``OUT.3-of-8.journal`` beside the output of the whole run.

        Examples:
            >>> Shard(3, 8).journal(Path("answers.parquet"), None).name
            'answers.parquet.3-of-8.journal'
        """
        return choose_journal(out.with_name(f"{out.name}.{self.number}-of-{self.count}"), given)

    def header(self, keys: Sequence[str], digests: Sequence[str]) -> ShardHeader:
        """Return the header of the shard's journal.

        Args:
            keys: of all rows of the run, in order, each once.
            digests: what each row asks; see `guard.data.sqlite_journal.asked_digest`.

        Raises:
            InputError: the run has fewer rows than shards.
        """
        if len(keys) < self.count:
            raise InputError(
                f"There are {self.count} shards and {len(keys)} rows",
                why=f"the shard {self} might have nothing to do",
                fix="Use fewer shards",
            )
        whole = sha256()
        for key, digest in zip(keys, digests, strict=True):
            whole.update(f"{len(key)}:{key}{digest}\n".encode("utf-8", "surrogatepass"))
        rows = len(range(self.number - 1, len(keys), self.count))
        return ShardHeader(self.number, self.count, rows, whole.hexdigest())


@dataclass(frozen=True, slots=True)
class RunPart:
    """The rows that one process asks.

    Attributes:
        rows: of this part, in the order of the run, as pairs of data set name and row.
        header: the header of the shard's journal; None if the part is the whole run.
    """

    rows: Sequence[tuple[str, Row]]
    header: ShardHeader | None

    @property
    def keys(self) -> set[str]:
        """Keys of the rows."""
        return {row_key(*pair) for pair in self.rows}


def select_part(rows: Sequence[tuple[str, Row]], shard: Shard | None) -> RunPart:
    """Return the rows of a shard, or all rows where there is none.

    Rows are dealt out in turn, so all shards have about the same number of rows of each data set. A duplicate row is in
    one shard only.

    Raises:
        InputError: there are fewer rows than shards.
    """
    if shard is None:
        return RunPart(rows, None)
    by_key = {row_key(*pair): pair for pair in reversed(rows)}
    distinct = list(dict.fromkeys(row_key(*pair) for pair in rows))
    header = shard.header(distinct, [asked_digest(by_key[key][1]) for key in distinct])
    return RunPart([by_key[key] for at, key in enumerate(distinct) if shard.has(at)], header)
