"""Progress of a long command: bars on a terminal, a line per minute in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from guard.cli.output import console

if TYPE_CHECKING:
    from rich.progress import TaskID

    from guard.data.progress import Progress

#: Seconds between two lines about the same work if standard error is not a terminal.
EVERY = 60.0


class ProgressBars:
    """Progress bars on standard error, one for each kind of work; lines without a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=self._console, disable=not self._console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show the state of one kind of work; this is a progress callback of the library."""
        if not self._console.is_terminal:
            self._print(progress)
            return
        if progress.work not in self._tasks:
            self._tasks[progress.work] = self._bars.add_task(progress.work, total=progress.total)
        self._bars.update(self._tasks[progress.work], completed=progress.done)

    def _print(self, progress: Progress) -> None:
        now, last = time.monotonic(), self._printed.get(progress.work)
        if last is None or progress.done >= progress.total or now - last >= EVERY:
            self._printed[progress.work] = now
            line = f"{progress.work}: {progress.done} of {progress.total}"
            self._console.print(line, markup=False, soft_wrap=True)
