"""Clients' side requests: chat programs ask the same model for titles, tags, follow-up questions and more.

A side request is not a person's question, so it never becomes a case for review. By default, the policy's route
``background`` decides on it. For an API key that allows it, it is answered without a policy if both conditions hold:

- the message is a known template from its first character to its last, with nothing but a conversation in it;
- that conversation is one that this server, or another one on the same PostgreSQL, has answered and accepted for the
  same key.

A question wrapped in such a template is not an accepted conversation, so it never gets an unguarded answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.records import Prompt
from guard.serve.memory import ServerMemory

_KIND = "conversation"

_OPEN, _CLOSE = "<chat_history>\n", "\n</chat_history>"

#: How side requests begin, and what each has further on; Open WebUI's users change the rest of its templates. They ask
#: for something about a conversation, an emoji, a summary of a conversation's beginning, and what to remember.
_FORMS = (
    ("### Task:\n", (_OPEN, _CLOSE)),
    ("Your task is to reflect the speaker's likely facial expression through a fitting emoji.", ()),
    ("### Task:\n", ("\n### Messages Being Compacted:\n",)),
    ("Review the completed conversation turn and decide whether long-term memory should change.", ("Conversation:\n",)),
)
#: The same of the system message of a request that has tools chosen.
_TOOLS = ("Available Tools: ", ("choose and return the correct tool(s) from the list of available tools",))

#: SHA-256 of the text around the conversation, a NUL in its place, of Open WebUI's own templates: those of release
#: 0.12.4, and the follow-ups of a public copy of its ``open_webui/config.py`` of November 2026, which names no release.
#: Other releases' templates go to the route ``background``.
TEMPLATES: Mapping[str, str] = {
    "8490b40e5bfa2675f86dd20fe6f3605efbc307f088664f48a21c0d11537b0672": "title",
    "26be561b377308ecff7107d6293d7a166682cd6dc60699046150909a2a406f94": "tags",
    "42a8b3916c6fb71affe8d10120bd1dd74c0bb22f779f0ab82b1745817db5f10e": "follow-ups",
    "d965f20f742a052390c62c987dbb31a3b1e53f6de81a904c23dd7aafae196878": "follow-ups, before",
}


class KnownConversations:
    """Conversations that were answered and accepted, by key: hashes of what templates take of them."""

    def __init__(self, memory: ServerMemory) -> None:
        self._memory = memory

    async def add(self, key: str, prompt: Prompt, answer: str) -> None:
        """Add a conversation with its accepted answer."""
        turns = [turn for turn in prompt.messages or () if turn["role"] in ("user", "assistant")]
        whole = [*turns, {"role": "assistant", "content": answer}]
        await self._memory.keep(_KIND, key, {_digest(key, _rendered(taken)): "" for taken in _taken(whole)})

    async def has(self, key: str, conversation: str) -> bool:
        """Return whether this is the end of a conversation that was accepted for this key.

        Raises:
            StoreError: the store failed.
        """
        return await self._memory.find(_KIND, key, _digest(key, conversation)) is not None


@dataclass(frozen=True, slots=True)
class SideRequest:
    """A side request.

    Attributes:
        conversation: the conversation in it; None if the message is not a known template.
    """

    conversation: str | None


def find_side_request(messages: Sequence[Mapping[str, Any]]) -> SideRequest | None:
    """Return the side request in some messages, or None if they are a question.

    Args:
        messages: messages whose contents are strings.

    Examples:
        >>> find_side_request([{"role": "user", "content": "Which city is the capital of France?"}]) is None
        True
        >>> asked = "### Task:\\nMake a title.\\n<chat_history>\\nUSER: Hi\\n</chat_history>"
        >>> find_side_request([{"role": "user", "content": asked}])
        SideRequest(conversation=None)
    """
    text = _text(messages[-1], "user")
    chooses_tools = _has_form(_text(messages[0], "system"), *_TOOLS)
    if not text or not (chooses_tools or any(_has_form(text, *form) for form in _FORMS)):
        return None
    before, _, rest = text.partition(_OPEN)
    conversation, _, behind = rest.rpartition(_CLOSE)
    around = hashlib.sha256(f"{before}\0{behind}".encode()).hexdigest()
    whole = around in TEMPLATES and len(messages) == 1
    return SideRequest(conversation if whole else None)


def _text(message: Mapping[str, Any], role: str) -> str:
    """Return a message's text, if it is a text of this role."""
    text = message.get("content") if message.get("role") == role else None
    return text if isinstance(text, str) else ""


def _has_form(text: str, begins: str, parts: Sequence[str]) -> bool:
    return text.startswith(begins) and all(part in text for part in parts)


def _taken(messages: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield what Open WebUI's templates take of a conversation: an end of it, or its first question and an end."""
    yield messages[-2:]  # title
    yield messages[-6:]  # tags
    start = max(0, len(messages) - 4)  # follow-ups
    first = next((number for number, turn in enumerate(messages) if turn["role"] == "user"), start)
    yield [*messages[first : first + (first < start)], *messages[start:]]


def _rendered(turns: Sequence[Mapping[str, Any]]) -> str:
    """Render a conversation as Open WebUI does."""
    return "\n".join(f"{str(turn['role']).upper()}: {turn['content']}" for turn in turns)


def _digest(key: str, conversation: str) -> str:
    return hashlib.sha256(f"{len(key)}:{key}{conversation}".encode()).hexdigest()
