"""Out-of-distribution score of an input, from the pass that chose the answer's first token.

That pass has read the whole prompt and nothing of the answer. In some layers, the score compares its activation with
those of the calibration answers: it measures the part outside their principal components. It uses neither labels nor
the confidence of the output. Layers, token and components were selected by measurement; see
docs/explanation/out-of-distribution.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from guard.errors import CalibrationError, CaptureError
from guard.records import Doubles, Floats, Signals
from guard.scoring.arrays import array_from_text, array_to_text
from guard.scoring.probe import normalised
from guard.scoring.signature import ACTIVATION_TOKENS

#: Activations of several answers, shape (A, L, D) each.
ManyActivations: TypeAlias = Sequence[NDArray[np.floating]] | NDArray[np.floating]

#: Positions of the layers, as shares of the model's depth.
DEPTHS = (0.3, 0.4)

#: Number of principal components per layer; more detect slightly more, but enlarge scorer files. Each component needs
#: some answers.
COMPONENTS, ANSWERS_PER_COMPONENT = 20, 4

#: Fewest answers of each part. A score of .99 needs at least a hundred calibration answers.
MIN_ANSWERS = 20

#: Largest number of stored distances of calibration answers; of more, evenly spaced quantiles are stored.
MAX_DISTANCES = 2000

#: Share of a unit vector's energy below which a residual is rounding.
_ROUNDING = 1e-6
_LARGEST_LOG = 20.0  # of what is between rounding and 4, the most that two unit vectors can differ

_FIRST = ACTIVATION_TOKENS.index("first")


class StoredOodDetector(BaseModel):
    """The stored form of an `OodDetector`. Arrays are little-endian float32 in base64.

    Attributes:
        layers: V layers, from 0.
        components: number of components per layer (K).
        width: width of an activation (D).
        answers: number of calibration answers behind the distances.
        means: shape (V, D).
        directions: shape (V, K, D), orthonormal.
        centres, spreads: shape (V,).
        distances: shape (n,), rising.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    layers: Annotated[list[Annotated[int, Field(ge=0, lt=1024)]], Field(min_length=1, max_length=16)]
    components: Annotated[int, Field(ge=1, le=1024)]
    width: Annotated[int, Field(ge=2, le=2**17)]
    answers: Annotated[int, Field(ge=2)]
    means: str
    directions: str
    centres: str
    spreads: str
    distances: str

    @model_validator(mode="after")
    def _sound(self) -> Self:
        detector = OodDetector.from_stored(self)
        with np.errstate(over="ignore", invalid="ignore"):
            products = detector.directions @ detector.directions.swapaxes(1, 2)
        if not (np.abs(products - np.eye(self.components)) < 1e-3).all():
            raise ValueError("the directions are not orthonormal")
        # Of unit vectors; so no distance can become anything but a number.
        if not ((np.abs(detector.means) <= 1).all() and (np.abs(detector.centres) <= _LARGEST_LOG).all()):
            raise ValueError("a mean or a centre is too large")
        if not (detector.spreads >= _ROUNDING).all():
            raise ValueError("a spread is too small")
        if not 2 <= len(detector.distances) <= MAX_DISTANCES or (np.diff(detector.distances) < 0).any():
            raise ValueError("the distances do not rise, or are not of 2 answers at least")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class OodDetector:
    """Detector of out-of-distribution inputs: subspaces of activations in V layers, and distances from them.

    Attributes:
        layers: the V layers that are read, from 0.
        means: shape (V, D), of the unit activations of the first token.
        directions: shape (V, K, D), their principal components, orthonormal in each layer.
        centres, spreads: shape (V,), mean and standard deviation of the log residual energy.
        distances: shape (n,), rising; those of the calibration answers, or evenly spaced quantiles.
        answers: number of calibration answers behind the distances.
    """

    layers: tuple[int, ...]
    means: Floats
    directions: Floats
    centres: Floats
    spreads: Floats
    distances: Floats
    answers: int

    def ood_score(self, signals: Signals) -> float:
        """Return the ood_score of an answer; see `ood_score_from`."""
        return self.ood_score_from(signals.signature.activations)

    def ood_score_from(self, activations: NDArray[np.floating]) -> float:
        """Return the share of the calibration answers that are closer to the calibration data than this one.

        Of n calibration answers, the closest has the smallest possible score, 1 / (n + 1), and the farthest n / (n +
        1). Beyond that, the score rises towards 1 with the distance, so that such answers can still be ranked.

        Args:
            activations: of the answer, shape (A, L, D).

        Raises:
            CaptureError: the activations have a wrong shape, are all zero, or are not finite.
        """
        distance, farthest = self.distance(activations), float(self.distances[-1])
        # An answer like n others has i / (n + 1) of its kind below the i-th of them, on average.
        beyond_all = 1.0 - 1.0 / (self.answers + 1)
        if distance > farthest:
            return 1.0 - (1.0 - beyond_all) / (1.0 + distance - farthest)
        shares = np.linspace(1.0 - beyond_all, beyond_all, len(self.distances))
        return float(np.interp(distance, self.distances, shares))

    def ood_scores(self, activations: ManyActivations) -> Doubles:
        """Return the ood_score of each answer, shape (n,); see `ood_score_from`."""
        return np.array([self.ood_score_from(each) for each in activations])

    def distance(self, activations: NDArray[np.floating]) -> float:
        """Return the log energy outside of the components, standardised, mean of the layers; larger is farther.

        Raises:
            CaptureError: as for `ood_score_from`.
        """
        if activations.ndim != 3 or activations.shape[1] <= max(self.layers):
            raise CaptureError(f"Activations of shape {activations.shape} do not have layer {max(self.layers)}")
        if activations.shape[2] != self.means.shape[1]:
            raise CaptureError(f"Activations are {activations.shape[2]} wide, expected {self.means.shape[1]}")
        units = normalised(activations[_FIRST, list(self.layers)])
        standardised = (_log_residuals(units[:, None], self.means, self.directions)[:, 0] - self.centres) / self.spreads
        return float(standardised.mean())

    def stored(self) -> StoredOodDetector:
        """Return the stored form."""
        return StoredOodDetector(
            layers=list(self.layers),
            components=self.directions.shape[1],
            width=self.means.shape[1],
            answers=self.answers,
            means=array_to_text(self.means),
            directions=array_to_text(self.directions),
            centres=array_to_text(self.centres),
            spreads=array_to_text(self.spreads),
            distances=array_to_text(self.distances),
        )

    @classmethod
    def from_stored(cls, stored: StoredOodDetector) -> Self:
        """Return the detector of a stored form.

        Raises:
            ValueError: an array does not have the stated size, or a number is not finite.
        """
        views, width = len(stored.layers), stored.width
        return cls(
            layers=tuple(stored.layers),
            means=array_from_text(stored.means, views * width).reshape(views, width),
            directions=array_from_text(stored.directions, views * stored.components * width).reshape(views, -1, width),
            centres=array_from_text(stored.centres, views),
            spreads=array_from_text(stored.spreads, views),
            distances=array_from_text(stored.distances, min(stored.answers, MAX_DISTANCES)),
            answers=stored.answers,
        )


