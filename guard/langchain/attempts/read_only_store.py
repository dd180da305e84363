"""The store of an outer graph as a guarded chain sees it: to be read, not to be written.

What a node writes during an attempt would stay there, whatever the policy decides about the answer, and the next
attempt could read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langgraph.store.base import BaseStore, Op, PutOp, Result

from guard.errors import InputError


class ReadOnlyStore(BaseStore):
    """A store that passes on what reads and refuses what writes."""

    __slots__ = ("_store",)

    def __init__(self, store: BaseStore) -> None:
        self._store = store

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations.

        Raises:
            InputError: one of them writes.
        """
        return self._store.batch(_reading(ops))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` without blocking the event loop."""
        return await self._store.abatch(_reading(ops))


def read_only(store: Any) -> ReadOnlyStore:
    """Return a store that cannot be written through; one that is read-only already stays as it is."""
    return store if isinstance(store, ReadOnlyStore) else ReadOnlyStore(store)


def _reading(ops: Iterable[Op]) -> list[Op]:
    known = list(ops)
    if any(isinstance(op, PutOp) for op in known):
        raise InputError(
            "A guarded chain cannot write to the graph's store",
            why="what it writes would stay, whatever the policy decides about the answer",
            fix="Write in a node after the guarded chain",
        )
    return known
