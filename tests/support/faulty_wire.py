"""A wire between a client and a real server that fails on demand: resets, halves, stalls, drips."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from loop_thread import listening_thread

#: What becomes of a response behind its first bytes: reset and ended connections, silence, and a few bytes at a time.
FaultKind = Literal["reset", "end", "stall", "drip"]


@dataclass(frozen=True)
class WireFault:
    """What goes wrong with one response.

    Attributes:
        kind: as in `FaultKind`.
        after: bytes of the response, head included, that arrive before.
    """

    kind: FaultKind
    after: int = 0


@dataclass
class FaultyWire:
    """A port that leads to a server.

    Attributes:
        target: port of the server.
        faults: taken one for each POST; None lets it pass.
        port: to connect to.
        bytes_of_last: of the newest response.
    """

    target: int
    faults: list[WireFault | None] = field(default_factory=list)
    port: int = 0
    bytes_of_last: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Connection:
    """One client's connection, and the one behind it."""

    def __init__(self, wire: FaultyWire, writer: asyncio.StreamWriter) -> None:
        self.wire, self.writer = wire, writer
        self.fault: WireFault | None = None
        self.sent = 0

    async def asked(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if data.startswith(b"POST "):
                self.fault, self.sent = (self.wire.faults.pop(0) if self.wire.faults else None), 0
            server.write(data)
            await server.drain()

    async def answered(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            self.wire.bytes_of_last = self.sent + len(data)
            if self.fault is None or self.sent + len(data) < self.fault.after:
                await self._send(data)
            elif await self._fail(self.fault, data):
                return

    async def _send(self, data: bytes) -> None:
        self.sent += len(data)
        self.writer.write(data)
        await self.writer.drain()

    async def _fail(self, fault: WireFault, data: bytes) -> bool:
        """Send what still arrives, and fail; returns whether that is the connection's end."""
        first = max(0, fault.after - self.sent)
        await self._send(data[:first])
        if fault.kind == "drip":
            for at in range(first, len(data), 7):
                await self._send(data[at : at + 7])
                await asyncio.sleep(0)
            return False
        if fault.kind == "stall":
            await asyncio.sleep(600)
        if fault.kind == "reset":
            raw = self.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        return True


async def _serve(wire: FaultyWire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = _Connection(wire, writer)
    with contextlib.suppress(OSError, asyncio.CancelledError):
        from_server, to_server = await asyncio.open_connection("127.0.0.1", wire.target)
        ways = {
            asyncio.ensure_future(connection.asked(reader, to_server)),
            asyncio.ensure_future(connection.answered(from_server)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.close()
    writer.close()


@contextlib.contextmanager
def faulty_wire(target: int) -> Iterator[FaultyWire]:
    """Run a wire in a thread of its own."""
    wire = FaultyWire(target)
    with listening_thread(lambda reader, writer: _serve(wire, reader, writer)) as wire.port:
        yield wire
