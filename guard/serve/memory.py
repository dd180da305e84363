"""What a server remembers of its answers for a while: by itself, or with the others on one PostgreSQL.

Nothing here decides about an answer. What cannot be kept or found is unknown: a decision gets 404, a side request its
policy, and an answer whose question is not known is blocked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from guard.errors import StoreError

if TYPE_CHECKING:
    from guard.review.short_lived import ShortLived

_log = logging.getLogger("guard.serve")

#: Seconds for which servers remember together.
SHARED_S = 3600.0


class ServerMemory:
    """Small texts by kind, owner and name, in one event loop.

    Args:
        shared: of a store that several servers use; None for a server that remembers by itself.
        most: texts of one kind that a server keeps by itself; the oldest are dropped.
        most_characters: of all texts of one kind, in the same way.

    Examples:
        >>> memory = ServerMemory(most=1)
        >>> asyncio.run(memory.keep("decision", "key", {"a": "accept"}))
        True
        >>> asyncio.run(memory.find("decision", "key", "a")), asyncio.run(memory.find("decision", "another key", "a"))
        ('accept', None)
        >>> asyncio.run(memory.keep("decision", "key", {"b": "abstain"}))
        True
        >>> asyncio.run(memory.find("decision", "key", "a")) is None
        True
    """

    def __init__(
        self, shared: ShortLived | None = None, *, most: int = 30_000, most_characters: int = 50_000_000
    ) -> None:
        self._shared, self._most, self._most_characters = shared, most, most_characters
        self._own: defaultdict[str, OrderedDict[tuple[str, str], str]] = defaultdict(OrderedDict)
        self._characters: Counter[str] = Counter()

    async def keep(self, kind: str, owner: str, texts: Mapping[str, str], *, otherwise: str | None = None) -> bool:
        """Keep texts; where the store fails they are unknown later, and the answer is not held up.

        Args:
            kind: of the texts.
            owner: who may find them.
            texts: by name.
            otherwise: what is kept where there is another text of that name; None for the new one.

        Returns:
            whether they are kept.
        """
        if self._shared is None:
            self._keep(kind, owner, texts, otherwise)
            return True
        try:
            await asyncio.to_thread(self._shared.keep, kind, owner, texts, seconds=SHARED_S, otherwise=otherwise)
        except StoreError as error:
            _log.warning("what was to be kept as %s is lost: %s", kind, error)
            return False
        return True

    async def find(self, kind: str, owner: str, name: str) -> str | None:
        """Return a text; None where there is none that this owner may find.

        Raises:
            StoreError: the store failed.
        """
        if self._shared is None:
            return self._own[kind].get((owner, name))
        return await asyncio.to_thread(self._shared.find, kind, owner, name)

    def _keep(self, kind: str, owner: str, texts: Mapping[str, str], otherwise: str | None) -> None:
        own = self._own[kind]
        for name, text in texts.items():
            old = own.pop((owner, name), None)
            kept = text if otherwise is None or old in (None, text) else otherwise
            self._characters[kind] += len(kept) - len(old or "")
            own[owner, name] = kept
        while own and (len(own) > self._most or self._characters[kind] > self._most_characters):
            self._characters[kind] -= len(own.popitem(last=False)[1])
