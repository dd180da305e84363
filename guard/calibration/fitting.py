"""Fit a calibrated model to arrays of labelled answers.

The default score is a logistic regression on the output's features (log-probabilities, margins, length) and on a
linear probe of the activations (`guard.scoring.probe`), with a LightGBM correction from the layers' signature.

The score averages regressions with different output features and prior scales of the probe, including one without a
probe, instead of selecting one. Held-out answers decide the weight of each regression, whether the probe is used at
all, and how much of the correction is kept. With enough data sets, folds are whole data sets and all regressions have
the same weight: the best one on some data sets is often not the best on others (docs/evidence/notes.json).

The probability is calibrated on the held-out answers. Finally, everything is refitted on all answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.calibration.platt import LogOdds, log_losses, platt_scaling
from guard.calibration.tree_table import trees_from
from guard.errors import CalibrationError, missing_extra
from guard.records import Doubles, Floats
from guard.scores import ScoreName
from guard.scoring import probe
from guard.scoring.labels import Labels, are_graded, number_wrong, rather_wrong, weighted
from guard.scoring.scorer import to_log_odds
from guard.scoring.scorer_file import Linear, LinearProbe, Model, Trees, make_linear
from guard.scoring.signature import GROUPS, FeatureSchema

try:
    import lightgbm
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
except ImportError as error:
    raise missing_extra("lightgbm or scikit-learn", "calibrate") from error

#: Tokens whose maps and norms are features.
TOKENS = ("last", "mean")

#: Fewest answers, and fewest of each label, to fit anything.
MIN_ANSWERS, MIN_CLASS = 40, 5

FOLDS = 5
#: Fewest data sets for folds that are whole data sets.
MIN_SETS = 4

#: Prior scales of the probe in the averaged regressions: its variance, where each output feature has 1. With 0 a
#: regression has no probe.
PRIOR_SCALES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
#: A further prior scale for folds of single answers, which can measure its value.
LARGEST_PRIOR_SCALE = 30.0
#: Regressions with a weight below this share of the largest are left out.
LEAST_WEIGHT = 0.01

#: LightGBM's initial score is the base model's log-odds; weak learners and shrinkage keep transfer intact.
TREE_SETTINGS: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 6,
    "learning_rate": 0.03,
    "feature_fraction": 0.1,
    "lambda_l2": 20.0,
    "min_data_in_leaf": 20,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
}
#: Candidate numbers of trees, as a correction and alone, and candidate shares of the correction.
CORRECTION_ROUNDS, ROUNDS = (25, 50, 100), (50, 100, 200, 400)
SHRINKAGES = (0.5, 1.0)

#: Groups of features that the trees of each score read.
_TREE_GROUPS: dict[ScoreName, tuple[str, ...]] = {
    "guard": ("margin", "length", "norms", "map"),
    "ilis": ("map",),
    "log-probabilities": (),
}
#: Tokens whose maps and norms the trees read. The published method reads the last one.
_TREE_TOKENS: dict[ScoreName, tuple[str, ...]] = {"guard": TOKENS, "ilis": ("last",), "log-probabilities": ()}
#: Groups of output features in the base model's regressions.
_BASE_GROUPS: dict[ScoreName, tuple[tuple[str, ...], ...]] = {
    "guard": (("logprob",), ("logprob", "margin", "length")),
    "ilis": (),
    "log-probabilities": (("logprob",), ("extremes",)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Labelled answers as arrays.

    Attributes:
        x: shape (n, features), in a schema's order.
        wrong: shape (n,), boolean, or how wrong each answer is.
        dataset: shape (n,).
        activations: shape (n, A, L, D), as in `Signature.activations`; None fits no probe.
        products: inner products of the activations; computed where missing.
        weights: shape (n,), how much each answer counts, 1 on average; None where all count the same.
    """

    x: Floats
    wrong: Labels
    dataset: NDArray[np.str_]
    activations: NDArray[np.floating] | None = None
    products: probe.InnerProducts | None = None
    weights: Doubles | None = None

    def __len__(self) -> int:
        return len(self.wrong)


