"""Attempts of chains and agents: settings, model calls, buffered callbacks, trusted fallbacks.

The public names are re-exported by `guard.langchain`. All modules are internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.langchain.attempts.accounting import unguarded
    from guard.langchain.attempts.complete_json import IncompleteAnswerError
    from guard.langchain.attempts.trusted_fallbacks import trusted

__all__ = [
    "IncompleteAnswerError",
    "trusted",
    "unguarded",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "accounting": ("unguarded",),
        "complete_json": ("IncompleteAnswerError",),
        "trusted_fallbacks": ("trusted",),
    },
)
