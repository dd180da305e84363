"""Checks whether two GGUF files have the same weights in different precisions; fine-tuned models must not pass.

Rounding changes every matrix slightly, and the difference looks like noise. Training changes it in few directions: the
difference has a few large singular values. Names, shapes and vectors (norms, biases) must match; quantizers do not
change them.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from guard.errors import ScorerMismatchError, missing_extra
from guard.records import Floats

#: Number of singular values whose share of a difference is compared with noise.
DIRECTIONS = 8
#: Smallest side of a matrix that is compared by singular values.
LEAST_SIDE = 64
#: Largest relative differences of a vector and of a matrix.
MOST_VECTOR, MOST_MATRIX = 1e-2, 0.5
#: Most that the first singular values of a difference may hold of it beyond what they hold of white noise: the median
#: over the layers of each kind of matrix. Measured on SmolLM2: see docs/how-to/rebinding.md.
MOST_STRUCTURE = 0.25

_NO = "Fit a scorer for this model with guard calibrate"


def check_same_weights(old: Path, new: Path) -> float:
    """Refuse two files that differ by more than rounding.

    Args:
        old: the GGUF file that a scorer was fitted on.
        new: another.

    Returns:
        the largest median over layers of `measure_structure`, over all kinds of matrices.

    Raises:
        ScorerMismatchError: tensors are missing, have other shapes, or differ otherwise than by rounding.
        MissingExtraError: the gguf package is not installed.
    """
    before, after = _tensors(old), _tensors(new)
    if before.keys() != after.keys():
        name = sorted(before.keys() ^ after.keys())[0]
        raise _mismatch(f"only one of them has the tensor '{name}'")
    found: dict[str, list[float]] = defaultdict(list)
    for name in before:
        first, second = _values(before[name]), _values(after[name])
        _check_size(name, first, second)
        if first.ndim == 2 and min(first.shape) >= LEAST_SIDE:
            found[_kind(name)].append(measure_structure(second - first))
    medians = {kind: float(np.median(values)) for kind, values in found.items()}
    for kind, structure in medians.items():
        if structure > MOST_STRUCTURE:
            raise _mismatch(f"'{kind}' differs in a few directions, as after fine-tuning ({structure:.0%} of it)")
    return max(medians.values(), default=0.0)


def measure_structure(difference: Floats) -> float:
    """Return the share of a matrix, shape (m, n), in its first singular values, minus that of noise.

    Examples:
        >>> noise = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
        >>> measure_structure(noise) < 0.01
        True
        >>> measure_structure(noise + np.outer(noise[:, 0], noise[0]).astype(np.float32)) > 0.3
        True
    """
    from sklearn.utils.extmath import randomized_svd

    energy = float(np.square(difference, dtype=np.float64).sum())
    if energy == 0:
        return 0.0
    _, values, _ = randomized_svd(difference, DIRECTIONS, n_iter=2, random_state=0)
    rows, columns = difference.shape
    noise = DIRECTIONS * (1 / np.sqrt(rows) + 1 / np.sqrt(columns)) ** 2
    return max(0.0, float(np.square(values, dtype=np.float64).sum() / energy - noise))


def _check_size(name: str, first: Floats, second: Floats) -> None:
    if first.shape != second.shape:
        raise _mismatch(f"'{name}' has the shapes {first.shape} and {second.shape}")
    size, change = float(np.linalg.norm(first)), float(np.linalg.norm(second - first))
    if change > size * (MOST_VECTOR if first.ndim == 1 else MOST_MATRIX):
        raise _mismatch(f"'{name}' differs by {change / size if size else np.inf:.0%} of its size")


def _mismatch(why: str) -> ScorerMismatchError:
    return ScorerMismatchError("The two files do not have the same weights in different precisions", why=why, fix=_NO)


def _kind(name: str) -> str:
    """Return the name of a tensor without its layer, such as ``attn_v.weight``."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blk" else name


def _tensors(path: Path) -> dict[str, Any]:
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "transformers") from error
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _values(tensor: Any) -> Floats:
    from gguf.quants import dequantize

    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
