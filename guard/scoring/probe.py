"""One linear probe over the activations of all layers.

Each layer's activations are divided by their root mean square, so that all layers have equal weight and the fit does
not depend on their scale. The probe is a single weight vector. Fitting uses the inner products of the answers, which
are fewer than the coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.errors import CalibrationError, CaptureError
from guard.records import Floats

#: Number of principal components of the training answers that span a linear probe: enough for everything that
#: transfers, with a fit in seconds.
COMPONENTS = 256
#: Largest number of answers for the components: with all of 11,000 a fit takes three times as long, for .002 to
#: .005 AUROC (docs/evidence/notes.json).
LANDMARKS = 4000
#: Share of the variance, per answer, below which all differences are rounding.
_NO_SPREAD = 1e-7


def normalised(activations: NDArray[np.floating]) -> Floats:
    """Return activations over their root mean square, shape (..., D), so that each vector has length 1.

    Raises:
        CaptureError: a layer's activations are all zero or not finite.
    """
    values = activations.astype(np.float32)
    lengths = np.sqrt(np.einsum("...d,...d->...", values, values, dtype=np.float64))
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise CaptureError("A layer's activations are all zero or not finite")
    return np.asarray(values / lengths[..., None].astype(np.float32))


def inner_products(rows: NDArray[np.floating], columns: NDArray[np.floating] | None = None) -> Floats:
    """Inner products between answers, the mean over tokens and layers of those of unit vectors.

    Args:
        rows: activations of n answers, shape (n, A, L, D).
        columns: activations of m other answers; by default the same.

    Returns:
        shape (n, m), between -1 and 1.
    """
    others = rows if columns is None else columns
    total = np.zeros((len(rows), len(others)), np.float32)
    tokens, layers = rows.shape[1:3]
    for token in range(tokens):
        for layer in range(layers):  # one at a time to save memory
            left = normalised(rows[:, token, layer])
            total += left @ (left if columns is None else normalised(others[:, token, layer])).T
    return total / np.float32(tokens * layers)


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Principal components of some answers, as combinations of these answers.

    Attributes:
        directions: shape (n, k); each component is this combination of the centred answers.
        means: shape (n,); mean inner product of each answer with all of them.
        scale: divisor of the components, so that the mean squared length of an answer is 1.
    """

    directions: Floats
    means: Floats
    scale: float

    def of(self, products: Floats) -> Floats:
        """Return the components of other answers, shape (m, k), from their inner products with these, (m, n)."""
        centred = products - products.mean(axis=1, keepdims=True) - self.means + self.means.mean()
        return np.asarray(centred @ self.directions / np.float32(self.scale))

    def combination(self, coefficients: NDArray[np.floating]) -> NDArray[np.float64]:
        """Linear functions of the components, shape (k, f), as weights of the answers, (n, f); each adds up to 0."""
        weights = self.directions @ coefficients / self.scale
        return np.asarray(weights - weights.mean(axis=0))

    def offset(self, combinations: NDArray[np.floating]) -> NDArray[np.float64]:
        """What combinations, shape (n, f), give the mean of these answers: components are centred, probes are not."""
        return np.asarray(self.means @ combinations)


def principal_components(products: Floats, *, count: int = COMPONENTS) -> Components:
    """Principal components from the inner products of n answers, shape (n, n).

    Raises:
        CalibrationError: the answers do not differ.
    """
    from sklearn.utils.extmath import randomized_svd

    means = products.mean(axis=0)
    centred = products - means - means[:, None] + means.mean()
    count = min(count, len(products) - 1)
    # In single precision with few iterations, the last bits of the products decide which components come last: log-odds
    # of the same answers then differ by up to a tenth from one order of additions to another.
    vectors, variances, _ = randomized_svd(centred.astype(np.float64), count, n_iter=5, random_state=0)
    if variances[0] < len(products) * _NO_SPREAD:
        raise CalibrationError(
            "The activations of all answers are the same",
            why="nothing can be learnt from them: the recording may be broken, or have the same answer many times",
            fix="Record them again, or leave them out: --without activations",
        )
    kept = variances > variances[0] * 1e-6
    vectors, variances = vectors[:, kept], variances[kept]
    scale = float(np.sqrt(variances.sum() / len(products)))
    return Components(np.asarray(vectors / np.sqrt(variances), np.float32), means, scale)


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """Some answers in terms of their own principal components.

    Attributes:
        landmarks: shape (m,), the answers that span the components.
        components: of the landmarks.
        values: shape (n, k), components of the answers.
    """

    landmarks: NDArray[np.intp]
    components: Components
    values: Floats


class InnerProducts:
    """Inner products between answers, with cached results for parts of them.

    Args:
        whole: shape (N, N), inner products of a whole table; see `inner_products`.
        rows: shape (n,), indices of the answers; by default all.
    """

    def __init__(self, whole: Floats, rows: NDArray[np.intp] | None = None) -> None:
        self._whole = whole
        self._rows = np.arange(len(whole)) if rows is None else rows
        self._projected: dict[bytes, Projected] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def between(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
        """Of some of these answers with others of them, shape (len(rows), len(columns))."""
        return self._whole[np.ix_(self._rows[rows], self._rows[columns])]

    def projected(self, rows: NDArray[np.intp]) -> Projected:
        """Some of these answers by the components of as many of them as that takes."""
        key = np.asarray(rows, np.intp).tobytes()
        if key not in self._projected:
            drawn = np.random.default_rng(0).permutation(len(rows))[:LANDMARKS]
            landmarks = rows[np.sort(drawn)]
            products = self.between(rows, landmarks)
            components = principal_components(products[np.sort(drawn)])
            self._projected[key] = Projected(landmarks, components, components.of(products))
        return self._projected[key]


def combine_weights(combination: NDArray[np.floating], activations: NDArray[np.floating]) -> Floats:
    """Return the linear probe that a combination of answers stands for.

    Args:
        combination: shape (n,).
        activations: of the answers, shape (n, A, L, D).

    Returns:
        shape (A, L, D): an answer's value is the sum of its products with the normalised activations.
    """
    tokens, layers, width = activations.shape[1:]
    weights = np.empty((tokens, layers, width), np.float32)
    for token in range(tokens):
        for layer in range(layers):
            weights[token, layer] = combination @ normalised(activations[:, token, layer])
    return weights / np.float32(tokens * layers)
