"""The newest decisions of a server by id: verdicts without texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guard.serve.memory import ServerMemory

_KIND = "decision"


class RecentDecisions:
    """Verdicts of a server, and of the others on the same PostgreSQL; each seen by the key that asked only.

    Examples:
        >>> import asyncio
        >>> recent = RecentDecisions(ServerMemory())
        >>> asyncio.run(recent.add("key", {"decision_id": "a", "action": "accept"}))
        >>> asyncio.run(recent.find("a", "key"))["action"], asyncio.run(recent.find("a", "another key"))
        ('accept', None)
    """

    def __init__(self, memory: ServerMemory) -> None:
        self._memory = memory

    async def add(self, owner: str, said: Mapping[str, Any]) -> None:
        """Keep a decision."""
        await self._memory.keep(_KIND, owner, {said["decision_id"]: json.dumps(dict(said))})

    async def find(self, decision_id: str, owner: str) -> Mapping[str, Any] | None:
        """Return a verdict; None where there is none that this key asked for.

        Raises:
            StoreError: the store failed.
        """
        kept = await self._memory.find(_KIND, owner, decision_id)
        found: Mapping[str, Any] | None = None if kept is None else json.loads(kept)
        return found
