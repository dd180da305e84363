"""What every engine shares: the decoding loop, fair queueing, streaming, deadlines, cancellation.

An engine only says how to tokenize, how to feed tokens through its model, and what its layers put
out; everything that could differ between engines by accident is here once.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from guard.engines import witness
from guard.engines.chat_template import check_options
from guard.engines.detokenizer import Detokenizer
from guard.engines.fair_queue import POLL_S, FairQueue, Interrupt, Ticket
from guard.engines.growing import AnswerReader, GrowingAnswer
from guard.engines.protocols import Observer, Session
from guard.engines.run_steps import advance, chunks, drain
from guard.engines.sampling import TokenSignals, choose, signals_of
from guard.errors import ForkError, InputError, PromptTooLongError
from guard.records import (
    CapturePoint,
    Chunk,
    FinishReason,
    Generation,
    Limits,
    ModelInfo,
    Prompt,
    Sampling,
)


@dataclass(slots=True)
class Request:
    """What one call asks of the engine."""

    prompt: Prompt
    sampling: Sampling
    limits: Limits
    observer: Observer | None
    interrupt: Interrupt
    completion: str | None = None
    on_token: Callable[[TokenSignals], None] | None = None
    tokens: Sequence[int] = ()  # of the prompt


class BaseEngine(ABC):
    """Engine over a model that serves one request at a time.

    Safe under threads and asyncio: requests queue, first come, first served. A stream holds the
    engine until it is exhausted or closed, so finish or close one before asking again from the
    same thread.
    """

    #: Where activations are read.
    capture_point: CapturePoint

    def __init__(self) -> None:
        self._process = os.getpid()
        self._queue = FairQueue()
        # Not the event loop's own pool: synchronous callers who wait for this engine can fill that
        # one, and the task whose turn it is would never get a thread.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="guard-engine")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="guard-encoder")

    # -- what an engine implements -------------------------------------------------------------

    @property
    @abstractmethod
    def model(self) -> ModelInfo:
        """What is loaded."""

    @abstractmethod
    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, with the model's own chat template for messages."""

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of answer, without special tokens."""

    @abstractmethod
    def _detokenizer(self) -> Detokenizer:
        """Return a fresh detokenizer for one answer."""

    @abstractmethod
    def _is_end(self, token: int) -> bool:
        """Return whether a token ends the answer."""

    @abstractmethod
    def _end_token(self) -> int:
        """Return the token that ends an answer, for given completions."""

    @abstractmethod
    def _session(self, *, capture: bool, interrupt: Interrupt) -> AbstractContextManager[Session]:
        """Open the model for one request; on leaving, whatever was attached is detached."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine loaded itself."""

    # -- what an engine says where it knows ----------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template that messages go through; None where there is none."""
        return None

    def check_template_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError where the model's chat template does not read an option."""
        check_options(self.chat_template or "", options)

    def _token_id(self, text: str) -> int | None:
        """Id of the single token, special ones included, with exactly this text."""
        return None

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
            observer: gets the activations of every forward pass that chooses a token.
            cancel: set it from another thread to stop.
            completion: run this text as if the model had answered so (teacher forcing), for scoring
                an answer that exists already.

        Raises:
            PromptTooLongError, ChatTemplateError: the prompt cannot be put to this model, or has no room
                left for the completion.
            EngineTimeoutError, CancelledError: ended from outside.
            EngineError: the engine failed.
        """
        request = self._request(prompt, sampling, limits, observer, cancel, completion)
        self._encode(request)
        with self._turn(request) as queue_s:
            return drain(self._run(request, queue_s))

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
        cancel = threading.Event()
        request = self._request(prompt, sampling, limits, observer, cancel, completion)
        await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, request)
        ticket, queue_s = await self._aturn(request)
        # The worker gives the ticket back: a cancelled task must not let the next request in
        # while the model is still finishing its token.
        ticket.working += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._worker, self._run_and_leave, self._run(request, queue_s), ticket
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancel.set()
            work.add_done_callback(lambda done: done.exception())
            raise

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

        Args:
            prompt, sampling, limits, observer, cancel: as for `generate`.
            on_token: called for each token of the answer except the end token, before its text is yielded; an
                exception that it raises ends the stream.
        """
        request = self._request(prompt, sampling, limits, observer, cancel, None)
        request.on_token = on_token
        self._encode(request)
        with self._turn(request) as queue_s:
            generation = yield from chunks(self._run(request, queue_s))
            yield Chunk("", generation)

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
        cancel = threading.Event()
        request = self._request(prompt, sampling, limits, observer, cancel, None)
        request.on_token = on_token
        await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, request)
        ticket, queue_s = await self._aturn(request)
        run = self._run(request, queue_s)
        ticket.abandoned = run.close
        step: asyncio.Future[str | Generation] | None = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                ticket.working += 1
                step = loop.run_in_executor(self._worker, self._advance_for, run, ticket)
                piece = await asyncio.shield(step)
                if isinstance(piece, Generation):
                    yield Chunk("", piece)
                    return
                yield Chunk(piece)
        finally:
            if step is None or step.done():
                self._close_and_leave(run, ticket)
            else:  # cancelled while a token is being computed: the worker cleans up when it is done
                cancel.set()
                ticket.working += 1
                step.add_done_callback(lambda done: done.cancelled() or done.exception())
                self._worker.submit(self._close_and_leave, run, ticket)

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
        cancel: threading.Event | None,
        completion: str | None,
    ) -> Request:
        self._check_process()
        if observer is None and completion is None:  # a caller who scores the answer observes the layers
            witness.begin(None).say(None)
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(32))
        interrupt = Interrupt(time.monotonic(), limits.timeout_s, cancel)
        return Request(prompt, sampling, limits, observer, interrupt, completion)

    def _check_process(self) -> None:
        """A fork copies an engine without its threads, and whoever asks it there waits forever."""
        if os.getpid() != self._process:
            raise ForkError(
                "The engine was loaded before this process was forked",
                why="a fork has none of the threads that the model computes with",
                fix="Load it after the fork, in each worker, or 'spawn' processes (gunicorn: no --preload)",
            )

    def _encode(self, request: Request) -> None:
        """Make the prompt's tokens before the engine's turn: a chat template may take its time."""
        request.interrupt.check()
        request.tokens = self.encode(request.prompt)
        self._check_room(request.tokens)

    @contextmanager
    def _turn(self, request: Request) -> Iterator[float]:
        """Wait for the engine; gives the seconds that took."""
        ticket = self._queue.acquire()
        try:
            self._wait(ticket, request.interrupt)
            yield time.monotonic() - request.interrupt.started
        finally:
            self._queue.release(ticket)

    def _wait(self, ticket: Ticket, interrupt: Interrupt) -> None:
        while not ticket.done():
            interrupt.check()
            self._queue.poll()
            poll = 0.05 if interrupt.cancel is not None else POLL_S
            limits = [seconds for seconds in (poll, interrupt.remaining_s) if seconds is not None]
            try:
                ticket.result(timeout=min(limits, default=None))
            except FutureTimeoutError:
                continue

    async def _aturn(self, request: Request) -> tuple[Ticket, float]:
        ticket = self._queue.acquire(asyncio.get_running_loop())
        try:
            turn = asyncio.wrap_future(ticket)
            while not turn.done():
                request.interrupt.check()
                self._queue.poll()
                left = request.interrupt.remaining_s
                # `wait` cancels nothing: `leave` must see the ticket as it is.
                await asyncio.wait([turn], timeout=POLL_S if left is None else min(left, POLL_S))
        except BaseException:
            self._queue.release(ticket)
            raise
        return ticket, time.monotonic() - request.interrupt.started

    @staticmethod
    def _advance_for(run: Generator[str, None, Generation], ticket: Ticket) -> str | Generation:
        try:
            return advance(run)
        finally:
            ticket.working -= 1

    def _close_and_leave(self, run: Generator[str, None, Generation], ticket: Ticket) -> None:
        try:
            run.close()
        finally:
            self._queue.release(ticket)

    def _run_and_leave(self, run: Generator[str, None, Generation], ticket: Ticket) -> Generation:
        try:
            return drain(run)
        finally:
            self._queue.release(ticket)

    def _run(self, request: Request, queue_s: float) -> Generator[str, None, Generation]:
        """Decode one request; yields text that is safe to show, returns the generation."""
        request.interrupt.check()
        started = time.monotonic()
        tokens = request.tokens
        room = self.model.context_tokens - len(tokens)
        forced = self._forced(request.completion, room, tokens)
        max_tokens = min(room, request.limits.max_tokens) if forced is None else len(forced)
        stop = request.limits.stop if forced is None else ()
        reading = self._reader.reading(tokens, stop=stop, tools=bool(request.prompt.tools))
        observer = request.observer
        answer = GrowingAnswer(reading, observer, request.on_token)
        finish: FinishReason = "length"
        rng = np.random.default_rng(request.sampling.seed)

        with self._session(capture=observer is not None, interrupt=request.interrupt) as session:
            fed: Sequence[int] = tokens
            while len(answer) < max_tokens:
                request.interrupt.check()
                logits = session.feed(fed)
                token = choose(logits, request.sampling, rng) if forced is None else forced[len(answer)]
                safe = answer.push(token, signals_of(logits, token), session.activations)
                if safe:
                    yield safe
                if answer.ended:
                    finish = "stop_string" if answer.stopped else "stop"
                    break
                fed = (token,)
        rest = answer.finish(cut=finish == "length")
        if rest:
            yield rest
        return answer.generation(
            finish,
            prompt_tokens=len(tokens),
            sampling=request.sampling,
            queue_s=queue_s,
            seconds=time.monotonic() - started,
        )

    @cached_property
    def _reader(self) -> AnswerReader:
        return AnswerReader(self.chat_template or "", self._token_id, self._detokenizer, self._is_end)

    def _forced(self, completion: str | None, room: int, prompt: Sequence[int]) -> list[int] | None:
        """Return the tokens of a given completion with its end token; None without one.

        Where the prompt opens a thought, the thought is closed first, so that the completion counts as the answer.
        """
        if completion is None:
            return None
        forced = [*self._reader.closing(prompt, self.encode_text), *self.encode_text(completion), self._end_token()]
        if len(forced) > room:
            raise PromptTooLongError(
                f"The completion has {len(forced)} tokens with its end",
                why=f"after the prompt, the context of {self.model.context_tokens} tokens has room for {room}",
                fix="Shorten the prompt or the answer, or build the engine with a larger context_tokens",
            )
        return forced

    def _check_room(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InputError("The prompt is empty", fix="Ask something")
        room = self.model.context_tokens
        if len(tokens) >= room:
            raise PromptTooLongError(
                f"The prompt has {len(tokens)} tokens, the context holds {room}",
                fix="Shorten the prompt, or build the engine with a larger context_tokens",
            )
