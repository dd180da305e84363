"""Arrays of labelled answers -> a calibrated model.

The default score is one logistic regression over what the output shows (log-probabilities, margins,
length) and what the layers say (`guard.scoring.probe`), and a LightGBM correction from the layers' signature.
What the regression reads and how loud the layers may speak is not chosen but averaged over, not at all
included. Answers that were held out decide how much each way counts, whether the layers are heard at all,
and how much of the correction is kept. Where whole data sets can be held out all ways count the same: what was
best on some sets is often not on the next (docs/evidence/notes.json).
The probability is calibrated on the same answers; then all is fitted again on everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import CalibrationError, missing_extra
from guard.records import Floats
from guard.scoring import probe
from guard.scoring.scorer import log_odds_of
from guard.scoring.scorer_file import Calibration, Linear, LinearProbe, Model, Trees, linear_of
from guard.scoring.signature import FeatureSchema

try:
    import lightgbm
    from scipy.optimize import minimize
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
except ImportError as error:
    raise missing_extra("lightgbm or scikit-learn", "calibrate") from error

Features = Literal["combined", "ilis", "logprob"]
Doubles = NDArray[np.float64]
LogOdds = Doubles

#: Fewest answers, and fewest of each label, to fit anything.
MIN_ANSWERS, MIN_CLASS = 40, 5

FOLDS = 5
#: From so many data sets on, folds are whole sets.
MIN_SETS = 4

#: Variances that the layers' read-out has beside the output's features, which have 1 each, in the regressions whose
#: mean is taken. A regression without a read-out is one of them.
STRENGTHS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
#: A further one where single answers are held out, and tell what it is worth.
LOUDEST = 30.0
#: Where regressions have weights, what counts less than this share of the best is left out.
LEAST_WEIGHT = 0.01
#: How far calibration is expected to move slope and intercept: as standard deviations around 1 and 0.
CALIBRATION_SPREAD = 0.3

#: A start from log-odds, weak learners, and shrinkage: trees that do not harm transfer.
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
#: Numbers of trees that are tried, as a correction and alone, and shares of the correction.
CORRECTION_ROUNDS, ROUNDS = (25, 50, 100), (50, 100, 200, 400)
SHRINKAGES = (0.5, 1.0)

_GROUPS: dict[Features, tuple[str, ...]] = {
    "combined": ("logprob", "margin", "length", "norms", "map"),
    "ilis": ("map",),
    "logprob": ("logprob",),
}
#: Tokens whose maps and norms are read. The published score reads the last one.
_AGGREGATES: dict[Features, tuple[str, ...]] = {"combined": ("last", "mean"), "ilis": ("last",), "logprob": ("last",)}
#: What the regressions of the start read of the output.
_START_GROUPS: dict[Features, tuple[tuple[str, ...], ...]] = {
    "combined": (("logprob",), ("logprob", "margin", "length")),
    "ilis": (),
    "logprob": (("logprob",),),
}


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Labelled answers as arrays.

    Attributes:
        x: shape (n, features), in a schema's order.
        wrong: shape (n,).
        dataset: shape (n,).
        activations: shape (n, A, L, D), as in `Signature.activations`; None leaves the read-out out.
        products: of the activations; made where missing.
    """

    x: Floats
    wrong: NDArray[np.bool_]
    dataset: NDArray[np.str_]
    activations: NDArray[np.floating] | None = None
    products: probe.InnerProducts | None = None

    def __len__(self) -> int:
        return len(self.wrong)


@dataclass(frozen=True, slots=True, eq=False)
class FittedModel:
    """A model and how it came about.

    Attributes:
        model: calibrated.
        settings: what was chosen, for the artefact.
    """

    model: Model
    settings: Mapping[str, Any]


def schema_for(
    features: Features, *, layers: int, temperatures: tuple[float, ...], without: tuple[str, ...] = ()
) -> FeatureSchema:
    """The features of a kind of score, some groups left out."""
    groups = tuple(group for group in _GROUPS[features] if group not in without)
    return FeatureSchema(layers=layers, temperatures=temperatures, aggregates=_AGGREGATES[features], groups=groups)


