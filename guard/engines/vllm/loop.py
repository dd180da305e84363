"""The thread that steps vLLM: requests join between two steps, and leave with the results of a worker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from guard.engines.engine_loop import closed_error, interruption
from guard.engines.request import POLL_S, Item, Request
from guard.engines.vllm.watching import News
from guard.errors import EngineError, GuardError, InputError


class Stepped(Protocol):
    """What the thread uses of vLLM. All of it is called in the thread only, `close` excepted."""

    def begin(self, requests: Sequence[Request]) -> list[str]:
        """Add requests; return a key for each."""

    def step(self) -> Mapping[str, News]:
        """Run one step for all requests; return the news of each."""

    def drop(self, keys: Sequence[str]) -> None:
        """End requests whose answers nobody needs, and remove their data from the workers."""

    def close(self) -> None:
        """End the workers; a second call has no effect."""


@dataclass(frozen=True, slots=True)
class _SteppedRequest:
    request: Request
    started: float


class SteppedLoop:
    """Runs requests together, as many as there are slots; the thread starts with the first and lives until `close`."""

    def __init__(self, stepped: Stepped, slots: int) -> None:
        """
        Args:
            stepped: vLLM.
            slots: requests at the same time.
        """
        self._stepped, self._slots = stepped, slots
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._running: dict[str, _SteppedRequest] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    # -- for callers -----------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Put a request in; errors as for `guard.engines.engine_loop.EngineLoop.submit`."""
        if threading.current_thread() is self._thread:
            raise InputError("on_token asks the engine that calls it", fix="Ask once the answer is complete")
        with self._changed:
            if self._closed:
                raise closed_error()
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="guard-vllm", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def leave(self, request: Request) -> None:
        """Say that nobody reads a request's outbox any more; a thread waits until vLLM has let go of it."""
        outbox = request.outbox
        outbox.abandon()
        while not outbox.in_task and self._thread not in (None, threading.current_thread()):
            if outbox.ended.wait(POLL_S):
                return

    def close(self, at_end: Callable[[], None]) -> None:
        """End all requests with an error, and the thread; ``at_end`` is called when it has ended."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        at_end()

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._has_work():
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001 - the callers raise it
                self._end_all(_explained(error))
        self._end_all(closed_error())

    def _has_work(self) -> bool:
        """Wait for a request; return False once there can be none."""
        with self._changed:
            while not (self._waiting or self._running or self._closed):
                self._changed.wait()
            return not self._closed

    def _step(self) -> None:
        self._end_interrupted()
        self._admit()
        if self._running:
            for key, news in self._stepped.step().items():
                self._hand_on(key, news)

    def _admit(self) -> None:
        """Admit requests, first come, first served."""
        with self._changed:
            free = range(min(self._slots - len(self._running), len(self._waiting)))
            joining = [self._waiting.popleft() for _ in free]
        try:
            keys = self._stepped.begin(joining) if joining else []
        except BaseException as error:  # noqa: BLE001 - their callers raise it
            for request in joining:
                _close(request, _explained(error))
            return
        now = time.monotonic()
        self._running |= {key: _SteppedRequest(request, now) for key, request in zip(keys, joining, strict=True)}

    def _end_interrupted(self) -> None:
        """End what was cancelled, is late, or is read by nobody."""
        with self._changed:
            late = {request: error for request in self._waiting if (error := interruption(request))}
            self._waiting = deque(request for request in self._waiting if request not in late)
        for request, error in late.items():
            _close(request, error)
        ended = {key: error for key, each in self._running.items() if (error := interruption(each.request))}
        if ended:
            self._stepped.drop([*ended])
        for key, error in ended.items():
            _close(self._running.pop(key).request, error)

    def _hand_on(self, key: str, news: News) -> None:
        """Pass a request's news to its caller."""
        running = self._running[key]
        request = running.request
        try:
            request.context.run(_report, request, news)
        except BaseException as error:  # noqa: BLE001 - its caller raises it
            self._stepped.drop([key])
            _close(self._running.pop(key).request, error)
            return
        if news.is_last:
            del self._running[key]
            _close(request, news.error or _timed(news, running))

    def _end_all(self, error: BaseException) -> None:
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
        keys = [*self._running]
        with contextlib.suppress(Exception):  # vLLM may have failed for good
            self._stepped.drop(keys)
        for request in [*(self._running.pop(key).request for key in keys), *waiting]:
            _close(request, error)


def _report(request: Request, news: News) -> None:
    """Update the caller's observer, and pass on the signals and the text."""
    if news.observer is not None and request.observer is not None:
        vars(request.observer).update(news.observer)
    for signals in news.signals if request.on_token is not None else ():
        assert request.on_token is not None
        request.on_token(signals)
    if news.text and request.streamed:
        request.outbox.put(news.text)


def _timed(news: News, running: _SteppedRequest) -> Item:
    """Return the generation with its times."""
    assert news.generation is not None
    queue_s = running.started - running.request.interrupt.started
    return replace(news.generation, queue_s=queue_s, seconds=time.monotonic() - running.started)


def _explained(error: BaseException) -> BaseException:
    """Return an error of guard's own for whatever vLLM raises."""
    if isinstance(error, GuardError) or not isinstance(error, Exception):
        return error
    lines = str(error).strip().splitlines() or [""]
    failed = EngineError("vLLM failed", why=f"{type(error).__name__}: {lines[0]}"[:300])
    failed.__cause__ = error
    return failed


def _close(request: Request, item: Item) -> None:
    request.outbox.ended.set()
    request.outbox.put(item)
