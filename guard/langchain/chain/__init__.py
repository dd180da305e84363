"""Guarded chains: rules, calls and runs, and steps that run once per call.

The public names are re-exported by `guard.langchain`. All modules are internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.langchain.chain.guarded_run import GuardedOutcome
    from guard.langchain.chain.guarded_runnable import GuardedRunnable, guarded
    from guard.langchain.chain.run_once import once

__all__ = [
    "GuardedOutcome",
    "GuardedRunnable",
    "guarded",
    "once",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "guarded_run": ("GuardedOutcome",),
        "guarded_runnable": (
            "GuardedRunnable",
            "guarded",
        ),
        "run_once": ("once",),
    },
)
