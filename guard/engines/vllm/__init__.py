"""An engine over vLLM: its scheduler batches requests, and its workers compute the signals that scorers read.

guard reads layers inside vLLM's workers, so each version needs an adapter; guard refuses other versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]

__getattr__, __dir__ = lazy_face(__name__, {"engine": ("VllmEngine",)})
