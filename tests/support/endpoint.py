"""A second HTTP server with OpenAI's chat completions: scripted answers on a port of its own, and faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loop_thread import listening_thread
from scripted import INTERCEPT, SLOPE, scripted_model, tiny_artefact

from guard.engines.asked import RequestEngine
from guard.scoring.provenance import Binding
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import Artefact
from guard.scoring.signature import FeatureSchema

#: From the request's body and its number to the answer and its p_wrong.
AnswerScript = Callable[[dict[str, Any], int], tuple[str, float]]


@dataclass
class Listener:
    """What the server answers, and how it fails.

    Attributes:
        answers: the script.
        faults: taken one for each request for an answer; each gets the connection and sends what it likes.
        model, fingerprint: who answers.
        change: changes each event before it is sent.
        asked: bodies of all requests for answers; headers beside them.
    """

    answers: AnswerScript = lambda body, number: ("Paris", 0.1)
    faults: list[Callable[[Reply], Any]] = field(default_factory=list)
    model: str = "tiny"
    fingerprint: str | None = "fp_1"
    owner: str = "vllm"
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda event: event
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models: list[str] = field(default_factory=lambda: ["tiny"])
    port: int = 0
    at_once: int = 0
    most: int = 0
    pause_s: float = 0.0
    left: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@dataclass
class Reply:
    """One connection that waits for an answer."""

    endpoint: Listener
    writer: asyncio.StreamWriter
    body: dict[str, Any]

    async def head(self, status: str = "200 OK", kind: str = "text/event-stream", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def event(self, event: dict[str, Any]) -> None:
        await self.write(b"data: " + json.dumps(self.endpoint.change(event)).encode() + b"\n\n")

    async def answer(self) -> None:
        """Stream the scripted answer."""
        endpoint = self.endpoint
        await self.head()
        text, p_wrong = endpoint.answers(self.body, len(endpoint.asked) - 1)
        for event in events_of(endpoint, self.body, text, p_wrong):
            await self.event(event)
            await asyncio.sleep(endpoint.pause_s)
        await self.write(b"data: [DONE]\n\n")

    def reset(self) -> None:
        """End the connection without a word."""
        self.writer.transport.abort()


def logprob_for(p_wrong: float) -> float:
    """The log-probability of every token from which `scripted.confidence_scorer` reads p_wrong."""
    return (math.log(p_wrong / (1 - p_wrong)) - INTERCEPT) / SLOPE


def scorer_for(engine: RequestEngine, **prompting: Any) -> Scorer:
    """The scorer that reads a script's p_wrong back, of the log-probabilities of a served model."""
    made = tiny_artefact(scripted_model()).model_dump(by_alias=True, mode="json")
    made["binding"] = Binding.from_model(engine.model, "mlp").model_dump()
    made["schema"] |= {"layers": 0}
    made["feature_names"] = list(FeatureSchema(layers=0).names)
    made["prompting"] |= prompting
    del made["scores"]["guard"]
    return Scorer(Artefact.model_validate(made))


def split_prompt(text: str) -> list[str]:
    """Tokens of a text: words with the space before them, marks of thoughts by themselves."""
    marked = text.replace("<think>", "\0<think>\0").replace("</think>", "\0</think>\0")
    return [piece for part in marked.split("\0") for piece in split_words(part)]


def split_words(text: str) -> list[str]:
    words = text.split(" ")
    return [word if number == 0 else f" {word}" for number, word in enumerate(words) if word or number]


def entry_of(piece: str, logprob: float, k: int) -> dict[str, Any]:
    rest = (1 - math.exp(logprob)) / (2 * k)
    others = [{"token": f"t{n}", "logprob": math.log(rest), "bytes": [116]} for n in range(k - 1)]
    chosen = {"token": piece, "logprob": logprob, "bytes": [*piece.encode()]}
    return {**chosen, "top_logprobs": [chosen, *others]}


def events_of(endpoint: Listener, body: dict[str, Any], text: str, p_wrong: float) -> Iterator[dict[str, Any]]:
    def event(delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {"model": endpoint.model, "system_fingerprint": endpoint.fingerprint, "choices": [choice]}

    pieces = split_prompt(text)
    cut = pieces[: body["max_tokens"]]
    yield event({"role": "assistant", "content": ""})
    for piece in cut:
        yield event({"content": piece}, {"content": [entry_of(piece, logprob_for(p_wrong), body["top_logprobs"])]})
    yield event({}, None, "stop" if len(cut) == len(pieces) else "length")
    yield {"model": endpoint.model, "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(cut)}}


async def _serve(endpoint: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await _answered(endpoint, reader, writer)
    writer.close()


async def _answered(endpoint: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    reply = Reply(endpoint, writer, json.loads(content) if content else {})
    if "/models" in first:
        endpoint.headers.append(headers)
        await reply.head(kind="application/json")
        data = [{"id": name, "owned_by": endpoint.owner, "max_model_len": 1000} for name in endpoint.models]
        await reply.write(json.dumps({"object": "list", "data": data}).encode())
        return
    endpoint.asked.append(reply.body)
    endpoint.headers.append(headers)
    endpoint.at_once += 1
    endpoint.most = max(endpoint.most, endpoint.at_once)
    try:
        if endpoint.faults:
            done = endpoint.faults.pop(0)(reply)
            if asyncio.iscoroutine(done):
                await done
        else:
            await reply.answer()
    except ConnectionError:
        endpoint.left += 1
        raise
    finally:
        endpoint.at_once -= 1


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Listener]:
    """Run a server in a thread of its own."""
    endpoint = Listener(**settings)
    with listening_thread(lambda reader, writer: _serve(endpoint, reader, writer)) as endpoint.port:
        yield endpoint
