"""Many clients at one server: right answers to right callers, and nothing left behind.

Run as a program for as long as you like; a test runs a sample. The server is a process over a scripted engine.
64 clients ask without a pause for short and long answers, whole, held, live, in each API; some leave before the answer
or in the middle of it. Counted before, ten times during and after the run: open files and sockets, threads, memory. At
its end no request runs any more, and all slots of the engine answer. A request that loses its connection is counted by
what its connection was: one of its own, or one that an earlier request had used.

    python tests/support/served_soak.py --seconds 1800
    python tests/support/served_soak.py --seconds 1800 --pause 5    # between two requests of a client, at the mean
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from served import POLICY
from served_child import child, echo

CLIENTS = 64
LIVE = f"{POLICY}\nstreaming: live\n"

#: Ways to ask, and how often each is chosen.
WAYS = {
    "whole": 4,
    "held": 3,
    "live": 3,
    "completion": 1,
    "response": 1,
    "too long": 1,
    "leaves at once": 2,
    "leaves": 2,
}


@dataclass
class TracedConnection:
    """What became of the connection of one request, as httpx traces it.

    Attributes:
        opened: whether it was opened for this request.
        failed: the first step that failed.
    """

    opened: bool = False
    failed: str = ""

    async def __call__(self, step: str, _: Any) -> None:
        self.opened = self.opened or step == "connection.connect_tcp.started"
        if step.endswith(".failed"):
            self.failed = self.failed or step.removesuffix(".failed")

    def lost(self, error: httpx.TransportError) -> str:
        """Return how a request lost it."""
        whose = "its own connection" if self.opened else "a used connection"
        return f"{type(error).__name__} on {whose}, {self.failed}"


@dataclass
class Soak:
    """What became of the requests.

    Attributes:
        url: of the server.
        ends: when no client asks any more, on the clock of `time.monotonic`.
        least: requests that each client makes, even if they end later.
        pause: seconds that a client waits before a request, at the mean.
        done: requests by way and result.
        wrong: answers that were not the caller's.
    """

    url: str
    ends: float
    least: int = 0
    pause: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, seed: int) -> None:
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS // 2)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=60) as client:
            await asyncio.gather(*(self._client(client, seed * CLIENTS + number) for number in range(CLIENTS)))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        choose, asked = random.Random(number), 0
        while asked < self.least or time.monotonic() < self.ends:
            await asyncio.sleep(choose.uniform(0, 2 * self.pause))
            way = choose.choices([*WAYS], [*WAYS.values()])[0]
            question = f"Say {number}-{asked} {choose.choice((0, 3, 20, 150))} {'word ' * choose.choice((0, 5, 100))}"
            asked += 1
            self.done[f"{way}: {await self._ask(client, way, question)}"] += 1

    async def _ask(self, client: httpx.AsyncClient, way: str, question: str) -> str:
        path, body = request(way, question)
        connection = TracedConnection()
        options: dict[str, Any] = {"json": body, "extensions": {"trace": connection}}
        try:
            if way == "leaves":
                return await self._left(client, path, options, question)
            response = await client.post(path, timeout=0.004 if way == "leaves at once" else 60, **options)
        except httpx.TimeoutException:
            return "left"
        except httpx.TransportError as error:  # a server ends a connection whose request does not come in time
            return connection.lost(error)
        if response.status_code != 200:
            return str(response.status_code)
        cut = ends_with_an_error(response.text)
        self._check(response.text, question, whole=not cut)
        return "200, then an error" if cut else "200"

    async def _left(self, client: httpx.AsyncClient, path: str, options: dict[str, Any], question: str) -> str:
        """Close the connection behind the first bytes."""
        async with client.stream("POST", path, **options) as response:
            async for text in response.aiter_text():
                self._check(text, question, whole=False)
                return "left"
        return "ended"

    def _check(self, text: str, question: str, *, whole: bool) -> None:
        """Note an answer that is not this caller's, or not all of it."""
        said, expected = words_of(text), echo(question)
        if said != expected if whole else not expected.startswith(said):
            self.wrong.append(f"{question[:40]}: {said[:60]!r} of ...{text[-400:]!r}")


