"""An engine that writes noise, so that whatever form its answers have comes from somewhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scripted import END, ByteEngine, scripted_model

from guard.engines.batch import Feed, PassRow
from guard.engines.constraint import build_vocabulary
from guard.records import Floats, ModelInfo, Prompt


class NoiseEngine(ByteEngine):
    """Prefers tokens by chance, so that it writes no JSON of its own accord."""

    capture_point = "mlp"

    def __init__(self, seed: int = 0, *, missing: bytes = b"") -> None:
        super().__init__()
        self.rng, self.missing = np.random.default_rng(seed), missing
        self.rows: list[Floats] = []

    @property
    def model(self) -> ModelInfo:
        return scripted_model(context_tokens=4000)

    def encode(self, prompt: Prompt) -> list[int]:
        return [*super().encode(prompt), *json.dumps(prompt.tools).encode()]  # as a template that knows tools

    def _grammar_vocabulary(self) -> Any:
        pieces = [b"" if byte in self.missing else bytes([byte]) for byte in range(END)]
        return build_vocabulary([*pieces, b""], [END], self.encode_text)

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        self.rows += [self.rng.normal(size=END + 1).astype(np.float32) * 3 for feed in feeds if feed.chooses]
        return [self for feed in feeds if feed.chooses]

    def logits(self) -> Floats:
        return self.rows[-1]

    def activations(self) -> Floats:
        return np.ones((3, 8), np.float32)

    def _free(self) -> None:
        """Nothing was loaded."""
