"""Align the layers of one model in two precisions on the same tokens, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guard.errors import CalibrationError
from guard.records import Doubles, Signals
from guard.scoring.probe import normalised
from guard.scoring.scorer_file import Linear, LinearProbe, Model, Trees
from guard.scoring.signature import FeatureSchema, feature_vector

#: Fewest answers for an alignment.
MIN_ANSWERS = 40
#: Weight of the prior for the identity, in answers.
PRIOR_ANSWERS = 20.0
#: Groups of features that come from the layers. Log-probabilities, margins and length are the same in both models.
_LAYER_GROUPS = ("map", "norms")


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """The map from the new model's layers to the old model's: old = scale x new + offset for each coordinate.

    Attributes:
        scale, offset: shape (A, L, D), for unit activations.
        shift: shape (features,), for the features of the layers, which are logarithms; 0 for other features.
    """

    scale: Doubles
    offset: Doubles
    shift: Doubles


def align(old: Sequence[Signals], new: Sequence[Signals], schema: FeatureSchema) -> Alignment:
    """Fit an alignment.

    Args:
        old, new: signals of the same tokens in the old and in the new model, in the same order.
        schema: schema of the scorer's features.

    Raises:
        CalibrationError: there are too few answers.
    """
    if len(old) < MIN_ANSWERS or len(old) != len(new):
        raise CalibrationError(
            f"{len(old)} answers are too few to align the layers", why=f"at least {MIN_ANSWERS} needed"
        )
    before, after = (np.stack([normalised(each.signature.activations) for each in side]) for side in (old, new))
    centre, target = after.mean(axis=0, dtype=np.float64), before.mean(axis=0, dtype=np.float64)
    spread = np.square(after - centre).mean(axis=0)
    together = ((after - centre) * (before - target)).mean(axis=0)
    weight = PRIOR_ANSWERS / len(old)
    scale = (together + weight * spread) / np.maximum(spread * (1 + weight), 1e-12)
    scale = np.where(spread > 1e-10, scale, 1.0)
    return Alignment(scale, target - scale * centre, _shift(old, new, schema))


def aligned_model(model: Model, alignment: Alignment) -> Model:
    """Return the model for the new model's layers that is equivalent to the given one on the old model's layers.

    The calibration is unchanged, since the alignment uses no labels.
    """
    base, moved = model.base, 0.0
    probe = model.probe
    if probe is not None:
        weights = probe.array.astype(np.float64)
        moved = float((weights * alignment.offset).sum())
        probe = LinearProbe.from_array((weights * alignment.scale).astype(np.float32))
    if base is None and moved:
        base = Linear(features=[], mean=[], scale=[], coefficients=[], intercept=0.0)
    if base is not None:
        base = base.model_copy(update={"intercept": base.intercept + moved})
    return model.model_copy(update={"base": base, "probe": probe, "trees": _aligned_trees(model.trees, alignment)})


def _aligned_trees(trees: Trees | None, alignment: Alignment) -> Trees | None:
    if trees is None:
        return None
    thresholds = [
        threshold if feature < 0 else threshold - float(alignment.shift[feature])
        for threshold, feature in zip(trees.threshold, trees.feature, strict=True)
    ]
    return trees.model_copy(update={"threshold": thresholds})


def _shift(old: Sequence[Signals], new: Sequence[Signals], schema: FeatureSchema) -> Doubles:
    """Return the mean difference of each feature of the layers, 0 for other features."""
    groups = np.array([name.split(".")[0] for name in schema.names])
    before, after = (
        np.stack([feature_vector(each, schema) for each in side]).astype(np.float64) for side in (old, new)
    )
    return np.where(np.isin(groups, _LAYER_GROUPS), (before - after).mean(axis=0), 0.0)