@dataclass(frozen=True, slots=True, eq=False)
class FittedModel:
    """A fitted model with its settings.

    Attributes:
        model: the calibrated model.
        settings: the selected settings, for the scorer file.
        held_out: calibrated log-odds of the same answers by models that were fitted on the other folds, shape (n,).
    """

    model: Model
    settings: Mapping[str, Any]
    held_out: LogOdds


def schema_for(*, layers: int, temperatures: tuple[float, ...]) -> FeatureSchema:
    """Return the features that scores are fitted on."""
    groups = GROUPS if layers else ("logprob", "margin", "length")
    return FeatureSchema(layers=layers, temperatures=temperatures, aggregates=TOKENS, groups=groups)


def fit_model(
    examples: Examples,
    schema: FeatureSchema,
    *,
    score: ScoreName = "guard",
    without: Collection[str] = (),
    seed: int = 0,
) -> FittedModel:
    """Fit and calibrate a model.

    Args:
        examples: labelled answers; all of them are used for fitting, selection and calibration.
        schema: the features of ``examples.x``.
        score: the score that the model is for.
        without: groups of features that it does not read.
        seed: seed of folds and trees.

    Raises:
        CalibrationError: there are too few labels of one kind, features or activations are not finite or all
            equal, or the score carries no signal.
    """
    _check_enough(examples.wrong)
    _check_finite(examples)
    if score != "guard" or examples.activations is None:
        examples = replace(examples, activations=None, products=None)
    elif examples.products is None:
        examples = replace(examples, products=probe.InnerProducts(probe.inner_products(examples.activations)))
    folds = list(find_folds(examples, seed))
    settings: dict[str, Any] = {"folds": "data sets" if holds_out_sets(examples) else "answers"}
    regressions = _regressions(examples, score, schema, without)
    by_regression = _held_out(examples, regressions, folds)
    weights = _weights(by_regression, regressions, examples)
    held_out = weights @ by_regression
    kept = np.flatnonzero(weights)
    base = _BaseModel.fit(examples, np.arange(len(examples)), [regressions[at] for at in kept])
    linear, linear_probe = base.parts(examples, weights[kept])
    settings |= {"regressions": [regressions[at].settings(weights[at]) for at in kept]}
    trees: Trees | None = None
    if score != "log-probabilities":
        alone = not linear.features and linear_probe is None
        columns = schema.columns([name for name in _TREE_GROUPS[score] if name not in without], _TREE_TOKENS[score])
        held_out, trees, chosen = _fit_trees(examples, columns, held_out, folds, seed, alone=alone)
        settings |= chosen
    calibration = platt_scaling(held_out, examples.wrong, 1.0 if examples.weights is None else examples.weights)
    model = Model(base=linear, probe=linear_probe, trees=trees, calibration=calibration)
    return FittedModel(model, settings, calibration.log_odds(held_out))


def _check_enough(wrong: Labels) -> None:
    rarer = min(wrong.sum(), len(wrong) - wrong.sum())
    if len(wrong) < MIN_ANSWERS or rarer < MIN_CLASS:
        raise CalibrationError(
            "Too few labels to fit a scorer",
            why=f"there are {len(wrong)} answers, {number_wrong(wrong):g} of them wrong; "
            f"a scorer needs at least {MIN_ANSWERS} answers, {MIN_CLASS} right and {MIN_CLASS} wrong",
            fix="Give more questions, or a mix of easier and harder ones",
        )


def _check_finite(examples: Examples) -> None:
    for what, values in (("features", examples.x), ("activations", examples.activations)):
        if values is None:
            continue
        bad = np.flatnonzero([not np.isfinite(each).all() for each in values])
        if len(bad):
            raise CalibrationError(
                f"The {what} of {len(bad)} of {len(values)} answers are not finite numbers",
                why=f"the first of them is answer {bad[0] + 1}",
                fix="Record these answers again. If it happens again, the model computes NaN: try another dtype",
            )


