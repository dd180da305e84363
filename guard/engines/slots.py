"""Which sequence of a model's memory a request gets, and what is kept in it. Pure bookkeeping.

A *slot* is a sequence that the model remembers: its tokens, each in a *cell* of the cache. Slots that begin
alike share cells, so that a prefix which many requests have in common is held once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

#: What of a slot's content a later request may use: nothing; all of it, where the request continues it; its
#: beginning, where the rest can be dropped; the beginning of any slot, where it can be copied as well.
Reuse = Literal["nothing", "continuation", "prefix", "copy"]


@dataclass(slots=True)
class Slot:
    """One sequence in the model's memory.

    Attributes:
        number: from 0.
        tokens: that have been evaluated, in order.
        cells: of these tokens.
        key: cache key of the request that filled it; only requests with the same key may use it.
        busy: whether a request is using it.
        room: tokens that this request may fill it with, those it holds included.
        used: when it was last taken or released; larger is later.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    key: str | None = None
    busy: bool = False
    room: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes.

    Attributes:
        slot: the number of its slot.
        keep: how many of its first tokens are there already; the rest of the slot is dropped.
        source: the slot they are copied from, where it is another one.
        evicted: slots whose content is dropped to make room.
    """

    slot: int
    keep: int
    source: int | None
    evicted: tuple[int, ...]


class SlotTable:
    """The slots of one model.

    Args:
        slots: how many sequences there are.
        cells: tokens that all of them have room for together.
        reuse: what of their content a later request may use.
    """

    def __init__(self, slots: int, cells: int, reuse: Reuse) -> None:
        self.slots = [Slot(number) for number in range(slots)]
        self.cells, self._reuse = cells, reuse
        self._holders: Counter[int] = Counter()  # how many slots hold a cell
        self._new_cells, self._clock = count(), count(1)

    @property
    def copies(self) -> bool:
        """Whether a slot can take over the beginning of another."""
        return self._reuse == "copy"

    @property
    def used(self) -> int:
        """Cells that hold a token."""
        return len(self._holders)

    @property
    def reserved(self) -> int:
        """Cells that busy slots may still fill."""
        return sum(slot.room - len(slot.tokens) for slot in self.slots if slot.busy)

    def place(self, tokens: list[int], room: int, key: str | None) -> Placement | None:
        """Take a slot for a request; None where all are busy, or too little room is left.

        A slot whose whole content the request continues is taken as it is. Otherwise the least recently used one is
        taken, empty ones first, and the longest common prefix is copied to it; where slots cannot be copied, the one
        with the longest common prefix. Idle slots that do not fit beside it are evicted, least recently used first.

        Args:
            tokens: of its prompt. The last is never taken from a slot, since it has to be evaluated.
            room: tokens of its prompt and of the beginning of its answer; see `grow`.
            key: its cache key.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        best = max(self._sources(free), key=lambda slot: (self.shared(slot, tokens, key), slot.used))
        keep = self.shared(best, tokens, key)
        target = self._target(free, best, keep)
        evicted = self._evicted(room - keep, set(best.cells[:keep]), target)
        if evicted is None:
            return None
        self._take(target, best, keep)
        for number in evicted:
            self.shorten(number, 0)
        target.key, target.room = key, room
        return Placement(target.number, keep, best.number if keep and best is not target else None, evicted)

    def grow(self, number: int, room: int) -> tuple[int, ...] | None:
        """Let a request fill its slot further; return the idle slots that are evicted for it, None without room.

        Args:
            number: of its slot.
            room: tokens that it may fill the slot with from now on.
        """
        slot = self.slots[number]
        evicted = self._evicted(room - slot.room, set(), slot)
        if evicted is not None:
            slot.room = room
            for other in evicted:
                self.shorten(other, 0)
        return evicted

    def shared(self, slot: Slot, tokens: list[int], key: str | None) -> int:
        """Return how many of a prompt's first tokens a slot can give; the prompt's last one is never among them."""
        if self._reuse == "nothing" or slot.key != key:
            return 0
        common = common_prefix(slot.tokens, tokens[:-1])
        return 0 if self._reuse == "continuation" and common < len(slot.tokens) else common

    def extend(self, number: int, tokens: Iterable[int]) -> None:
        """Note tokens that were evaluated."""
        slot = self.slots[number]
        for token in tokens:
            cell = next(self._new_cells)
            slot.tokens.append(token)
            slot.cells.append(cell)
            self._holders[cell] = 1

    def shorten(self, number: int, keep: int) -> None:
        """Note that a slot holds only its first tokens."""
        slot = self.slots[number]
        for cell in slot.cells[keep:]:
            self._let_go(cell)
        del slot.cells[keep:], slot.tokens[keep:]

    def release(self, number: int) -> None:
        """Note that no request uses a slot any more; what was evaluated stays, where it can be used again."""
        slot = self.slots[number]
        slot.busy, slot.room, slot.used = False, 0, next(self._clock)
        if self._reuse == "nothing":
            self.shorten(number, 0)

    def clear(self) -> None:
        """Note that all slots are empty."""
        for slot in self.slots:
            self.shorten(slot.number, 0)

    # -- how a slot is chosen --------------------------------------------------------------------

    def _sources(self, free: list[Slot]) -> list[Slot]:
        return self.slots if self.copies else free

    def _target(self, free: list[Slot], best: Slot, keep: int) -> Slot:
        continued = not best.busy and keep == len(best.tokens)
        if keep and (continued or not self.copies):
            return best
        return min(free, key=lambda slot: (bool(slot.tokens), slot.used))

    def _evicted(self, wanted: int, held: set[int], target: Slot) -> tuple[int, ...] | None:
        """Return idle slots that do not fit beside the busy ones; None where the request itself does not.

        Args:
            wanted: cells that the request needs beside those that are held already.
            held: cells that it takes over.
            target: the slot that it takes.
        """
        limit = self.cells - self.reserved - wanted
        held = held.union(*(slot.cells for slot in self.slots if slot.busy))
        if len(held) > limit:
            return None
        idle = [slot for slot in self.slots if slot.tokens and not slot.busy and slot is not target]
        evicted = []
        for slot in sorted(idle, key=lambda slot: slot.used, reverse=True):
            if len(held.union(slot.cells)) > limit:
                evicted.append(slot.number)
            else:
                held.update(slot.cells)
        return tuple(evicted)

    def _take(self, target: Slot, source: Slot, keep: int) -> None:
        if target is source:
            self.shorten(target.number, keep)
        else:
            cells, tokens = source.cells[:keep], source.tokens[:keep]
            self._holders.update(cells)
            self.shorten(target.number, 0)
            target.cells, target.tokens = cells, tokens
        target.busy, target.used = True, next(self._clock)

    def _let_go(self, cell: int) -> None:
        self._holders[cell] -= 1
        if not self._holders[cell]:
            del self._holders[cell]


def common_prefix(one: list[int], other: list[int]) -> int:
    """Return how many tokens two lists have in common at their beginning.

    Examples:
        >>> common_prefix([1, 2, 3], [1, 2, 4])
        2
    """
    # Slices are compared in C: a prompt of thousands of tokens is compared with each slot.
    return bisect_left(range(1, min(len(one), len(other)) + 1), True, key=lambda length: one[:length] != other[:length])
