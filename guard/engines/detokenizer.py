"""From tokens to text that is safe to show: characters made whole, stop strings held back."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Protocol


class Detokenizer(Protocol):
    """Turns token ids into text, a piece at a time.

    Attributes:
        within: whether the last token ends within a character.
    """

    @property
    def within(self) -> bool: ...

    def push(self, token: int) -> str:
        """Text that this token completes; may be empty within a character."""

    def flush(self) -> str:
        """Return the rest at the end of the answer."""


class BytesDetokenizer:
    """A `Detokenizer` over a function from token id to bytes, for byte-level vocabularies."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def within(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def push(self, token: int) -> str:
        return self._decoder.decode(self._piece(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class StopStringFilter:
    """Answer text so far, holding back whatever could still turn out to be a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.shown = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        self._held += piece
        cuts = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            self.stopped = True
            return self._release(min(cuts), drop_rest=True)
        return self._release(len(self._held) - self._could_begin_stop())

    def finish(self, piece: str) -> str:
        if self.stopped:
            return ""
        safe = self.push(piece)
        return safe + ("" if self.stopped else self._release(len(self._held)))

    def _could_begin_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0

    def _release(self, length: int, *, drop_rest: bool = False) -> str:
        safe, rest = self._held[:length], self._held[length:]
        self._held = "" if drop_rest else rest
        self.shown += safe
        return safe
