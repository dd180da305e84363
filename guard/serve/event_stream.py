"""Server-sent events, and work that is cancelled when the client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from guard.serve.asgi import AsgiReceive, AsgiSend
from guard.serve.request_errors import RequestError, to_request_error

_T = TypeVar("_T")

#: Keeps proxies from closing a held stream; clients ignore it.
COMMENT = ": guarding\n\n"
DONE = "data: [DONE]\n\n"


class ClientLeft(Exception):
    """The client closed its connection before it got the answer."""


def event(data: Mapping[str, Any], name: str | None = None) -> str:
    """Return one event. JSON escapes line breaks, so text of a model cannot end the event.

    Examples:
        >>> event({"text": "a\\n\\ndata: b"})
        'data: {"text": "a\\\\n\\\\ndata: b"}\\n\\n'
    """
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, allow_nan=False)}\n\n"


class EventStream(Response):
    """Sends events as they arrive. Cancels their source when the client disconnects or the server stops."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Any, receive: AsgiReceive, send: AsgiSend) -> None:
        with suppress(ClientLeft):
            await _unless_left(self._send(send), receive)

    async def _send(self, send: AsgiSend) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for text in self._events:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if hasattr(self._events, "aclose"):
                await self._events.aclose()


async def unless_left(request: Request, work: Awaitable[_T]) -> _T:
    """Await work, and cancel it if the client disconnects.

    Raises:
        ClientLeft: the client disconnected.
    """
    return await _unless_left(work, request.receive)


async def _unless_left(work: Awaitable[_T], receive: AsgiReceive) -> _T:
    running = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientLeft
        return running.result()
    finally:
        await cancelled(running)
        await cancelled(watching)


async def _disconnected(receive: AsgiReceive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end. A finished task is unchanged."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it


async def first_seconds(task: asyncio.Task[Any], seconds: float | None) -> bool:
    """Wait for a task for some seconds (None: until its end), and return whether it has ended."""
    await asyncio.wait({task}, timeout=seconds)
    return task.done()


async def held_events(
    task: asyncio.Task[_T],
    every_s: float,
    write: Callable[[_T], Iterable[str]],
    write_error: Callable[[RequestError], str],
) -> AsyncIterator[str]:
    """Yield comments until the decision, then the events of the answer, or the event of an error without an end.

    Args:
        task: produces the answer; cancelled if the reader leaves.
        every_s: seconds between two comments.
        write: returns the events of the answer.
        write_error: returns the event of an error.
    """
    try:
        while not await first_seconds(task, every_s):
            yield COMMENT
        try:
            events = "".join(write(task.result()))  # one piece, so that the client is woken once
        except Exception as error:  # noqa: BLE001 - the status has been sent; the error is an event
            yield write_error(to_request_error(error))
            return
        yield events
    finally:
        await cancelled(task)


async def live_events(
    pieces: AsyncGenerator[_T, None],
    first: asyncio.Task[_T],
    every_s: float,
    write: Callable[[_T], Iterable[str]],
    write_error: Callable[[RequestError], str],
) -> AsyncIterator[str]:
    """Yield the events of pieces as they come, and comments while none comes; an error is an event, and no end follows.

    Args:
        pieces: of an answer; closed where the reader leaves.
        first: waits for the first of them.
        every_s: seconds without a piece until a comment.
        write: gives a piece's events.
        write_error: gives the event of an error.
    """
    waiting = first
    try:
        while True:
            while not await first_seconds(waiting, every_s):
                yield COMMENT
            try:
                events = [*write(waiting.result())]
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001 - the status has been sent; the error is an event
                yield write_error(to_request_error(error))
                return
            for text in events:
                yield text
            waiting = next_piece(pieces)
    finally:
        await cancelled(waiting)
        await pieces.aclose()


def next_piece(pieces: AsyncIterator[_T]) -> asyncio.Task[_T]:
    """Return a task that waits for the next piece."""

    async def wait() -> _T:
        return await anext(pieces)

    return asyncio.create_task(wait())