def fit_model(
    examples: Examples, schema: FeatureSchema, *, features: Features = "combined", seed: int = 0
) -> FittedModel:
    """Fit and calibrate.

    Args:
        examples: to learn from; all of them are used for everything.
        schema: of ``examples.x``.
        features: the kind of score.
        seed: of folds and trees.

    Raises:
        CalibrationError: too few labels of one kind, features or activations that are not finite or all the same,
            or a score that carries no signal.
    """
    _check_enough(examples.wrong)
    _check_finite(examples)
    if features != "combined" or examples.activations is None:
        examples = replace(examples, activations=None, products=None)
    elif examples.products is None:
        examples = replace(examples, products=probe.InnerProducts(probe.inner_products(examples.activations)))
    folds = list(_folds(examples, seed))
    told: dict[str, Any] = {"folds": "data sets" if _by_set(examples) else "answers"}
    regressions = _regressions(examples, features, schema)
    by_regression = _held_out(examples, regressions, folds)
    weights = _weights(by_regression, regressions, examples)
    held_out = weights @ by_regression
    kept = np.flatnonzero(weights)
    start = _Start.fit(examples, np.arange(len(examples)), [regressions[at] for at in kept])
    linear, linear_probe = start.parts(examples, weights[kept])
    told |= {"regressions": [regressions[at].told(weights[at]) for at in kept]}
    trees: Trees | None = None
    if features != "logprob":
        alone = not linear.features and linear_probe is None
        held_out, trees, chosen = _fit_trees(examples, schema, held_out, folds, seed, alone=alone)
        told |= chosen
    calibration = _calibrate(held_out, examples.wrong)
    return FittedModel(Model(base=linear, probe=linear_probe, trees=trees, calibration=calibration), told)


def _check_enough(wrong: NDArray[np.bool_]) -> None:
    rarer = int(min(wrong.sum(), len(wrong) - wrong.sum()))
    if len(wrong) < MIN_ANSWERS or rarer < MIN_CLASS:
        raise CalibrationError(
            "Too few labels to fit a scorer",
            why=f"there are {len(wrong)} answers, {int(wrong.sum())} of them wrong; "
            f"it needs at least {MIN_ANSWERS} answers, {MIN_CLASS} right and {MIN_CLASS} wrong",
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
                fix="Record these answers again; where it stays, the model computes NaN (try another dtype)",
            )


# -- what is held out --------------------------------------------------------------------------


def _by_set(examples: Examples) -> bool:
    """Whether whole data sets can be held out: enough of them, and both labels in the rest."""
    sets = np.unique(examples.dataset)
    if len(sets) < MIN_SETS:
        return False
    return all(
        MIN_CLASS <= examples.wrong[examples.dataset != name].sum() <= (examples.dataset != name).sum() - MIN_CLASS
        for name in sets
    )