# -- folds --------------------------------------------------------------------------


def holds_out_sets(examples: Examples) -> bool:
    """Return whether folds can be whole data sets: there are enough, and the rest always has both labels."""
    sets = np.unique(examples.dataset)
    if len(sets) < MIN_SETS:
        return False
    return all(
        MIN_CLASS <= examples.wrong[examples.dataset != name].sum() <= (examples.dataset != name).sum() - MIN_CLASS
        for name in sets
    )


def find_folds(examples: Examples, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield pairs of training rows and held-out rows."""
    if not holds_out_sets(examples):
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        yield from splitter.split(examples.wrong, _strata(examples.wrong))
        return
    sets = np.random.default_rng(seed).permutation(np.unique(examples.dataset))
    for part in np.array_split(sets, min(FOLDS, len(sets))):
        out = np.isin(examples.dataset, part)
        rest = examples.wrong[~out]
        if MIN_CLASS <= rest.sum() <= len(rest) - MIN_CLASS:
            yield np.flatnonzero(~out), np.flatnonzero(out)
        else:  # these data sets together have nearly all answers of one kind: hold out one at a time
            for name in part:
                yield np.flatnonzero(examples.dataset != name), np.flatnonzero(examples.dataset == name)


def _strata(labels: Labels) -> NDArray[np.bool_]:
    """Return the two kinds of answers that each fold gets its share of; one kind where graded ones hardly have two."""
    kinds = rather_wrong(labels)
    return kinds if min(kinds.sum(), (~kinds).sum()) >= FOLDS else np.zeros_like(kinds)


# -- the base model: output features and probe in one logistic regression ----------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Regression:
    """The inputs of one logistic regression.

    Attributes:
        groups: groups of output features.
        columns: columns of these features.
        prior_scale: prior scale of the probe; 0 for a regression without a probe.
    """

    groups: tuple[str, ...]
    columns: NDArray[np.intp]
    prior_scale: float

    def settings(self, weight: float) -> dict[str, Any]:
        """Return the settings for the scorer file."""
        return {"reads": list(self.groups), "probe": self.prior_scale, "weight": round(float(weight), 4)}


def _regressions(
    examples: Examples, score: ScoreName, schema: FeatureSchema, without: Collection[str]
) -> list[_Regression]:
    """Return a regression for each set of output groups and each prior scale; at least one, even without features."""
    # A model without layers has one score, which reads all output features.
    choices = _BASE_GROUPS[score if schema.layers else "guard"]
    kept = dict.fromkeys(tuple(group for group in each if group not in without) for each in choices)
    read = [groups for groups in kept if groups] or [()]
    scales: tuple[float, ...] = (0.0,)
    if examples.products is not None:
        scales = PRIOR_SCALES if holds_out_sets(examples) else (*PRIOR_SCALES, LARGEST_PRIOR_SCALE)
    return [_Regression(groups, schema.columns(groups), scale) for groups in read for scale in scales]


@dataclass(frozen=True, slots=True, eq=False)
class _BaseModel:
    """Logistic regressions on the same answers; their weighted mean is again a logistic regression.

    Attributes:
        columns: shape (c,), the features that any of them uses.
        mean, scale: shape (c,), for standardising these features.
        coefficients: shape (regressions, c).
        intercepts: shape (regressions,).
        landmarks: examples whose activations span the probes.
        combinations: shape (len(landmarks), regressions), each probe as a combination of the landmarks; None if no
            regression has a probe.
        offsets: shape (regressions,), offsets of the probes; see `parts`.
    """

    columns: NDArray[np.intp]
    mean: Doubles
    scale: Doubles
    coefficients: Doubles
    intercepts: Doubles
    landmarks: NDArray[np.intp]
    combinations: Doubles | None
    offsets: Doubles

    @classmethod
    def fit(cls, examples: Examples, rows: NDArray[np.intp], regressions: Sequence[_Regression]) -> _BaseModel:
        """Fit each regression on some of the examples."""
        labels = weighted(examples.wrong[rows], None if examples.weights is None else examples.weights[rows])
        columns = np.unique(np.concatenate([each.columns for each in regressions]))
        x = examples.x[np.ix_(rows, columns)].astype(np.float64)
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale == 0] = 1.0
        inputs, count = (x - mean) / scale, len(columns)
        uses_probe = any(each.prior_scale for each in regressions)
        seen = examples.products.projected(rows) if examples.products is not None and uses_probe else None
        coefficients = np.zeros((len(regressions), count if seen is None else count + seen.values.shape[1]))
        intercepts = np.zeros(len(regressions))
        for at, each in enumerate(regressions):
            used = np.flatnonzero(np.isin(columns, each.columns))
            wide, scaling = inputs[:, used], np.sqrt(each.prior_scale)
            if seen is not None and each.prior_scale:
                wide = np.hstack([wide, scaling * seen.values])
                used = np.concatenate([used, np.arange(count, coefficients.shape[1])])
            if not len(used):
                # No features: the share of wrong answers, of all examples. The share of these rows is the higher, the
                # lower that of the held-out rows is, and would rank them backwards.
                intercepts[at] = to_log_odds(float(examples.wrong.mean()))
                continue
            model = LogisticRegression(C=1.0, solver="newton-cholesky")
            model.fit(wide[labels.rows], labels.wrong, sample_weight=labels.weights)
            coefficients[at, used] = np.where(used < count, 1.0, scaling) * model.coef_[0]
            intercepts[at] = model.intercept_[0]
        linear = (columns, mean, scale, coefficients[:, :count], intercepts)
        if seen is None:
            return cls(*linear, rows, None, np.zeros(len(regressions)))
        combinations = seen.components.combination(coefficients[:, count:].T)
        return cls(*linear, seen.landmarks, combinations, seen.components.offset(combinations))

    def log_odds(self, examples: Examples, rows: NDArray[np.intp]) -> Doubles:
        """Return each regression's log-odds of some examples, shape (regressions, len(rows))."""
        inputs = (examples.x[np.ix_(rows, self.columns)].astype(np.float64) - self.mean) / self.scale
        values = inputs @ self.coefficients.T + self.intercepts
        if self.combinations is not None and examples.products is not None:
            values += examples.products.between(rows, self.landmarks) @ self.combinations - self.offsets
        return np.asarray(values.T)

    def parts(self, examples: Examples, weights: Doubles) -> tuple[Linear, LinearProbe | None]:
        """Return the weighted mean as the scorer file stores it; the probe's offset goes into the intercept."""
        intercept = float(weights @ (self.intercepts - self.offsets))
        linear = make_linear(self.columns, self.mean, self.scale, weights @ self.coefficients, intercept)
        if self.combinations is None or examples.activations is None:
            return linear, None
        activations = examples.activations[self.landmarks]
        return linear, LinearProbe.from_array(probe.combine_weights(self.combinations @ weights, activations))


def _held_out(
    examples: Examples,
    regressions: Sequence[_Regression],
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> Doubles:
    """Return each regression's cross-fitted log-odds of all examples, shape (regressions, n)."""
    values = np.zeros((len(regressions), len(examples)))
    for learn, out in folds:
        values[:, out] = _BaseModel.fit(examples, learn, regressions).log_odds(examples, out)
    return values


def _weights(held_out: Doubles, regressions: Sequence[_Regression], examples: Examples) -> Doubles:
    """Return the weight of each regression; they add up to 1.

    All weights are equal if folds are whole data sets. Otherwise a weight falls with the number of standard errors
    between the regression's loss and the least loss, and is 0 below `LEAST_WEIGHT`. If the regressions without a probe
    are significantly better, all others get 0.
    """
    weights = np.ones(len(regressions))
    if not holds_out_sets(examples):
        losses = np.array([log_losses(each, examples.wrong) for each in held_out])
        above = losses - losses[losses.mean(axis=1).argmin()]
        errors = above.std(axis=1, ddof=1) / np.sqrt(len(examples))
        weights = np.exp(-above.mean(axis=1) / np.maximum(errors, 1e-12))
        weights[weights < LEAST_WEIGHT] = 0.0
    weights /= weights.sum()
    without_probe = np.where([each.prior_scale == 0 for each in regressions], weights, 0.0)
    if not without_probe.any():
        return weights
    without_probe /= without_probe.sum()
    return without_probe if _surely_better(without_probe @ held_out, weights @ held_out, examples) else weights


def _surely_better(new: LogOdds, old: LogOdds, examples: Examples) -> bool:
    """Return whether the new held-out log-odds have a loss that is lower by more than its standard error.

    If folds are whole data sets, data sets are the units: many answers of few data sets say little about other sets.
    """
    gains = log_losses(old, examples.wrong) - log_losses(new, examples.wrong)
    if holds_out_sets(examples):
        gains = np.array([gains[examples.dataset == name].mean() for name in np.unique(examples.dataset)])
    return bool(gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)))


