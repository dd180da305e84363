"""Guarded agents: middleware that decides about each model call, and a person's review of its answers.

The public names are re-exported by `guard.langchain`. All modules are internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.langchain.agent.middleware import GuardMiddleware

__all__ = [
    "GuardMiddleware",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "middleware": ("GuardMiddleware",),
    },
)
