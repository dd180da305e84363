"""Threads for handlers that block: a few for each, so that a handler that hangs costs these few and no more.

A case waits for a free thread within its deadline. Where every thread of a handler is past its deadline the
handler hangs, and further cases fail at once; other handlers are not touched.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

#: Threads that one handler may have at a time.
MOST = 16


class HangingError(Exception):
    """All threads of a handler are past their deadlines."""

    def __init__(self) -> None:
        super().__init__(f"{MOST} earlier cases are still in it, past their deadlines")


@dataclass(eq=False, slots=True)
class _Task:
    """One case for a handler.

    Attributes:
        work: hands the case over.
        deadline: when its caller gives up, on the clock of `time.monotonic`.
        future: of what the handler returns; never cancelled.
        context: the caller's, so that traces and log fields go along.
    """

    work: Callable[[], object]
    deadline: float
    future: Future[object] = field(default_factory=Future)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    def run(self) -> None:
        try:
            result = self.context.run(self.work)
        except StopIteration as error:  # which asyncio cannot carry: its task would wait for ever
            self.future.set_exception(RuntimeError("StopIteration was raised").with_traceback(error.__traceback__))
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the caller
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


@dataclass(slots=True)
class _Lane:
    """One handler's threads, and the cases that wait for one. Exists while there are any."""

    running: set[_Task] = field(default_factory=set)
    waiting: deque[_Task] = field(default_factory=deque)


_mutex = threading.Lock()
_lanes: dict[Hashable, _Lane] = {}


def start(handler: Callable[..., object], work: Callable[[], object], timeout_s: float) -> Future[object]:
    """Start a handler's work in a daemon thread of its own, or put it in line for one.

    Args:
        handler: whose work it is; equal ones share their threads.
        work: calls the handler.
        timeout_s: how long its caller waits. Work that has not begun by then is never begun.

    Returns:
        What the work returns or raises; `HangingError` where the handler hangs, and RuntimeError where there are
        no more threads.
    """
    task = _Task(work, time.monotonic() + timeout_s)
    task.future.set_running_or_notify_cancel()
    key = _key(handler)
    try:
        with _mutex:
            begins = _join(_lanes.setdefault(key, _Lane()), task)
        if begins:
            threading.Thread(target=_serve, args=(key, task), name="guard-escalation", daemon=True).start()
    except HangingError as error:
        task.future.set_exception(error)
    except RuntimeError as error:  # no more threads: this handler's failure, not everybody's
        with _mutex:
            _next(key, task)
        task.future.set_exception(error)
    return task.future


def _join(lane: _Lane, task: _Task) -> bool:
    """Take a task in; whether it needs a new thread now."""
    if len(lane.running) < MOST:
        lane.running.add(task)
        return True
    if all(other.late for other in lane.running):
        raise HangingError
    lane.waiting = deque(other for other in lane.waiting if not other.late)
    lane.waiting.append(task)
    return False


def _serve(key: Hashable, task: _Task | None) -> None:
    while task is not None:
        task.run()
        with _mutex:
            task = _next(key, task)


def _next(key: Hashable, done: _Task) -> _Task | None:
    """Return what a thread does after a task; the lane ends with its last one."""
    lane = _lanes.get(key, _Lane())
    lane.running.discard(done)
    while lane.waiting:
        task = lane.waiting.popleft()
        if not task.late:
            lane.running.add(task)
            return task
    if not lane.running:
        _lanes.pop(key, None)
    return None


def _key(handler: Callable[..., object]) -> Hashable:
    """Return what stands for a handler. One that cannot be hashed lives as long as its lane, so its id is its own."""
    try:
        hash(handler)
    except TypeError:
        return id(handler)
    return handler


def _after_fork() -> None:
    """The child has none of the parent's threads, and perhaps a mutex that one of them held."""
    global _mutex
    _mutex = threading.Lock()
    _lanes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
