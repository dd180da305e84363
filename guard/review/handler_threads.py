"""Threads for blocking handlers: a bounded number for each, so that a hanging handler costs no more than these.

A case waits for a free thread within its deadline. If all threads of a handler are past their deadlines, the handler
hangs: further cases fail at once. Other handlers are not affected.
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

#: Largest number of threads of one handler.
MOST = 16


class HangingError(Exception):
    """All threads of a handler are past their deadlines."""

    def __init__(self) -> None:
        super().__init__(f"{MOST} earlier cases are still running in it, past their deadlines")


@dataclass(eq=False, slots=True)
class _Task:
    """One case for a handler.

    Attributes:
        work: calls the handler with the case.
        deadline: when the caller stops waiting, on the clock of `time.monotonic`.
        future: the result of the handler; never cancelled.
        context: the context of the caller, with its traces and log fields.
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
        except StopIteration as error:  # asyncio cannot propagate it: the task would wait forever
            self.future.set_exception(RuntimeError("StopIteration was raised").with_traceback(error.__traceback__))
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the caller
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


@dataclass(slots=True)
class _Lane:
    """The running and waiting cases of one handler. Exists while there are any."""

    running: set[_Task] = field(default_factory=set)
    waiting: deque[_Task] = field(default_factory=deque)


_mutex = threading.Lock()
_lanes: dict[Hashable, _Lane] = {}


def start(handler: Callable[..., object], work: Callable[[], object], timeout_s: float) -> Future[object]:
    """Start a handler in a daemon thread, or queue the call until a thread is free.

    Args:
        handler: the handler; equal handlers share their threads.
        work: calls the handler.
        timeout_s: how long the caller waits. Work that has not started by then never starts.

    Returns:
        the result or the error of the work; `HangingError` if the handler hangs, RuntimeError if no thread can be
        started.
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
    except RuntimeError as error:  # no thread can be started: only this handler fails
        with _mutex:
            _next(key, task)
        task.future.set_exception(error)
    return task.future


def _join(lane: _Lane, task: _Task) -> bool:
    """Add a task; return whether it needs a new thread."""
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
    """Return the next task of a thread; the lane is removed after its last task."""
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
    """Return the key of a handler: itself, or its id if it is not hashable."""
    try:
        hash(handler)
    except TypeError:
        return id(handler)
    return handler


def _after_fork() -> None:
    """Reset the state: the child has no threads of the parent, and the mutex may be locked."""
    global _mutex
    _mutex = threading.Lock()
    _lanes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
