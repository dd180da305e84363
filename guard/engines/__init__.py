"""Engines run a model and read its layers, or ask a server for its log-probabilities, behind one protocol.

`load_engine` loads one by file, folder or name. To add an engine, subclass `BaseEngine`, which has the decoding loop,
slots, streaming, deadlines and cancellation; it is handed a `Feed` for each sequence and gives a `PassRow` back.
Everything else here is internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.engines.asked import RequestEngine
    from guard.engines.base import BaseEngine
    from guard.engines.batch import Feed, PassRow, Start
    from guard.engines.loading import (
        EMBEDDED,
        embedded_model,
        load_engine,
    )
    from guard.engines.protocols import Engine, Observer

__all__ = [
    "EMBEDDED",
    "BaseEngine",
    "Engine",
    "Feed",
    "Observer",
    "PassRow",
    "RequestEngine",
    "Start",
    "embedded_model",
    "load_engine",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "asked": ("RequestEngine",),
        "base": ("BaseEngine",),
        "batch": ("Feed", "PassRow", "Start"),
        "protocols": (
            "Engine",
            "Observer",
        ),
        "loading": (
            "EMBEDDED",
            "embedded_model",
            "load_engine",
        ),
    },
)
