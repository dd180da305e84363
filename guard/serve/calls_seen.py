"""What LiteLLM's calls asked, since it sends an answer without its question, and perhaps to another server."""

from __future__ import annotations

import json

from guard.errors import StoreError
from guard.records import Prompt
from guard.serve.memory import ServerMemory

_KIND = "call"
#: In place of a question: the answer is blocked.
_UNKNOWN = "null"


class CallsSeen:
    """The questions of calls whose answers have not come yet, by key and call.

    LiteLLM's clients may choose the id of their call (``x-litellm-call-id``). A call that asks two things is unknown:
    otherwise the answer to a hard question could be scored as one to an easy question with the same id.

    Examples:
        >>> import asyncio
        >>> calls = CallsSeen(ServerMemory())
        >>> asyncio.run(calls.add("key", "call", Prompt.chat("Which city?")))
        True
        >>> asyncio.run(calls.find("key", "call")).question, asyncio.run(calls.find("key", "another call"))
        ('Which city?', None)
        >>> asyncio.run(calls.add("key", "call", Prompt.chat("Which river?")))
        True
        >>> asyncio.run(calls.find("key", "call")) is None
        True
    """

    def __init__(self, memory: ServerMemory) -> None:
        self._memory = memory

    async def add(self, key: str, call_id: str, prompt: Prompt | None) -> bool:
        """Keep what a call asks, and return whether it is kept.

        Args:
            key: of the caller.
            call_id: of the call.
            prompt: None where it cannot be scored.
        """
        text = _UNKNOWN if prompt is None else json.dumps(prompt.messages)
        return await self._memory.keep(_KIND, key, {call_id: text}, otherwise=_UNKNOWN)

    async def find(self, key: str, call_id: str) -> Prompt | None:
        """Return what a call asked; None where that is not known, so that its answer is blocked."""
        try:
            kept = await self._memory.find(_KIND, key, call_id)
        except StoreError:  # an error might let LiteLLM pass the answer
            return None
        messages = None if kept is None else json.loads(kept)
        return None if messages is None else Prompt.chat(messages)
