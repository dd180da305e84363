"""Closes connections whose client does not send or read: uvicorn waits for both for as long as it takes.

Three things are limited: how long a request's head may take, how long a response may lie unread, and how many
connections may wait for their clients at the same time, since each of them is one of the files that a process may open.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Bytes of a response that a client must at least take in each interval.
_LEAST_READ = 16_384


def patient_for(seconds: float, *, most_waiting: int) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with limits for its clients.

    A connection that waits for its next request is uvicorn's to keep (``timeout_keep_alive``), while there is room.

    Args:
        seconds: in which the request line and all headers must have come, from the start of the connection or the first
            byte of a later request; and in which a client must take 16 kB of a response, or what there is of it.
        most_waiting: connections that may wait for a request, for its body, or for the client to read; the one that has
            waited longest is closed where there are more.
    """
    waiting: dict[TimedProtocol, None] = {}

    class TimedProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _reader: asyncio.TimerHandle | None = None
        _unread = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # so that anything that is not read is noticed
            self._expect_head()
            self._note_waiting()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._expect_head()
            else:
                self._stop_head()
            self._note_waiting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._note_waiting()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.transport.get_write_buffer_size()
            self._reader = self.loop.call_later(seconds, self._check_reader)
            self._note_waiting()

        def resume_writing(self) -> None:
            self._stop_reader()
            super().resume_writing()
            self._note_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head()
            self._stop_reader()
            waiting.pop(self, None)
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            if self._head is None:
                self._head = self.loop.call_later(seconds, self.transport.close)

        def _stop_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _stop_reader(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

        def _check_reader(self) -> None:
            unread = self.transport.get_write_buffer_size()
            if unread > self._unread - _LEAST_READ:
                self.transport.abort()  # closing would wait until all of it is read
                return
            self._unread, self._reader = unread, self.loop.call_later(seconds, self._check_reader)

        def _note_waiting(self) -> None:
            """Keep account of the connections that wait for their clients, by how long they have done so."""
            sends_request = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
            if not sends_request and self._reader is None:
                waiting.pop(self, None)
            elif not self.transport.is_closing():
                waiting.setdefault(self)
            while len(waiting) > most_waiting:
                longest = next(iter(waiting))
                del waiting[longest]
                longest.transport.abort()

    return TimedProtocol
