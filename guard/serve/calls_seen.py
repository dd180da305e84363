"""What LiteLLM's calls asked, since it sends an answer without its question, and perhaps to another server."""

from __future__ import annotations

import json

from guard.errors import StoreError
from guard.records import Prompt
from guard.serve.memory import ServerMemory

_KIND = "call"


class CallsSeen:
    """The questions of calls whose answers have not come yet, by key and call.

    Examples:
        >>> import asyncio
        >>> calls = CallsSeen(ServerMemory())
        >>> asyncio.run(calls.add("key", "call", Prompt.chat("Which city?")))
        >>> asyncio.run(calls.find("key", "call")).question, asyncio.run(calls.find("key", "another call"))
        ('Which city?', None)
    """

    def __init__(self, memory: ServerMemory) -> None:
        self._memory = memory

    async def add(self, key: str, call_id: str, prompt: Prompt) -> None:
        """Keep what a call asks."""
        await self._memory.keep(_KIND, key, {call_id: json.dumps(prompt.messages)})

    async def find(self, key: str, call_id: str) -> Prompt | None:
        """Return what a call asked; None where that is not known, so that its answer is blocked."""
        try:
            kept = await self._memory.find(_KIND, key, call_id)
        except StoreError:  # an error might let LiteLLM pass the answer
            return None
        return None if kept is None else Prompt.chat(json.loads(kept))