def request(way: str, question: str) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request."""
    if way == "completion":
        return "/v1/completions", {"model": "tiny", "prompt": question}
    if way == "response":
        return "/v1/responses", {"model": "tiny", "input": question, "stream": True}
    asked = question + "y" * 3000 if way == "too long" else question
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": asked}]}
    streamed = {
        "held": {"stream": True, "guard": {"hold": "comments"}},
        "live": {"stream": True},
        "leaves": {"stream": True},
    }
    return "/v1/chat/completions", {**body, **streamed.get(way, {})}


def words_of(text: str) -> str:
    """Return the answer that a body or its events hold."""
    return "".join(_said(each) for each in events_of(text))


def ends_with_an_error(text: str) -> bool:
    """Whether the server says in a stream, whose status is sent, that the answer is not whole."""
    return any(each.get("error") or each.get("type") in ("error", "response.failed") for each in events_of(text)[-1:])


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream, or the one object of a body."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(each) for each in (lines or [text]) if each.startswith("{")]


def _said(data: dict[str, Any]) -> str:
    if data.get("type") == "response.output_text.delta":
        return str(data["delta"])
    choice = (data.get("choices") or [{}])[0]
    message = choice.get("message") or choice.get("delta") or {}
    return str(message.get("content") or choice.get("text") or "")


def counts(process: int) -> dict[str, int]:
    """Return a process's open files and sockets, threads, and resident kilobytes."""
    folder = Path(f"/proc/{process}")
    status = (folder / "status").read_text()
    files = [*(folder / "fd").iterdir()]
    return {
        "files": len(files),
        "threads": int(re.findall(r"Threads:\s*(\d+)", status)[0]),
        "resident_kb": int(re.findall(r"VmRSS:\s*(\d+)", status)[0]),
    }


def settled(url: str) -> None:
    """Wait until no request runs, and connections that were left are closed."""
    deadline = time.monotonic() + 60
    while "guard_requests_running 0.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline, "requests still run"
        time.sleep(0.05)
    time.sleep(0.5)


async def watched(work: Coroutine[Any, Any, None], process: int, every_s: float) -> list[dict[str, int]]:
    """Do some work; return the process's counts every few seconds meanwhile."""
    task, found = asyncio.ensure_future(work), list[dict[str, int]]()
    while not (await asyncio.wait({task}, timeout=every_s))[0]:
        found.append(counts(process))
    await task
    return found


def soak(seconds: float, least: int = 0, pause: float = 0.0) -> dict[str, Any]:
    """Let clients ask, after a warm-up of a fifth of that, and return what was found.

    Args:
        seconds: that they ask.
        least: requests that each of them makes at least.
        pause: seconds that each of them waits before a request, at the mean.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        child(Path(folder) / "r.db", answer="echo", p_wrong=0.1, policy=LIVE, slots=8) as (process, url),
    ):
        asyncio.run(Soak(url, time.monotonic() + seconds / 5, least // 5, pause).run(0))
        settled(url)
        before, started = counts(process.pid), time.monotonic()
        found = Soak(url, started + seconds, least, pause)
        during = asyncio.run(watched(found.run(1), process.pid, max(1.0, seconds / 10)))
        taken = time.monotonic() - started
        settled(url)
        after = counts(process.pid)
        last = Soak(url, 0.0, 1)
        asyncio.run(last.run(2))
        running = process.poll() is None
    requests = sum(found.done.values())
    return {
        "seconds": round(taken, 1),
        "requests": requests,
        "requests_per_second": round(requests / taken, 1),
        "results": dict(sorted(found.done.items())),
        "wrong": found.wrong + last.wrong,
        "before": before,
        "during": during,
        "after": after,
        "running": running,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    print(json.dumps(soak(options.seconds, pause=options.pause), indent=2))
