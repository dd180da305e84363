"""What an engine's scheduler hands to its model, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guard.engines.growing import AnswerReader
from guard.engines.slots import Reuse
from guard.records import Floats


@dataclass(frozen=True, slots=True)
class Start:
    """A request that takes a slot.

    Attributes:
        slot: its number, from 0.
        prompt: all tokens of the prompt.
        keep: how many of the prompt's first tokens the slot, or `source`, already holds.
        source: the slot that holds them, where it is another one.
        capture: whether an observer reads the layers.
    """

    slot: int
    prompt: Sequence[int]
    keep: int = 0
    source: int | None = None
    capture: bool = False


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens that one sequence is continued by in this step.

    Attributes:
        slot: of the sequence.
        tokens: the next tokens, at least one.
        position: of the first of them in the sequence; 0 begins a new one.
        chooses: whether a token is chosen after the last of them, so that its logits are needed.
        capture: whether the layers of the last of them are needed.
    """

    slot: int
    tokens: Sequence[int]
    position: int
    chooses: bool
    capture: bool


class PassRow(Protocol):
    """What the model says after the last token of a `Feed`; valid until the next step."""

    def logits(self) -> Floats:
        """Return the raw logits, shape (V,)."""

    def activations(self) -> Floats:
        """Return the layers' activations, shape (L, D); raises CaptureError where they are missing."""


class BatchModel(Protocol):
    """What the engine's thread uses of an engine; `guard.engines.BaseEngine` says more of each."""

    slots: int
    one_at_a_time: bool
    reuse: Reuse

    @property
    def batch_tokens(self) -> int:
        """Tokens that one pass may have, at most."""

    @property
    def cache_tokens(self) -> int:
        """Tokens that all slots have room for together."""

    @property
    def _reader(self) -> AnswerReader:
        """Makes text of tokens."""

    def _begin(self, start: Start) -> int:
        """Prepare a slot for a request; return how many tokens of its prompt are in it already."""

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        """Run tokens of some sequences through the model, in one pass."""

    def _release(self, slot: int) -> None:
        """Detach what was attached for the slot's request."""

    def _forget(self, slot: int | None) -> None:
        """Drop the tokens of a slot, or of all slots for None."""


#: Tokens of prompts in a step that continues answers too, so that these need not wait for long.
PROMPT_TOKENS_BESIDE_ANSWERS = 128


def share_out(pending: Sequence[int], tokens: int) -> list[int]:
    """Return how many tokens each sequence is continued by in the next step.

    Answers are continued by a token each. Half of what is left is shared by the prompts, so that a short one need not
    wait until the long ones before it are read; the other half goes to the first.

    Args:
        pending: how many tokens each sequence has still to read, in the order in which they came.
        tokens: how many one step may have.

    Examples:
        >>> share_out([1, 700, 30, 1], tokens=512)
        [1, 98, 30, 1]
        >>> share_out([700, 30], tokens=512)
        [482, 30]
        >>> share_out([40, 30], tokens=512)
        [40, 30]
    """
    counts = [min(count, 1) if count <= 1 else 0 for count in pending]
    answers, prompts = sum(counts), [at for at, count in enumerate(pending) if count > 1]
    left = min(tokens - answers, PROMPT_TOKENS_BESIDE_ANSWERS if answers else tokens)
    for share in (left // (2 * len(prompts) or 1), left):
        for at in prompts:
            more = min(pending[at] - counts[at], share, left)
            counts[at], left = counts[at] + more, left - more
    return counts
