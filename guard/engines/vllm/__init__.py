"""An engine over vLLM: its scheduler batches the requests, and its workers compute what scorers read of the layers.

guard reads layers inside vLLM's workers, so that each version needs an adapter; others are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]

__getattr__, __dir__ = lazy_face(__name__, {"engine": ("VllmEngine",)})
