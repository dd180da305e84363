"""Key-value caches of earlier requests on a Hugging Face model, whose beginnings later requests reuse.

What can be dropped from a cache differs between its layers. Full attention keeps every token and can drop the last
ones; a sliding window has forgotten the first ones once it is full; a recurrent state cannot go back. So a cache is cut
only where each of its layers is of a kind, and in a state, that is known to be cut exactly. Any other is used as it is
or not at all.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import cache_utils

from guard.engines.batch import Start


@dataclass(frozen=True, slots=True)
class _Kept:
    """A cache, and how many tokens it has read."""

    cache: Any
    tokens: int


class KeptCaches:
    """The caches of an engine's slots."""

    def __init__(self) -> None:
        self._slots: dict[int, _Kept] = {}

    def keep(self, slot: int, cache: Any, tokens: int) -> None:
        """Keep the cache of a request that has ended.

        Args:
            slot: slot of the request.
            cache: its cache; None if the model has none.
            tokens: tokens that the cache has read.
        """
        if cache is not None and tokens:
            self._slots[slot] = _Kept(cache, tokens)

    def forget(self, slot: int | None) -> None:
        """Drop the cache of a slot, or of all slots for None."""
        if slot is None:
            self._slots.clear()
        else:
            self._slots.pop(slot, None)

    def beginning(self, start: Start) -> Any:
        """Return a cache of a request's first tokens: that of its slot, or a copy of another's; None without one."""
        own = self._slots.pop(start.slot, None)
        kept = own if start.source is None else self._slots.get(start.source)
        if not start.keep or kept is None or not can_drop(kept.cache, kept.tokens - start.keep):
            return None
        cache = kept.cache if start.source is None else copy.deepcopy(kept.cache)
        if kept.tokens > start.keep:
            cache.crop(start.keep - kept.tokens)
        return cache


def can_drop(cache: Any, tokens: int) -> bool:
    """Return whether the last tokens can be dropped from a cache, so that it is as if they had never been read."""
    if tokens == 0:
        return True
    return type(cache) is cache_utils.DynamicCache and all(map(_can_go_back, cache.layers))


def _can_go_back(layer: Any) -> bool:
    if type(layer) is cache_utils.DynamicSlidingWindowLayer:
        return bool(layer.get_seq_length() < layer.sliding_window)
    return type(layer) is cache_utils.DynamicLayer
