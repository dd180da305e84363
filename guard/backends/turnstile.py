"""Whose turn it is at an engine, and for how long: fair queueing, deadlines, cancellation."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from guard.errors import CancelledError, EngineTimeoutError


class Turnstile:
    """First come, first served access for threads and tasks alike (`threading.Lock` is not fair)."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self._busy = False

    def ticket(self) -> Future[None]:
        """Queue up. The future is done when it is the holder's turn; give it back with `leave`."""
        ticket: Future[None] = Future()
        with self._mutex:
            if self._busy:
                self._waiting.append(ticket)
            else:
                self._busy = True
                ticket.set_result(None)
        return ticket

    def leave(self, ticket: Future[None]) -> None:
        """Give the ticket back, whether its turn has come or not, and let the next one in."""
        with self._mutex:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return
            if self._waiting:
                self._waiting.popleft().set_result(None)
            else:
                self._busy = False


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raises when the deadline has passed or the caller has cancelled."""

    started: float
    timeout_s: float | None
    cancel: threading.Event | None

    @property
    def remaining_s(self) -> float | None:
        """Seconds left, or None without a deadline."""
        return None if self.timeout_s is None else self.started + self.timeout_s - time.monotonic()

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("The request was cancelled")
        if self.remaining_s is not None and self.remaining_s <= 0:
            raise self.timed_out()

    def timed_out(self) -> EngineTimeoutError:
        """The error that says the deadline has passed."""
        return EngineTimeoutError(f"No answer within {self.timeout_s:g} s", fix="Raise timeout_s, or lower max_tokens")
