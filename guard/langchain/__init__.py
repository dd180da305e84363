"""guard for LangChain: a chat model that scores its answers, guarded chains, and middleware for agents.

Names are imported on first use, so that everything except `GuardMiddleware` works with ``langchain-core`` alone. Public
are the names here and `guard.langchain.testing`; the packages ``attempts``, ``chat``, ``chain`` and ``agent`` are
internal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guard.errors import missing_extra

if TYPE_CHECKING:
    from guard.langchain.agent.middleware import GuardMiddleware
    from guard.langchain.attempts.accounting import unguarded
    from guard.langchain.attempts.complete_json import IncompleteAnswerError
    from guard.langchain.attempts.trusted_fallbacks import trusted
    from guard.langchain.chain.guarded_run import GuardedOutcome
    from guard.langchain.chain.guarded_runnable import GuardedRunnable, guarded
    from guard.langchain.chain.run_once import once
    from guard.langchain.chat.chat_guard import ChatGuard
    from guard.langchain.chat.shared_engines import close_engines, shared_engine
    from guard.langchain.metadata import ScoredCall, decision_metadata, read_score, score_metadata
    from guard.runtime.stream_monitor import RetractedError

#: What the extra installs.
_PACKAGES = ("langchain_core", "langchain", "langgraph", "langsmith")

#: Module of each public name.
_HOMES = {
    "ChatGuard": "chat.chat_guard",
    "GuardMiddleware": "agent.middleware",
    "GuardedOutcome": "chain.guarded_run",
    "GuardedRunnable": "chain.guarded_runnable",
    "IncompleteAnswerError": "attempts.complete_json",
    "RetractedError": "chain.guarded_run",
    "ScoredCall": "metadata",
    "close_engines": "chat.shared_engines",
    "decision_metadata": "metadata",
    "guarded": "chain.guarded_runnable",
    "once": "chain.run_once",
    "read_score": "metadata",
    "score_metadata": "metadata",
    "shared_engine": "chat.shared_engines",
    "trusted": "attempts.trusted_fallbacks",
    "unguarded": "attempts.accounting",
}

__all__ = [
    "ChatGuard",
    "GuardMiddleware",
    "GuardedOutcome",
    "GuardedRunnable",
    "IncompleteAnswerError",
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
    """Return the error that says what to install; an error of another module is returned unchanged."""
    root = (error.name or "").partition(".")[0]
    return missing_extra(root.replace("_", "-"), "langchain") if root in _PACKAGES else error


try:  # everything here needs it
    importlib.import_module("langchain_core")
except ModuleNotFoundError as error:
    raise _missing(error) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
