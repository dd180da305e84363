"""What one call asks of the engine, and how its answer comes back from the engine's thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from guard.engines.constraint import Constraint
from guard.engines.protocols import Observer
from guard.engines.sampling import TokenSignals
from guard.errors import CancelledError, EngineTimeoutError
from guard.records import Generation, Limits, Prompt, Sampling

#: Seconds between two looks of a waiting caller at an event that can cancel its request.
CANCEL_POLL_S = 0.05
#: Seconds between two looks of any other waiting caller at its engine.
POLL_S = 0.5

#: What an engine puts into an outbox: text that is safe to show, and at the end the generation or an error.
Item = str | Generation | BaseException


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

    @property
    def poll_s(self) -> float:
        """Seconds that a caller may wait before it checks again."""
        poll, left = POLL_S if self.cancel is None else CANCEL_POLL_S, self.remaining_s
        return poll if left is None else max(0.0, min(poll, left))

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("The request was cancelled")
        if self.remaining_s is not None and self.remaining_s <= 0:
            raise EngineTimeoutError(
                f"No answer within {self.timeout_s:g} s", fix="Raise timeout_s, or lower max_tokens"
            )


class Outbox:
    """What comes back of one request, in order. The engine's thread writes, one caller reads.

    Args:
        loop: the event loop of a caller that is a task; None for a thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._news: asyncio.Future[None] | None = None  # what a task waits for
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._left = False
        #: Set once the engine has let go of the request.
        self.ended = threading.Event()

    @property
    def in_task(self) -> bool:
        """Whether the caller is a task of an event loop, which must not be blocked."""
        return self._loop is not None

    @property
    def abandoned(self) -> bool:
        """Whether nobody reads any more: the caller has left, or its event loop is closed."""
        return self._left or (self._loop is not None and self._loop.is_closed())

    def abandon(self) -> None:
        """Say that nobody reads any more; the engine ends the request at its next step."""
        self._left = True

    def put(self, item: Item) -> None:
        """Hand an item to the reader."""
        self._items.put(item)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: `abandoned` says so
                self._loop.call_soon_threadsafe(self._wake)

    def next(self, interrupt: Interrupt) -> str | Generation:
        """Wait for the next item, in a thread; raises the request's error, and what `interrupt` raises."""
        while True:
            try:
                return _raised(self._items.get(timeout=interrupt.poll_s))
            except Empty:
                interrupt.check()

    async def anext(self, interrupt: Interrupt) -> str | Generation:
        """`next` in a task."""
        loop = asyncio.get_running_loop()
        while True:
            self._news = loop.create_future()
            with contextlib.suppress(Empty):
                return _raised(self._items.get_nowait())
            interrupt.check()
            timer = loop.call_later(interrupt.poll_s, self._wake)
            try:
                await self._news
            finally:
                timer.cancel()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _raised(item: Item) -> str | Generation:
    if isinstance(item, BaseException):
        raise item
    return item


@dataclass(slots=True, eq=False)
class Request:
    """What one call asks of the engine.

    Attributes:
        streamed: whether pieces of text are wanted, or the generation only.
        tokens: of the prompt.
        forced: tokens of a given completion, its end included; None where the model chooses.
        max_tokens: of the answer, within the model's context.
        constraint: of an answer that must have a response format.
        context: of the caller, in which its observer and ``on_token`` run.
    """

    prompt: Prompt
    sampling: Sampling
    limits: Limits
    observer: Observer | None
    interrupt: Interrupt
    outbox: Outbox
    completion: str | None = None
    on_token: Callable[[TokenSignals], None] | None = None
    streamed: bool = False
    tokens: list[int] = field(default_factory=list)
    forced: list[int] | None = None
    max_tokens: int = 0
    constraint: Constraint | None = None
    context: Context = field(default_factory=copy_context)

    @property
    def reader(self) -> Observer | None:
        """The observer, if it reads the layers."""
        return self.observer if getattr(self.observer, "reads_layers", True) else None

    @property
    def room(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return len(self.tokens) + self.max_tokens
