"""What guard needs of an engine, and what an engine needs of its callers: protocols, without any of their code."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from guard.records import Floats, Generation, Limits, ModelInfo, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. The last chunk has the whole generation and no text.

    Attributes:
        text: text that can be shown (never a part of a stop string).
        generation: set on the last chunk only.
    """

    text: str
    generation: Generation | None = None


@runtime_checkable
class Observer(Protocol):
    """Gets each generated token's activations, as they come, so that they never pile up.

    One with an attribute ``reads_layers`` that is False gets nothing from guard's engines, which then record none.
    """

    def observe(self, activations: Floats) -> None:
        """Take the activations of the forward pass that chose one token of the answer, its end included.

        Tokens of a thought before the answer are not observed.

        Args:
            activations: shape (L, D), float32; valid only during the call.
        """


class Engine(Protocol):
    """What guard needs of an engine. `BaseEngine` implements all but the model itself."""

    @property
    def model(self) -> ModelInfo:
        """What is loaded."""

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = ...,
        limits: Limits = ...,
        observer: Observer | None = ...,
        cancel: threading.Event | None = ...,
        completion: str | None = ...,
    ) -> Generation:
        """Answer a prompt; see `BaseEngine.generate`."""

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = ...,
        limits: Limits = ...,
        observer: Observer | None = ...,
        completion: str | None = ...,
    ) -> Generation:
        """Generate an answer without blocking the event loop."""

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = ...,
        limits: Limits = ...,
        observer: Observer | None = ...,
        cancel: threading.Event | None = ...,
    ) -> Iterator[Chunk]:
        """Answer a prompt piece by piece."""

    def astream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = ...,
        limits: Limits = ...,
        observer: Observer | None = ...,
    ) -> AsyncIterator[Chunk]:
        """Stream an answer without blocking the event loop."""

    def close(self) -> None:
        """Free what the engine loaded itself."""


@runtime_checkable
class AttentionEngine(Protocol):
    """An engine that can return the attention weights of its model."""

    def attention(self, prompt: Prompt, answer: Sequence[int]) -> Floats:
        """Return how much each head attends to the latest token in each pass that chooses a token of an answer.

        Args:
            prompt: of the answer.
            answer: its tokens, the end included, T of them.

        Returns:
            shape (L, H, T - 1), float32, from 0 to 1; the first is of the pass that chose the second token.

        Raises:
            InputError: the model returns no attention, or the text is too long for it.
        """
