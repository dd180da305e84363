"""What every engine with a decoding loop of guard's shares: the loop, its slots, and what it asks of the model.

An engine only says how to tokenize, how to feed tokens through its model, and what its layers put
out; everything that could differ between engines by accident is here once. How prompts become tokens is in
`guard.engines.tokenizing`, how callers ask in `guard.engines.asked`, how the thread answers in
`guard.engines.engine_loop`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from guard.engines.batch import Feed, PassRow, Start
from guard.engines.engine_loop import EngineLoop
from guard.engines.slots import Reuse
from guard.engines.tokenizing import TokenizingEngine


class BaseEngine(TokenizingEngine):
    """Engine over a model.

    Safe under threads and asyncio: requests wait for a slot, first come, first served. A subclass with one slot
    sees one request at a time; one with several gets them together, to evaluate in one pass.
    """

    #: How many sequences the model can continue in one pass, or remember where it continues one at a time.
    slots: int = 1
    #: Whether a request waits for the one before it to end.
    one_at_a_time: bool = False
    #: What of earlier requests' tokens the model can use again.
    reuse: Reuse = "nothing"
    most_top_logprobs = 20  # as OpenAI's API

    def __init__(self) -> None:
        self._loop = EngineLoop(self)
        super().__init__(self._loop)

    @property
    def at_once(self) -> int:
        """How many requests are answered at the same time."""
        return 1 if self.one_at_a_time else self.slots

    # -- what an engine implements -------------------------------------------------------------

    @abstractmethod
    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        """Run tokens of some sequences through the model, in one pass.

        Called in the engine's thread only, as are `_begin`, `_release` and `_forget`.

        Args:
            feeds: at most one for each slot, and `batch_tokens` tokens together.

        Returns:
            one row for each feed that chooses a token, in order; valid until the next call.
        """

    # -- what an engine says where it knows ----------------------------------------------------

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

    def _release(self, slot: int) -> None:
        """Detach what was attached for the slot's request. Its tokens stay, where they can be used again."""

    def _forget(self, slot: int | None) -> None:
        """Drop the tokens of a slot, or of all slots for None."""