def _folds(examples: Examples, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs of rows to learn from and rows held out."""
    if not _by_set(examples):
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        yield from splitter.split(examples.wrong, examples.wrong)
        return
    sets = np.random.default_rng(seed).permutation(np.unique(examples.dataset))
    for part in np.array_split(sets, min(FOLDS, len(sets))):
        out = np.isin(examples.dataset, part)
        rest = examples.wrong[~out]
        if MIN_CLASS <= rest.sum() <= len(rest) - MIN_CLASS:
            yield np.flatnonzero(~out), np.flatnonzero(out)
        else:  # these sets together hold nearly all answers of one kind: one at a time
            for name in part:
                yield np.flatnonzero(examples.dataset != name), np.flatnonzero(examples.dataset == name)


# -- the start: output and layers in one logistic regression -----------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Regression:
    """What one logistic regression reads.

    Attributes:
        groups: of the output's features.
        columns: of these features.
        strength: of the read-out; 0 for none.
    """

    groups: tuple[str, ...]
    columns: NDArray[np.intp]
    strength: float

    def told(self, weight: float) -> dict[str, Any]:
        """For the artefact."""
        return {"reads": list(self.groups), "probe": self.strength, "weight": round(float(weight), 4)}


def _regressions(examples: Examples, features: Features, schema: FeatureSchema) -> list[_Regression]:
    """All ways to read the output, without what is left out, at all strengths; one that reads nothing if need be."""
    kept = dict.fromkeys(tuple(group for group in each if group in schema.groups) for each in _START_GROUPS[features])
    read = [groups for groups in kept if groups] or [()]
    strengths: tuple[float, ...] = (0.0,)
    if examples.products is not None:
        strengths = STRENGTHS if _by_set(examples) else (*STRENGTHS, LOUDEST)
    return [_Regression(groups, schema.columns(groups), strength) for groups in read for strength in strengths]


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """Logistic regressions on the same answers; their weighted mean is one, too.

    Attributes:
        columns: shape (c,), of the features that any of them reads.
        mean, scale: shape (c,), of these features.
        coefficients: shape (regressions, c).
        intercepts: shape (regressions,).
        landmarks: examples that the read-outs are made of.
        combinations: shape (len(landmarks), regressions), the read-outs as combinations of them; None without any.
        offsets: shape (regressions,), of the read-outs; see `parts`.
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
    def fit(cls, examples: Examples, rows: NDArray[np.intp], regressions: Sequence[_Regression]) -> _Start:
        """Fit each on some of the examples."""
        wrong = examples.wrong[rows]
        columns = np.unique(np.concatenate([each.columns for each in regressions]))
        x = examples.x[np.ix_(rows, columns)].astype(np.float64)
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale == 0] = 1.0
        inputs, count = (x - mean) / scale, len(columns)
        heard = any(each.strength for each in regressions)
        seen = examples.products.projected(rows) if examples.products is not None and heard else None
        coefficients = np.zeros((len(regressions), count if seen is None else count + seen.values.shape[1]))
        intercepts = np.zeros(len(regressions))
        for at, each in enumerate(regressions):
            used = np.flatnonzero(np.isin(columns, each.columns))
            wide, loud = inputs[:, used], np.sqrt(each.strength)
            if seen is not None and each.strength:
                wide = np.hstack([wide, loud * seen.values])
                used = np.concatenate([used, np.arange(count, coefficients.shape[1])])
            if not len(used):
                # Neither output nor layers: the share of wrong answers. That of these rows would be the higher, the
                # lower that of the rows held out is, and so rank them backwards.
                intercepts[at] = log_odds_of(float(examples.wrong.mean()))
                continue
            model = LogisticRegression(C=1.0, solver="newton-cholesky").fit(wide, wrong)
            coefficients[at, used] = np.where(used < count, 1.0, loud) * model.coef_[0]
            intercepts[at] = model.intercept_[0]
        linear = (columns, mean, scale, coefficients[:, :count], intercepts)
        if seen is None:
            return cls(*linear, rows, None, np.zeros(len(regressions)))
        combinations = seen.components.combination(coefficients[:, count:].T)
        return cls(*linear, seen.landmarks, combinations, seen.components.offset(combinations))

    def log_odds(self, examples: Examples, rows: NDArray[np.intp]) -> Doubles:
        """Of some examples by each regression, shape (regressions, len(rows))."""
        inputs = (examples.x[np.ix_(rows, self.columns)].astype(np.float64) - self.mean) / self.scale
        values = inputs @ self.coefficients.T + self.intercepts
        if self.combinations is not None and examples.products is not None:
            values += examples.products.between(rows, self.landmarks) @ self.combinations - self.offsets
        return np.asarray(values.T)

    def parts(self, examples: Examples, weights: Doubles) -> tuple[Linear, LinearProbe | None]:
        """The weighted mean as the artefact holds it; the read-out's offset goes into the intercept."""
        intercept = float(weights @ (self.intercepts - self.offsets))
        linear = linear_of(self.columns, self.mean, self.scale, weights @ self.coefficients, intercept)
        if self.combinations is None or examples.activations is None:
            return linear, None
        activations = examples.activations[self.landmarks]
        return linear, LinearProbe.of(probe.weights_of(self.combinations @ weights, activations))


def _held_out(
    examples: Examples,
    regressions: Sequence[_Regression],
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> Doubles:
    """Log-odds of all examples by each regression, fitted without them, shape (regressions, n)."""
    values = np.zeros((len(regressions), len(examples)))
    for learn, out in folds:
        values[:, out] = _Start.fit(examples, learn, regressions).log_odds(examples, out)
    return values


def _weights(held_out: Doubles, regressions: Sequence[_Regression], examples: Examples) -> Doubles:
    """How much each regression counts, together 1; the layers nothing where answers are surely better off without.

    The same for all where whole sets are held out. Otherwise less, the more standard errors a loss is above the
    least, and below `LEAST_WEIGHT` nothing.
    """
    weights = np.ones(len(regressions))
    if not _by_set(examples):
        losses = np.array([_losses(each, examples.wrong) for each in held_out])
        above = losses - losses[losses.mean(axis=1).argmin()]
        errors = above.std(axis=1, ddof=1) / np.sqrt(len(examples))
        weights = np.exp(-above.mean(axis=1) / np.maximum(errors, 1e-12))
        weights[weights < LEAST_WEIGHT] = 0.0
    weights /= weights.sum()
    silent = np.where([each.strength == 0 for each in regressions], weights, 0.0)
    if not silent.any():
        return weights
    silent /= silent.sum()
    return silent if _surely_better(silent @ held_out, weights @ held_out, examples) else weights


def _surely_better(new: LogOdds, old: LogOdds, examples: Examples) -> bool:
    """Whether held-out log-odds have a loss that is lower by more than its standard error.

    Sets are the units where whole sets were held out: many answers of few sets say little of the next set.
    """
    gains = _losses(old, examples.wrong) - _losses(new, examples.wrong)
    if _by_set(examples):
        gains = np.array([gains[examples.dataset == name].mean() for name in np.unique(examples.dataset)])
    return bool(gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)))


