"""Whose turn it is at an engine, and for how long: fair queueing, deadlines, cancellation.

Written here, because no lock of the standard library is fair to threads and event loops at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from guard.errors import CancelledError, EngineTimeoutError

#: Seconds after which a waiter looks whether the one before it is still there.
POLL_S = 0.5


class Ticket(Future[None]):
    """A place in the queue. It is done when it is the holder's turn.

    Attributes:
        loop: of the task that holds it; None for a thread.
        working: how many pieces of work in other threads give it back, or go on with it, by themselves.
        abandoned: cleans up for a task that can no longer do so.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__()
        self.loop = loop
        self.working = 0
        self.abandoned: Callable[[], None] = lambda: None

    @property
    def dead(self) -> bool:
        """Whether nobody is left to give it back: its task was left in a loop that is closed."""
        return self.loop is not None and self.loop.is_closed() and not self.working


class FairQueue:
    """First come, first served access for threads and tasks alike (`threading.Lock` is not fair)."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._holder: Ticket | None = None

    def acquire(self, loop: asyncio.AbstractEventLoop | None = None) -> Ticket:
        """Queue up and return the ticket, which is done when its turn comes; give it back with `release`."""
        ticket = Ticket(loop)
        with self._mutex:
            self._waiting.append(ticket)
            self._admit()
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give the ticket back, whether its turn has come or not, and let the next one in."""
        with self._mutex:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            elif ticket is self._holder:
                self._holder = None
                self._admit()

    def poll(self) -> None:
        """Let the next one in where the holder is dead. Waiters call this now and then."""
        with self._mutex:
            self._admit()

    def _admit(self) -> None:
        if self._holder is not None:
            if not self._holder.dead:
                return
            self._holder.abandoned()
            self._holder = None
        while self._waiting and self._holder is None:
            ticket = self._waiting.popleft()
            if not ticket.dead:
                self._holder = ticket
                ticket.set_result(None)


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
        """Return the error that says the deadline has passed."""
        return EngineTimeoutError(f"No answer within {self.timeout_s:g} s", fix="Raise timeout_s, or lower max_tokens")
