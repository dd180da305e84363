"""The chat model: requests, tool calls and structured output on an engine that scores its answers.

The public names are re-exported by `guard.langchain`. All modules are internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.langchain.chat.chat_guard import ChatGuard
    from guard.langchain.chat.shared_engines import close_engines, shared_engine

__all__ = [
    "ChatGuard",
    "close_engines",
    "shared_engine",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "chat_guard": ("ChatGuard",),
        "shared_engines": (
            "close_engines",
            "shared_engine",
        ),
    },
)
