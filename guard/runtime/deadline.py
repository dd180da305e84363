"""Deadlines for code that cannot be interrupted: a late callable is abandoned and its result dropped."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import wait
from functools import partial
from typing import Any, TypeVar, cast

from guard.errors import EngineTimeoutError
from guard.review.handler_threads import start
from guard.runtime.steps import Step, Steps, adrive, drive

_T = TypeVar("_T")


def late(name: str) -> EngineTimeoutError:
    """Return the error for an answer that is missing when the budget's time is exhausted."""
    return EngineTimeoutError(
        f"'{name}' did not answer in time", why="the budget of the call is exhausted", fix="Raise budget.seconds"
    )


def run_within(key: Callable[..., Any], work: Callable[[], _T], seconds: float, *, name: str) -> _T:
    """Run work in a daemon thread, with the caller's context, and wait for it.

    Args:
        key: owner of the work; each owner has a bounded number of threads (`guard.review.handler_threads`).
        work: the function; if it is late, it keeps running and nothing waits for it.
        seconds: longest time to wait.
        name: name for the error.

    Raises:
        EngineTimeoutError: the work is late.
        Exception: the error of the work.
    """
    future = start(key, work, seconds)
    wait([future], timeout=seconds)
    if not future.done():
        raise late(name)
    return cast(_T, future.result())


def call_step(function: Callable[[Any], Any], argument: Any, seconds: float, *, name: str) -> Step:
    """Return a step that calls a function, which may be asynchronous; errors as for `run_within`.

    On an event loop, an asynchronous function runs on that loop and is cancelled when it is late.
    """

    def work() -> Any:
        answer = function(argument)
        return (
            asyncio.run(await_within(_awaited(answer), seconds, name=name)) if inspect.isawaitable(answer) else answer
        )

    async def awork() -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(argument)
        answer: Any = await asyncio.wrap_future(start(function, partial(function, argument), seconds))
        return await answer if inspect.isawaitable(answer) else answer

    return Step(
        lambda: run_within(function, work, seconds, name=name), lambda: await_within(awork(), seconds, name=name)
    )


def step_within(key: Callable[..., Any], steps: Steps[_T], seconds: float, *, name: str) -> Step:
    """Return a step that runs a procedure; key and errors as for `run_within`.

    Without an event loop a late procedure is abandoned; on one it is cancelled.
    """
    return Step(
        lambda: run_within(key, partial(drive, steps), seconds, name=name),
        lambda: await_within(adrive(steps), seconds, name=name),
    )


#: Cancelled tasks that have not ended yet; asyncio itself keeps no reference to them.
_ending: set[asyncio.Task[Any]] = set()


async def await_within(work: Coroutine[Any, Any, _T], seconds: float, *, name: str) -> _T:
    """Await work; if it is late, cancel it without waiting for its end. Errors as for `run_within`.

    Where the caller is cancelled, so is the work, which can clean up before the cancellation is raised.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise late(name)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise
    finally:
        _abandon(task)
    return task.result()


def _abandon(task: asyncio.Task[Any]) -> None:
    """Cancel a task that has not ended, and drop what it still gives."""
    if task.done():
        if not task.cancelled():
            task.exception()
        return
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    task.cancel()


async def _awaited(answer: Awaitable[_T]) -> _T:
    return await answer
