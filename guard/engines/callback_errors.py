"""Exceptions that Python raises inside a callback from C, where they have no caller to go to.

Python runs signal handlers between any two of its instructions, the first of a callback included,
and prints what they raise there as "ignored". So that Ctrl-C ends a request, it is kept until the
C function has returned, and raised then.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: How Python's reports of exceptions in ctypes callbacks begin, after "Exception ignored".
_CTYPES = "ctypes callback"


class KeptError:
    """The first exception that a callback could not raise."""

    def __init__(self) -> None:
        self._kept: BaseException | None = None

    def keep(self, error: BaseException) -> None:
        """Remember an exception, unless there is one already."""
        self._kept = self._kept or error

    @contextmanager
    def raised_after(self) -> Iterator[None]:
        """Surround a call into C whose callbacks are Python; raises the exception that was kept meanwhile."""
        self._kept = None
        with self._from_ctypes():
            yield
        kept, self._kept = self._kept, None
        if kept is not None:
            raise kept

    @contextmanager
    def _from_ctypes(self) -> Iterator[None]:
        """Keep what is raised before a callback's own ``try`` begins, too.

        Only the main thread runs signal handlers, so only there the hook is exchanged.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        default = sys.unraisablehook

        def keep(report: Any) -> None:
            if _CTYPES in (report.err_msg or "") and report.exc_value is not None:
                self.keep(report.exc_value)
            else:
                default(report)

        sys.unraisablehook = keep
        try:
            yield
        finally:
            sys.unraisablehook = default
