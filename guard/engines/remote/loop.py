"""The thread in which requests to a server run, each as a task of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from guard.engines.engine_loop import closed_error
from guard.engines.request import POLL_S, Item, Request
from guard.errors import CancelledError, InputError
from guard.records import Generation

_T = TypeVar("_T")


class RemoteLoop:
    """Runs requests as tasks, as many at the same time as there are slots. The thread starts with the first."""

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._mutex = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: dict[Request, asyncio.Task[None]] = {}
        self._closed = False
        #: Awaited as the loop's last work.
        self.finally_: Callable[[], Awaitable[None]] = _nothing
        #: Answers a request; set by the engine.
        self.answer: Callable[[Request], Awaitable[Generation]] = _nobody

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the loop, and wait for it."""
        with self._mutex:
            waiting = asyncio.run_coroutine_threadsafe(work, self._running())
        return waiting.result()

    def submit(self, request: Request) -> None:
        """Put a request in; errors as for `guard.engines.engine_loop.EngineLoop.submit`."""
        if threading.current_thread() is self._thread:
            raise InputError(
                "An observer or on_token asks the engine that calls it", fix="Ask once the answer is complete"
            )
        with self._mutex:  # a loop that is being closed takes nothing in
            self._running().call_soon_threadsafe(self._begin, request)

    def leave(self, request: Request) -> None:
        """Say that nobody reads a request's outbox any more; its connection is closed."""
        outbox = request.outbox
        outbox.abandon()
        loop = self._loop
        if loop is None or outbox.ended.is_set():
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and all requests with it
            loop.call_soon_threadsafe(self._cancel, request)
        while not outbox.in_task and self._thread not in (None, threading.current_thread()):
            if outbox.ended.wait(POLL_S):
                return

    def close(self, at_end: Callable[[], None]) -> None:
        """End all requests with an error, and the thread; ``at_end`` is called when it has ended."""
        with self._mutex:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            at_end()
            return
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()
        at_end()

    # -- in the thread ---------------------------------------------------------------------------

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise closed_error()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._work, name="guard-remote", daemon=True)
            self._thread.start()
        return self._loop

    def _work(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            with contextlib.suppress(Exception):  # of connections that are gone already
                loop.run_until_complete(self._last())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _last(self) -> None:
        await self.finally_()

    def _begin(self, request: Request) -> None:
        task = asyncio.get_running_loop().create_task(self._run(request))
        self._tasks[request] = task
        task.add_done_callback(lambda _: self._end(request))

    def _end(self, request: Request) -> None:
        del self._tasks[request]
        if not request.outbox.ended.is_set():  # cancelled before it began
            _close(request, closed_error())

    def _cancel(self, request: Request) -> None:
        task = self._tasks.get(request)
        if task is not None:
            task.cancel()

    async def _run(self, request: Request) -> None:
        item: Generation | BaseException
        try:
            async with self._slots:
                request.interrupt.check()
                item = await self.answer(request)
        except asyncio.CancelledError:
            item = closed_error() if self._closed else CancelledError("The request was cancelled")
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            item = error
        _close(request, item)


def _close(request: Request, item: Item) -> None:
    request.outbox.ended.set()
    request.outbox.put(item)


async def _nothing() -> None:
    """Nothing is left to do."""


async def _nobody(_: Request) -> Generation:
    raise closed_error()
