"""Exceptions that Python raises inside a callback from C, which cannot propagate to a caller.

Python runs signal handlers between any two of its instructions, the first of a callback included,
and prints what they raise there as "ignored". So that Ctrl-C ends a request, it is kept until the
C function has returned, and raised then.

Elsewhere such an exception passes through code that takes a failure for data. That code asks
`is_from_signal_handler` first, or `signal_handler_error` where other code may have raised another error from it.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
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
        """Wrap a call into C that calls back into Python; re-raise the exception that a callback kept."""
        self._kept = None
        with self._from_ctypes():
            yield
        kept, self._kept = self._kept, None
        if kept is not None:
            raise kept

    @contextmanager
    def _from_ctypes(self) -> Iterator[None]:
        """Also keep exceptions raised before a callback's own ``try`` begins.

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


def is_from_signal_handler(error: BaseException) -> bool:
    """Return whether a Python signal handler raised an error, in which case the call must end although nothing has
    failed.
    """
    codes = {code for number in signal.valid_signals() if (code := _handler_code(signal.getsignal(number)))}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def signal_handler_error(error: BaseException) -> BaseException | None:
    """Return the exception of a Python signal handler: an error itself or one of its causes; None if neither is."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if is_from_signal_handler(cause):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__
    return None


def _handler_code(handler: Any) -> CodeType | None:
    """Return the code of a handler: a function, method, partial or callable object; None for the default handlers."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None
