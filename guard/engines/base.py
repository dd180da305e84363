"""What every engine shares: the decoding loop, slots, streaming, deadlines, cancellation.

An engine only says how to tokenize, how to feed tokens through its model, and what its layers put
out; everything that could differ between engines by accident is here once. `generate`, `agenerate`, `stream` and
`astream` are four ways to read what one thread, the engine's, writes (see `guard.engines.engine_loop`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from guard.engines import witness
from guard.engines.batch import Feed, PassRow, Start
from guard.engines.chat_template import check_options
from guard.engines.constraint import Grammars
from guard.engines.detokenizer import Detokenizer
from guard.engines.engine_loop import EngineLoop
from guard.engines.growing import AnswerReader
from guard.engines.protocols import Observer
from guard.engines.request import Interrupt, Outbox, Request
from guard.engines.sampling import TokenSignals
from guard.engines.slots import Reuse
from guard.errors import ForkError, InputError, PromptTooLongError
from guard.records import CapturePoint, Chunk, Generation, Limits, ModelInfo, Prompt, Sampling


class BaseEngine(ABC):
    """Engine over a model.

    Safe under threads and asyncio: requests wait for a slot, first come, first served. A subclass with one slot
    sees one request at a time; one with several gets them together, to evaluate in one pass.
    """

    #: Where activations are read.
    capture_point: CapturePoint

    #: How many sequences the model can continue in one pass, or remember where it continues one at a time.
    slots: int = 1
    #: Whether a request waits for the one before it to end.
    one_at_a_time: bool = False
    #: What of earlier requests' tokens the model can use again.
    reuse: Reuse = "nothing"

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = EngineLoop(self)
        # Not the event loop's own pool: a template that takes its time must not keep that busy.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="guard-encoder")

    @property
    def at_once(self) -> int:
        """How many requests are answered at the same time."""
        return 1 if self.one_at_a_time else self.slots

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
    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        """Run tokens of some sequences through the model, in one pass.

        Called in the engine's thread only, as are `_begin`, `_release` and `_forget`.

        Args:
            feeds: at most one for each slot, and `batch_tokens` tokens together.

        Returns:
            one row for each feed that chooses a token, in order; valid until the next call.
        """

    @abstractmethod
    def _free(self) -> None:
        """Free what the engine loaded itself; no thread uses it any more. May be called again."""

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

    def _grammar_vocabulary(self) -> Any:
        """Return llguidance's view of the vocabulary (see `guard.engines.constraint.vocabulary_of`), for formats."""
        raise InputError(f"The engine '{self.model.engine}' cannot answer in a response format")

    @property
    def cache_tokens(self) -> int:
        """Tokens that all slots have room for together."""
        return self.model.context_tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens that one pass may have, at most. A longer prompt is read in several."""
        return 512

    def _begin(self, start: Start) -> int:
        """Prepare a slot for a request; return how many tokens of its prompt are in it already.

        At most `Start.keep`, which is 0 where nothing can be used again.
        """
        return start.keep

    def _release(self, slot: int) -> None:  # noqa: B027 - most have nothing to do
        """Detach what was attached for the slot's request. Its tokens stay, where they can be used again."""

    def _forget(self, slot: int | None) -> None:  # noqa: B027
        """Drop the tokens of a slot, or of all slots for None."""

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

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """Return the text that each token of an answer adds; empty within a character, which the last one gives."""
        reading = self._detokenizer()
        return [reading.push(token) for token in tokens]

    def close(self) -> None:
        """Free what the engine loaded itself. Requests that are being answered end with an error."""
        if os.getpid() == self._process:  # a fork has no thread to end, and nothing that it may free
            self._loop.close(self._free)

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
        if observer is None and settings.get("completion") is None:  # who scores the answer observes the layers
            witness.begin(None).say(None)
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(32))
        interrupt = Interrupt(time.monotonic(), limits.timeout_s, cancel)
        return Request(prompt, sampling, limits, observer, interrupt, Outbox(loop), **settings)

    def _check_process(self) -> None:
        """A fork copies an engine without its threads, and whoever asks it there waits forever."""
        if os.getpid() != self._process:
            raise ForkError(
                "The engine was loaded before this process was forked",
                why="a fork has none of the threads that the model computes with",
                fix="Load it after the fork, in each worker, or 'spawn' processes (gunicorn: no --preload)",
            )

    def _encode(self, request: Request) -> None:
        """Make the tokens in the caller's thread: a chat template may take its time."""
        request.interrupt.check()
        request.tokens = self.encode(request.prompt)
        self._check_room(request.tokens)
        room = self.model.context_tokens - len(request.tokens)
        request.forced = self._forced(request.completion, room, request.tokens)
        request.max_tokens = min(room, request.limits.max_tokens) if request.forced is None else len(request.forced)
        if request.forced is None and request.prompt.response_format is not None:
            request.constraint = self._grammars.constraint(request.prompt.response_format)

    @contextmanager
    def _submitted(self, request: Request) -> Iterator[Outbox]:
        """Let a request run; on leaving, its reader is gone."""
        self._loop.submit(request)
        try:
            yield request.outbox
        finally:
            if os.getpid() == self._process:
                self._loop.leave(request)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._grammar_vocabulary)

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


def _generation(item: str | Generation) -> Generation:
    """Return what comes out of a request of which no pieces are wanted."""
    assert isinstance(item, Generation)
    return item
