"""How an engine is asked: four ways to read what becomes of one request, whoever answers it.

`generate`, `agenerate`, `stream` and `astream` put a request in and read its outbox, to which a thread of the
engine's own writes. `guard.engines.base` answers with a model in this process, `guard.engines.remote` with a server.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self

from guard.engines import witness
from guard.engines.protocols import Chunk, Observer
from guard.engines.request import Interrupt, Outbox, Request
from guard.engines.sampling import TokenSignals
from guard.errors import ForkError, InputError
from guard.records import CapturePoint, Generation, Limits, ModelInfo, Prompt, Sampling


class RequestLoop(Protocol):
    """What answers requests, in a thread of its own."""

    def submit(self, request: Request) -> None:
        """Put a request in; what becomes of it is in its outbox."""

    def leave(self, request: Request) -> None:
        """Say that nobody reads a request's outbox any more."""

    def close(self, at_end: Callable[[], None]) -> None:
        """End all requests with an error, and the thread."""


class RequestEngine(ABC):
    """What every engine offers to its callers. Safe under threads and asyncio; not across a fork."""

    #: Where activations are read.
    capture_point: CapturePoint
    #: How many of the likeliest tokens it reports at each token (`Prompt.top_logprobs`), at most; None where it
    #: reports no tokens.
    most_top_logprobs: int | None = None

    def __init__(self, loop: RequestLoop) -> None:
        """
        Args:
            loop: answers the requests.
        """
        self._process = os.getpid()
        self._requests = loop
        # Not the event loop's own pool: a template that takes its time must not keep that busy.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="guard-encoder")

    @property
    @abstractmethod
    def model(self) -> ModelInfo:
        """What is loaded."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many requests are answered at the same time."""

    @abstractmethod
    def check_template_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError where the model's chat template does not read an option."""

    @abstractmethod
    def _encode(self, request: Request) -> None:
        """Prepare a request in the caller's thread; raises what is wrong with it."""

    @abstractmethod
    def _free(self) -> None:
        """Free what the engine loaded itself; no thread uses it any more. May be called again."""

    # -- what every engine offers --------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
        completion: str | None = None,
    ) -> Generation:
        """Answer a prompt.

        Args:
            prompt: messages or raw text.
            sampling: greedy by default.
            limits: token limit, stop strings, deadline (queueing included).
            observer: gets the activations of every forward pass that chooses a token, in the engine's thread.
            cancel: set it from another thread to stop.
            completion: run this text as if the model had answered so (teacher forcing), for scoring
                an answer that exists already.

        Raises:
            PromptTooLongError, ChatTemplateError: the prompt cannot be put to this model, or has no room
                left for the completion.
            EngineTimeoutError, CancelledError: ended from outside.
            EngineError: the engine failed.
        """
        request = self._request(prompt, sampling, limits, observer, cancel=cancel, completion=completion)
        self._encode(request)
        with self._submitted(request) as outbox:
            return _generation(outbox.next(request.interrupt))

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        observer: Observer | None = None,
        completion: str | None = None,
    ) -> Generation:
        """`generate` without blocking the event loop; cancelling the task stops the generation."""
        loop = asyncio.get_running_loop()
        request = self._request(prompt, sampling, limits, observer, loop=loop, completion=completion)
        await loop.run_in_executor(self._encoder, self._encode, request)
        with self._submitted(request) as outbox:
            return _generation(await outbox.anext(request.interrupt))

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
        on_token: Callable[[TokenSignals], None] | None = None,
    ) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk has the `Generation`. Closing the iterator cancels.

        The answer is generated whether its pieces are taken or not.

        Args:
            prompt, sampling, limits, observer, cancel: as for `generate`.
            on_token: called in the engine's thread for each token of the answer except the end token, before its
                text is yielded; an exception that it raises ends the stream.
        """
        request = self._request(prompt, sampling, limits, observer, cancel=cancel, on_token=on_token, streamed=True)
        self._encode(request)
        with self._submitted(request) as outbox:
            while isinstance(item := outbox.next(request.interrupt), str):
                yield Chunk(item)
        yield Chunk("", item)

    async def astream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        observer: Observer | None = None,
        on_token: Callable[[TokenSignals], None] | None = None,
    ) -> AsyncIterator[Chunk]:
        """`stream` without blocking the event loop."""
        loop = asyncio.get_running_loop()
        request = self._request(prompt, sampling, limits, observer, loop=loop, on_token=on_token, streamed=True)
        await loop.run_in_executor(self._encoder, self._encode, request)
        with self._submitted(request) as outbox:
            while isinstance(item := await outbox.anext(request.interrupt), str):
                yield Chunk(item)
        yield Chunk("", item)

    def close(self) -> None:
        """Free what the engine loaded itself. Requests that are being answered end with an error."""
        if os.getpid() == self._process:  # a fork has no thread to end, and nothing that it may free
            self._requests.close(self._free)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how a request runs --------------------------------------------------------------------

    def _request(
        self,
        prompt: Prompt,
        sampling: Sampling,
        limits: Limits,
        observer: Observer | None,
        *,
        cancel: threading.Event | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        **settings: Any,
    ) -> Request:
        self._check_process()
        self._check_top(prompt.top_logprobs)
        if observer is None and settings.get("completion") is None:  # who scores the answer observes the layers
            witness.begin(None).say(None)
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(32))
        interrupt = Interrupt(time.monotonic(), limits.timeout_s, cancel)
        return Request(prompt, sampling, limits, observer, interrupt, Outbox(loop), **settings)

    def _check_top(self, wanted: int) -> None:
        most = self.most_top_logprobs or 0
        if not 0 <= wanted <= most:
            raise InputError(f"top_logprobs is {wanted}", why=f"'{self.model.name}' reports {most} at most")

    def _check_process(self) -> None:
        """A fork copies an engine without its threads, and whoever asks it there waits forever."""
        if os.getpid() != self._process:
            raise ForkError(
                "The engine was loaded before this process was forked",
                why="a fork has none of the threads that the model computes with",
                fix="Load it after the fork, in each worker, or 'spawn' processes (gunicorn: no --preload)",
            )

    @contextmanager
    def _submitted(self, request: Request) -> Iterator[Outbox]:
        """Let a request run; on leaving, its reader is gone."""
        self._requests.submit(request)
        try:
            yield request.outbox
        finally:
            if os.getpid() == self._process:
                self._requests.leave(request)


def _generation(item: str | Generation) -> Generation:
    """Return what comes out of a request of which no pieces are wanted."""
    assert isinstance(item, Generation)
    return item
