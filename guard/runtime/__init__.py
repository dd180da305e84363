"""The guarded call: generate, score, decide, act, within bounds of attempts, tokens and time.

`Guard` is the entry point. `loop` describes a call in steps, `steps` runs it with or without an event loop,
`call_state` keeps its state, and `sources` and `resources` hold its engines and handlers. Everything except the names
below is internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.runtime.first_look import (
        FirstLook,
        take_first_look,
    )
    from guard.runtime.guard import (
        Guard,
    )
    from guard.runtime.sources import (
        Source,
    )

__all__ = [
    "FirstLook",
    "Guard",
    "Source",
    "take_first_look",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "first_look": ("FirstLook", "take_first_look"),
        "guard": ("Guard",),
        "sources": ("Source",),
    },
)
