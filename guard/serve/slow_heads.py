"""Closes connections whose request does not begin: uvicorn waits for a request's head as long as it takes."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a limit for each request's head.

    Args:
        seconds: in which the request line and all headers must have come, from the connection or the response before.
    """

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop()
            self._timer = self.loop.call_later(seconds, self._close_without_head)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _close_without_head(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    return TimedProtocol
