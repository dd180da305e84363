"""What a real server of models says, recorded to be said again where that server cannot be installed.

python tests/support/recorded_server.py http://127.0.0.1:8000/v1 > tests/engines/recorded/NAME.json
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from loop_thread import listening_thread

from guard.engines.remote.wire import request_body
from guard.records import Limits, Prompt, Sampling

QUESTION = Prompt.chat("What is the capital of France?")
LIMITS = Limits(max_tokens=12)
TOP = 5


@dataclass(frozen=True)
class ServerRecording:
    """What a server said.

    Attributes:
        models: the body of its list of models.
        stream: the body of its answer to `QUESTION`, as it came.
    """

    models: str
    stream: str

    @classmethod
    def take(cls, url: str) -> ServerRecording:
        """Ask a server."""
        models = httpx.get(f"{url}/models").raise_for_status()
        body = request_body(models.json()["data"][0]["id"], QUESTION, Sampling(), LIMITS, k=TOP)
        return cls(models.text, httpx.post(f"{url}/chat/completions", json=body, timeout=120).raise_for_status().text)

    @classmethod
    def read(cls, file: Path) -> ServerRecording:
        return cls(**json.loads(file.read_text("utf-8")))

    def events(self) -> list[dict[str, Any]]:
        """The events of the answer."""
        lines = [line.removeprefix("data: ") for line in self.stream.splitlines() if line.startswith("data: {")]
        return [json.loads(line) for line in lines]


async def _say(recording: ServerRecording, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = head.partition("content-length: ")[2].partition("\r\n")[0]
    await reader.readexactly(int(length or 0))
    listed = head.startswith("get ")
    kind, text = ("application/json", recording.models) if listed else ("text/event-stream", recording.stream)
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{text}".encode())
    await writer.drain()
    writer.close()


@contextlib.contextmanager
def replayed(recording: ServerRecording) -> Iterator[str]:
    """Say it again to whoever asks; gives the base URL."""
    with listening_thread(lambda reader, writer: _say(recording, reader, writer)) as port:
        yield f"http://127.0.0.1:{port}/v1"


if __name__ == "__main__":
    print(json.dumps(vars(ServerRecording.take(sys.argv[1])), indent=1))
