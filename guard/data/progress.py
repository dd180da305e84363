"""Progress of a long procedure: one record and one callback for calibrate, record, certify and evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from guard.data.questions import Row
from guard.data.sqlite_journal import row_key


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of one kind of work.

    Attributes:
        work: what is being done, such as ``asking`` or ``smollm2: within``.
        done: number of finished pieces of this work, including those in a resumed journal.
        total: number of all pieces of this work.
    """

    work: str
    done: int
    total: int


#: Called in the calling thread, before the first piece and after each.
ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Do nothing; the default callback."""


def ask_with_progress(
    answers: Iterable[object], *, rows: Sequence[tuple[str, Row]], known: set[str], progress: ProgressCallback
) -> None:
    """Consume an iterator of answers and report each one.

    Args:
        answers: yields once for each row that is not known yet.
        rows: all rows, as pairs of data set name and row.
        known: keys of the rows that the journal has already.
        progress: called first with the number of known answers, then after each answer.
    """
    done = sum(row_key(dataset, row) in known for dataset, row in rows)
    progress(Progress("asking", done, len(rows)))
    for number, _ in enumerate(answers, start=done + 1):
        progress(Progress("asking", number, len(rows)))
