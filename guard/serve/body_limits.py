"""Limits on the size and the transfer time of request bodies."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.responses import JSONResponse

from guard.serve.asgi import AsgiMessage, AsgiReceive
from guard.serve.request_errors import RequestError


class BodyLimits:
    """ASGI middleware that refuses bodies that are too large or too slow.

    Args:
        app: the wrapped application.
        most_bytes: largest size of a body.
        seconds: time limit for the whole body.
    """

    def __init__(self, app: Any, *, most_bytes: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Any, receive: AsgiReceive, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except RequestError as error:
            headers = {**error.headers, "connection": "close"}
            await JSONResponse(error.body(), error.status, headers)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _Replay(body, receive), send)

    async def _body(self, scope: Any, receive: AsgiReceive) -> bytes | None:
        """Return the whole body, or None if the client disconnects."""
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            # A proxy that goes by the other one would take the rest of the body for the next request.
            raise RequestError("The request has both Content-Length and Transfer-Encoding")
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._most:
                raise self._too_large()
        deadline, parts, size = time.monotonic() + self._seconds, [], 0
        while True:
            message = await self._next(receive, deadline)
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    async def _next(self, receive: AsgiReceive, deadline: float) -> AsgiMessage:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await receive()
        except TimeoutError:
            what = f"The body did not arrive within {self._seconds:g} s"
            raise RequestError(what, status=408, code="request_timeout") from None

    def _too_large(self) -> RequestError:
        what = f"The body exceeds the limit of this server, {self._most} bytes"
        return RequestError(what, status=413, code="request_too_large")


class _Replay:
    """Replays a body that has been read, then receives further messages."""

    def __init__(self, body: bytes, receive: AsgiReceive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> AsgiMessage:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