# -- the correction: trees over the signature --------------------------------------------------


def _fit_trees(
    examples: Examples,
    columns: NDArray[np.intp],
    base: LogOdds,
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    seed: int,
    *,
    alone: bool,
) -> tuple[LogOdds, Trees | None, dict[str, Any]]:
    """Fit LightGBM on top of held-out log-odds.

    Args:
        examples: labelled answers.
        columns: the features that the trees read.
        base: held-out log-odds to correct, shape (n,).
        folds: pairs of training rows and held-out rows.
        seed: seed of the trees.
        alone: the base is the share of wrong answers only, so that the trees are the whole model.

    Returns:
        held-out log-odds with the correction, the trees (None for no correction), and the selected settings.
    """
    if not len(columns):
        return base, None, {"rounds": 0, "shrinkage": 0.0}
    x = np.ascontiguousarray(examples.x[:, columns])
    numbers = ROUNDS if alone else CORRECTION_ROUNDS
    corrections = np.zeros((len(numbers), len(examples)))
    settings = {**TREE_SETTINGS, "seed": seed}
    if are_graded(examples.wrong):
        settings["objective"] = "cross_entropy"  # the binary one for labels from 0 to 1
    data = lightgbm.Dataset(x, examples.wrong, weight=examples.weights, init_score=base, free_raw_data=False)
    data.construct()
    for learn, out in folds:
        booster = _boost(data.subset(learn.tolist()), settings, rounds=numbers[-1])
        for at, rounds in enumerate(numbers):
            corrections[at, out] = booster.predict(x[out], raw_score=True, num_iteration=rounds)
    choices = [
        (rounds, share, base + share * corrections[at])
        for at, rounds in enumerate(numbers)
        for share in ((1.0,) if alone else SHRINKAGES)
    ]
    rounds, share, held_out = min(choices, key=lambda choice: float(log_losses(choice[2], examples.wrong).mean()))
    if not alone and not _surely_better(held_out, base, examples):
        share, held_out = 0.0, base
    chosen = {**settings, "rounds": rounds if share else 0, "shrinkage": share}
    if not share:
        return held_out, None, chosen
    booster = _boost(data, settings, rounds=rounds)
    return held_out, trees_from(booster, columns, share), chosen


def _boost(data: Any, settings: Mapping[str, Any], *, rounds: int) -> Any:
    return lightgbm.train({**settings, "verbosity": -1}, data, num_boost_round=rounds)
