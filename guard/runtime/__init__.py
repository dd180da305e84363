"""The guarded call: generate, score, decide, act; bounded in attempts, tokens and time.

`Guard` is the way in. `loop` runs a call, `call_state` keeps its state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.runtime.guard import (
        Guard,
    )
    from guard.runtime.loop import (
        Source,
    )

__all__ = [
    "Guard",
    "Source",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "guard": ("Guard",),
        "loop": ("Source",),
    },
)
