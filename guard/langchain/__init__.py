"""guard in LangChain: a chat model that scores itself, any chain as a guarded one, agents.

Names are imported when they are first used, so that a program with ``langchain-core`` alone can use
all that does not need the agents' package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.langchain.chat import ChatGuard
    from guard.langchain.engines import close_engines, shared_engine
    from guard.langchain.metadata import ScoredCall, decision_metadata, read_score, score_metadata

#: Where each public name lives.
_HOMES = {
    "ChatGuard": "chat",
    "ScoredCall": "metadata",
    "close_engines": "engines",
    "decision_metadata": "metadata",
    "read_score": "metadata",
    "score_metadata": "metadata",
    "shared_engine": "engines",
}

__all__ = [
    "ChatGuard",
    "ScoredCall",
    "close_engines",
    "decision_metadata",
    "read_score",
    "score_metadata",
    "shared_engine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'guard.langchain' has no attribute '{name}'")
    return getattr(importlib.import_module(f"guard.langchain.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
