"""An observer that keeps what an engine shows it."""

from __future__ import annotations

import numpy as np

from guard.errors import CaptureError
from guard.records import Floats


class Recording:
    """An observer that keeps copies, and may fail at one token."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.seen: list[Floats] = []
        self.fail_at = fail_at

    def observe(self, activations: Floats) -> None:
        if len(self.seen) == self.fail_at:
            raise CaptureError("the test wants it so")
        self.seen.append(activations.copy())

    @property
    def stack(self) -> Floats:
        return np.stack(self.seen)
