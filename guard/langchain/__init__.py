"""guard in LangChain: a chat model that scores itself, any chain as a guarded one, agents.

Names are imported when they are first used, so that a program with ``langchain-core`` alone can use
all that does not need the agents' package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guard.errors import missing_extra

if TYPE_CHECKING:
    from guard.langchain.accounting import unguarded
    from guard.langchain.chat import ChatGuard
    from guard.langchain.declared import trusted
    from guard.langchain.engines import close_engines, shared_engine
    from guard.langchain.guarded_run import GuardedOutcome
    from guard.langchain.live import RetractedError
    from guard.langchain.metadata import ScoredCall, decision_metadata, read_score, score_metadata
    from guard.langchain.middleware import GuardMiddleware
    from guard.langchain.run_once import once
    from guard.langchain.runnable import GuardedRunnable, guarded

#: What the extra installs.
_PACKAGES = ("langchain_core", "langchain", "langgraph", "langsmith")

#: Where each public name lives.
_HOMES = {
    "ChatGuard": "chat",
    "GuardMiddleware": "middleware",
    "GuardedOutcome": "guarded_run",
    "GuardedRunnable": "runnable",
    "RetractedError": "live",
    "ScoredCall": "metadata",
    "close_engines": "engines",
    "decision_metadata": "metadata",
    "guarded": "runnable",
    "once": "run_once",
    "read_score": "metadata",
    "score_metadata": "metadata",
    "shared_engine": "engines",
    "trusted": "declared",
    "unguarded": "accounting",
}

__all__ = [
    "ChatGuard",
    "GuardMiddleware",
    "GuardedOutcome",
    "GuardedRunnable",
    "RetractedError",
    "ScoredCall",
    "close_engines",
    "decision_metadata",
    "guarded",
    "once",
    "read_score",
    "score_metadata",
    "shared_engine",
    "trusted",
    "unguarded",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'guard.langchain' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f"guard.langchain.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> Exception:
    """The error that says what to install; one of another module stays as it is."""
    root = (error.name or "").partition(".")[0]
    return missing_extra(root.replace("_", "-"), "langchain") if root in _PACKAGES else error


try:  # whatever is imported from here, by whatever way, needs it
    importlib.import_module("langchain_core")
except ModuleNotFoundError as error:
    raise _missing(error) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
