"""How far a long command is: bars on a terminal, a line a minute in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from guard.cli.output import console

if TYPE_CHECKING:
    from rich.progress import TaskID

    from guard.data.questions import Row

#: Seconds between two lines of the same work, where nobody watches a bar.
EVERY = 60.0


class Progress:
    """Bars on standard error, one for each kind of work; without a terminal, lines."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=self._console, disable=not self._console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, work: str, done: int, total: int) -> None:
        """So many pieces of some work are done."""
        if not self._console.is_terminal:
            self._tell(work, done, total)
            return
        if work not in self._tasks:
            self._tasks[work] = self._bars.add_task(work, total=total)
        self._bars.update(self._tasks[work], completed=done)

    def _tell(self, work: str, done: int, total: int) -> None:
        now, last = time.monotonic(), self._told.get(work)
        if last is None or done >= total or now - last >= EVERY:
            self._told[work] = now
            self._console.print(f"{work}: {done} of {total}", markup=False, soft_wrap=True)


def under_progress(asked: Iterable[object], *, rows: Sequence[tuple[str, Row]], known: set[str]) -> None:
    """Work through an iterator of questions and say how far it is.

    Args:
        asked: yields once for each of the rows that is not known yet.
        rows: all that there are.
        known: keys of those that were asked before.
    """
    from guard.data.sqlite_journal import row_key

    done = sum(row_key(dataset, row) in known for dataset, row in rows)
    with Progress() as progress:
        progress("asking", done, len(rows))
        for number, _ in enumerate(asked, start=done + 1):
            progress("asking", number, len(rows))