def _losses(log_odds: LogOdds, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log loss of each answer."""
    return np.logaddexp(0.0, np.where(wrong, -log_odds, log_odds))


# -- the correction: trees over the signature --------------------------------------------------


def _fit_trees(
    examples: Examples,
    schema: FeatureSchema,
    start: LogOdds,
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    seed: int,
    *,
    alone: bool,
) -> tuple[LogOdds, Trees | None, dict[str, Any]]:
    """LightGBM from held-out log-odds: held-out log-odds with it, the trees, what was chosen.

    Args:
        start: held-out log-odds to correct, shape (n,).
        alone: the start is the share of wrong answers, so that the trees are all there is.
    """
    columns = schema.columns([group for group in schema.groups if alone or group != "logprob"])
    if not len(columns):
        return start, None, {"rounds": 0, "shrinkage": 0.0}
    x = np.ascontiguousarray(examples.x[:, columns])
    numbers = ROUNDS if alone else CORRECTION_ROUNDS
    corrections = np.zeros((len(numbers), len(examples)))
    data = lightgbm.Dataset(x, examples.wrong, init_score=start, free_raw_data=False).construct()
    for learn, out in folds:
        booster = _boost(data.subset(learn.tolist()), seed, rounds=numbers[-1])
        for at, rounds in enumerate(numbers):
            corrections[at, out] = booster.predict(x[out], raw_score=True, num_iteration=rounds)
    choices = [
        (rounds, share, start + share * corrections[at])
        for at, rounds in enumerate(numbers)
        for share in ((1.0,) if alone else SHRINKAGES)
    ]
    rounds, share, held_out = min(choices, key=lambda choice: float(_losses(choice[2], examples.wrong).mean()))
    if not alone and not _surely_better(held_out, start, examples):
        share, held_out = 0.0, start
    told = {**TREE_SETTINGS, "seed": seed, "rounds": rounds if share else 0, "shrinkage": share}
    if not share:
        return held_out, None, told
    booster = _boost(data, seed, rounds=rounds)
    return held_out, _trees_of(booster, columns, share), told


def _boost(data: Any, seed: int, *, rounds: int) -> Any:
    return lightgbm.train({**TREE_SETTINGS, "seed": seed, "verbosity": -1}, data, num_boost_round=rounds)


def _trees_of(booster: Any, columns: NDArray[np.intp], shrinkage: float) -> Trees:
    """LightGBM's trees as one table of nodes, in vector positions, leaves times the shrinkage."""
    table: dict[str, list[Any]] = {name: [] for name in ("roots", "feature", "threshold", "left", "right", "value")}
    for tree in booster.dump_model()["tree_info"]:
        table["roots"].append(len(table["feature"]))
        _add_node(table, tree["tree_structure"], columns, shrinkage)
    return Trees(**table)


def _add_node(table: dict[str, list[Any]], node: Mapping[str, Any], columns: NDArray[np.intp], shrinkage: float) -> int:
    at = len(table["feature"])
    leaf = "leaf_value" in node
    table["feature"].append(-1 if leaf else int(columns[node["split_feature"]]))
    table["threshold"].append(0.0 if leaf else float(node["threshold"]))
    table["value"].append(float(node["leaf_value"]) * shrinkage if leaf else 0.0)
    table["left"].append(0)
    table["right"].append(0)
    if not leaf:
        table["left"][at] = _add_node(table, node["left_child"], columns, shrinkage)
        table["right"][at] = _add_node(table, node["right_child"], columns, shrinkage)
    return at


# -- calibration -------------------------------------------------------------------------------


def _calibrate(held_out: LogOdds, wrong: NDArray[np.bool_]) -> Calibration:
    """Platt scaling: a logistic regression on held-out log-odds, which are expected to be about right as they are.

    So that few answers, or a score that hardly tells anything, cannot turn it far.
    """

    def loss(moved: Doubles) -> tuple[float, Doubles]:
        scaled = (1.0 + moved[0]) * held_out + moved[1]
        slopes = expit(scaled) - wrong
        value = _losses(scaled, wrong).sum() + moved @ moved / (2 * CALIBRATION_SPREAD**2)
        return float(value), np.array([slopes @ held_out, slopes.sum()]) + moved / CALIBRATION_SPREAD**2

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x + np.array([1.0, 0.0])
    if slope <= 0 or roc_auc_score(wrong, held_out) <= 0.5:
        raise CalibrationError(
            "The score does not rank wrong answers above right ones on held-out answers",
            why="these features carry no signal here, or there are too few labels",
            fix="Give more labelled questions",
        )
    return Calibration(slope=float(slope), intercept=float(intercept))
