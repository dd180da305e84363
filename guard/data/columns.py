"""The columns of recorded answers, with features that are computed once and shared by all parts of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.data.logit_lens import LENS_SIGNALS
from guard.errors import CaptureError, InputError
from guard.records import Doubles, Floats, Signals, Signature
from guard.scoring.labels import Labels
from guard.scoring.probe import inner_products
from guard.scoring.signature import ACTIVATION_TOKENS, AGGREGATES, FeatureSchema, feature_vector

#: Columns of one value per answer, with their types in memory (labels that are graded are float64); of one value per
#: token; of one array per answer.
KINDS: Mapping[str, type] = {
    "key": object,
    "dataset": np.str_,
    "group": np.str_,
    "question": object,
    "answer": object,
    "split_text": object,
    "wrong": np.bool_,
    "seconds": np.float64,
    "prompt_tokens": np.int32,
    "finish_reason": np.str_,
}
VALUES = tuple(KINDS)
RAGGED = ("logprobs", "entropies", "margins")
ARRAYS = ("maps", "norms", "activations", "lens", "path")
#: Columns of one number that are there only where they were asked for.
OPTIONAL = ("p_true", "rauq")


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a whole table of n answers.

    Attributes:
        key: shape (n,), ``dataset/id``, texts.
        dataset, group, wrong, seconds, prompt_tokens, finish_reason: as in `Answers`.
        question, answer, split_text, samples: as in `Answers`.
        offsets: shape (n + 1,); tokens of answer i are ``offsets[i]`` to ``offsets[i + 1]`` of the next three.
        logprobs, entropies, margins: shape (all tokens,), as in `Generation`.
        maps, norms: shapes (n, T, A, L, L) and (n, A, L), as in `Signature`. The maps are float32: in half
            precision, layers that nearly agree would lose up to a seventh of the differences between answers.
        activations: shape (n, 3, L, D), float16.
        p_true, rauq: shape (n,), nan where it was not asked; None where it was asked of no answer.
        lens, path: shapes (n, 2, 3, L) and (n, 2, 2, L), as in `Residual`; None where not recorded.
        metadata: metadata of the run, flat; see `guard.data.answers.run_metadata`.
    """

    key: NDArray[np.object_]
    dataset: NDArray[np.str_]
    group: NDArray[np.str_]
    wrong: Labels
    seconds: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    finish_reason: NDArray[np.str_]
    question: NDArray[np.object_]
    answer: NDArray[np.object_]
    split_text: NDArray[np.object_]
    samples: tuple[tuple[str, ...], ...]
    offsets: NDArray[np.int64]
    logprobs: Floats
    entropies: Floats
    margins: Floats
    maps: Floats
    norms: Floats
    activations: NDArray[np.float16]
    lens: Floats | None
    path: Floats | None
    metadata: Mapping[str, Any]
    p_true: Doubles | None = None
    rauq: Doubles | None = None
    _blocks: dict[FeatureSchema, Floats] = field(init=False, default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: NDArray[np.intp]) -> Columns:
        """Return a copy of these rows, in this order."""
        tokens = np.diff(self.offsets)[rows]
        starts = np.cumsum(tokens) - tokens  # of the rows' tokens in the copy
        at = np.arange(tokens.sum()) + np.repeat(self.offsets[rows] - starts, tokens)
        taken: dict[str, Any] = {name: getattr(self, name)[at] for name in RAGGED}
        for name in (*VALUES, *ARRAYS, *OPTIONAL):
            array = getattr(self, name)
            taken[name] = None if array is None else array[rows]
        samples = tuple(self.samples[row] for row in rows)
        return Columns(**taken, samples=samples, offsets=to_offsets(tokens), metadata=self.metadata)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures of the maps."""
        return tuple(self.metadata["temperatures"])

    def signals(self, at: int) -> Signals:
        """Return all inputs of a scorer for one answer."""
        tokens = slice(self.offsets[at], self.offsets[at + 1])
        signature = Signature(
            maps=self.maps[at],
            norms=self.norms[at],
            activations=self.activations[at].astype(np.float32),
            temperatures=self.temperatures,
            aggregates=AGGREGATES,
            tokens=int(self.offsets[at + 1] - self.offsets[at]),
        )
        return Signals(self.logprobs[tokens], self.entropies[tokens], self.margins[tokens], signature)

    def features(self, schema: FeatureSchema) -> Floats:
        """Return the features of all answers, shape (n, features); groups are cached and shared by kinds of scores."""
        parts = [FeatureSchema(schema.layers, schema.temperatures, schema.aggregates, (x,)) for x in schema.groups]
        return np.hstack([self._block(part) for part in parts])

    def _block(self, schema: FeatureSchema) -> Floats:
        if schema not in self._blocks:
            block = np.empty((len(self), schema.size), np.float32)
            for at in range(len(self)):
                try:
                    block[at] = feature_vector(self.signals(at), schema)
                except CaptureError as error:
                    raise InputError(f"The answer '{self.key[at]}' lacks a feature", why=str(error)) from error
            self._blocks[schema] = block
        return self._blocks[schema]

    @cached_property
    def products(self) -> Floats:
        """Inner products of all answers' activations, shape (n, n); see `guard.scoring.probe.inner_products`."""
        return inner_products(self.activations)


def to_offsets(tokens: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the start of each answer's tokens, and the end of the last one's, shape (n + 1,)."""
    return np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])


def array_shapes(metadata: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and type of one answer's array in each of `ARRAYS`, from the metadata of its run."""
    layers, width, temperatures = metadata["model.layers"], metadata["model.width"], len(metadata["temperatures"])
    return {
        "maps": ((temperatures, len(AGGREGATES), layers, layers), "<f4"),
        "norms": ((len(AGGREGATES), layers), "<f4"),
        "activations": ((len(ACTIVATION_TOKENS), layers, width), "<f2"),
        "lens": ((2, len(LENS_SIGNALS), layers), "<f4"),
        "path": ((2, 2, layers), "<f4"),
    }