def fit_ood_in_parts(activations: ManyActivations, *, seed: int) -> OodDetector:
    """Fit a detector on three quarters of some answers, with the last quarter as its reference.

    Args:
        activations: of each answer, shape (A, L, D).
        seed: of the division.

    Raises:
        CalibrationError, CaptureError: as for `fit_ood_to_activations`.
    """
    order = np.random.default_rng(seed).permutation(len(activations))
    cut = len(order) * 3 // 4
    return fit_ood_to_activations(*([activations[at] for at in part] for part in (order[:cut], order[cut:])))


def fit_ood_detector(fit: Sequence[Signals], calibrate: Sequence[Signals]) -> OodDetector:
    """Fit a detector on calibration answers; see `fit_ood_to_activations`."""
    return fit_ood_to_activations(*([each.signature.activations for each in part] for part in (fit, calibrate)))


def fit_ood_to_activations(
    fit: Sequence[NDArray[np.floating]], calibrate: Sequence[NDArray[np.floating]]
) -> OodDetector:
    """Fit a detector on the activations of calibration answers, shape (A, L, D) each. No labels are needed.

    Args:
        fit: answers for the principal components.
        calibrate: other answers, whose distances are the reference; those of the first would be too small.

    Raises:
        CalibrationError: there are too few answers, or all are the same.
        CaptureError: activations are all zero or not finite, or have different shapes.
    """
    if min(len(fit), len(calibrate)) < MIN_ANSWERS:
        raise CalibrationError(
            "Too few answers to fit the out-of-distribution detector",
            why=f"got {len(fit)} to fit and {len(calibrate)} to calibrate, the least is {MIN_ANSWERS} of each",
            fix="Give more questions",
        )
    shapes = {answer.shape for answer in (*fit, *calibrate)}
    if len(shapes) > 1:
        raise CaptureError("The answers' activations differ in shape", why=f"found {sorted(shapes)}")
    depth = fit[0].shape[1]
    layers = tuple(sorted({min(depth - 1, round(share * depth)) for share in DEPTHS}))
    fitted, held_out = (_units(answers, layers) for answers in (fit, calibrate))
    means = fitted.mean(axis=1, dtype=np.float64).astype(np.float32)
    directions = np.stack([_directions(units - mean) for units, mean in zip(fitted, means, strict=True)])
    energies = _log_residuals(held_out, means, directions)
    # Rounded first, so that an answer's distance is the same here as later.
    centres, spreads = energies.mean(axis=1).astype(np.float32), energies.std(axis=1).astype(np.float32)
    if not (spreads >= _ROUNDING).all():
        raise CalibrationError("The calibration answers are all the same", fix="Give questions that differ")
    distances = np.sort(((energies - centres[:, None]) / spreads[:, None]).mean(axis=0))
    if len(distances) > MAX_DISTANCES:
        distances = np.quantile(distances, np.linspace(0.0, 1.0, MAX_DISTANCES))
    return OodDetector(
        layers=layers,
        means=means,
        directions=directions,
        centres=centres,
        spreads=spreads,
        distances=distances.astype(np.float32),
        answers=len(calibrate),
    )


def _units(answers: Sequence[NDArray[np.floating]], layers: tuple[int, ...]) -> Floats:
    """Unit activations of the first token, shape (V, n, D)."""
    rows = np.stack([answer[_FIRST, list(layers)] for answer in answers], axis=1)
    return normalised(rows)


def _directions(centred: Floats) -> Floats:
    """Principal components of rows, shape (K, D) from (n, D)."""
    from sklearn.utils.extmath import randomized_svd

    answers, width = centred.shape
    count = min(COMPONENTS, answers // ANSWERS_PER_COMPONENT, width - 1)
    _, _, vectors = randomized_svd(centred, count, n_iter=4, random_state=0)
    return np.ascontiguousarray(vectors, np.float32)


def _log_residuals(units: Floats, means: Floats, directions: Floats) -> NDArray[np.float64]:
    """Log of the energy that the components leave, shape (V, n) from units of shape (V, n, D)."""
    centred = units.astype(np.float64) - means[:, None]
    inside = np.square(centred @ directions.swapaxes(1, 2).astype(np.float64)).sum(axis=2)
    energy = np.square(centred).sum(axis=2)
    return np.asarray(np.log(np.maximum(energy - inside, _ROUNDING)))
