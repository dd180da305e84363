"""Labelled records -> a fitted scorer.

The default score starts from what the output itself shows, a logistic regression on token
log-probabilities, and lets small, strongly regularised LightGBM trees over the layers' signature
correct it: with a few hundred or thousand labels one big model over all features loses to its own
best part. How much of the correction is kept is chosen on a split of its own, nothing included,
then the probability is calibrated on another.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import CalibrationError, InputError, did_you_mean, missing_extra
from guard.graders import Grader
from guard.questions import LabelledResponse, Row, split_questions
from guard.recording import Journal, Record, Run, row_key
from guard.records import Floats
from guard.scorer import (
    FORMAT,
    FORMAT_VERSION,
    Artefact,
    Binding,
    Calibration,
    DataSet,
    Evaluator,
    Linear,
    Model,
    Prompting,
    Schema,
    Scorer,
    Trees,
    linear_of,
)
from guard.signature import FeatureSchema, feature_vector

try:
    import lightgbm
    from sklearn.linear_model import LogisticRegression
except ImportError as error:
    raise missing_extra("lightgbm or scikit-learn", "calibrate") from error

from guard.metrics import Metrics, metrics_of

Features = Literal["combined", "ilis", "logprob"]

#: Disjoint, grouped by question: fit the models / stop early and shrink / calibrate / test.
SPLIT_SHARES = {"fit": 0.5, "stop": 0.15, "calibrate": 0.15, "test": 0.2}

#: Fewest answers, and fewest of each label, that a split must have.
MIN_SPLIT, MIN_CLASS = 20, 5

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
}
TREE_ROUNDS, EARLY_STOPPING_ROUNDS = 400, 40

#: Shares of the correction that are tried.
SHRINKAGES = (0.0, 0.25, 0.5, 0.75, 1.0)

_GROUPS: dict[Features, tuple[str, ...]] = {
    "combined": ("logprob", "margin", "length", "norms", "map"),
    "ilis": ("map",),
    "logprob": ("logprob",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A record and whether its answer was wrong."""

    record: Record
    wrong: bool


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted scorer and how it does on the questions that it never saw.

    Attributes:
        scorer: ready to save and use.
        test: metrics on the test split.
        baseline: the same of token log-probabilities alone, on the same split. Only with
            ``features="combined"``, and None where they do not tell wrong answers from right ones.
    """

    scorer: Scorer
    test: Metrics
    baseline: Metrics | None


@dataclass(frozen=True, slots=True)
class _Split:
    """Features and labels of one split: x of shape (n, features), y of shape (n,)."""

    x: Floats
    y: NDArray[np.bool_]


def fit_scorer(
    splits: Mapping[str, Sequence[Labelled]],
    *,
    run: Run,
    data: Sequence[DataSet],
    features: Features = "combined",
    seed: int = 0,
) -> Fitted:
    """Fit, calibrate and test a scorer.

    Args:
        splits: labelled records by split, named as in `SPLIT_SHARES`, disjoint by question.
        run: how the records were made; the scorer is bound to its model.
        data: what the records come from, for the artefact.
        features: ``combined`` (the default score), ``ilis`` (the published score: the signature
            alone, LightGBM), or ``logprob`` (log-probabilities alone).
        seed: of the trees.

    Raises:
        CalibrationError: too few labels of one kind in a split, or a score that carries no signal.
        InputError: unknown features.
    """
    if features not in _GROUPS:
        raise InputError(f"There are no features '{features}'", fix=did_you_mean(features, _GROUPS))
    schema = FeatureSchema(layers=run.model.layers, temperatures=run.temperatures, groups=_GROUPS[features])
    arrays = {name: _arrays(name, records, schema) for name, records in splits.items()}
    start = _fit_start(arrays["fit"], schema) if features != "ilis" else None
    trees, settings = (None, {}) if features == "logprob" else _fit_trees(arrays, schema, start, seed)
    model = _calibrate(start, trees, arrays["calibrate"])
    baseline = _baseline(start, arrays["calibrate"]) if features == "combined" else None
    artefact = Artefact(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        binding=Binding.of(run.model, run.capture_point),
        features=features,
        schema=_stored(schema),
        feature_names=list(schema.names),
        prompting=Prompting(system=run.system, max_tokens=run.max_tokens),
        data=list(data),
        split_sizes={name: len(split.y) for name, split in arrays.items()},
        seed=seed,
        settings=settings,
        versions=_versions(),
        metrics={},
        model=model,
        baseline=baseline,
    )
    test = arrays["test"]
    measured = _measure(model, test)
    compared = _measure(baseline, test) if baseline else None
    told = {"test": asdict(measured), **({"baseline": asdict(compared)} if compared else {})}
    return Fitted(Scorer(artefact.model_copy(update={"metrics": told})), measured, compared)


def split_labelled(
    rows: Sequence[tuple[str, Row]], journal: Journal, *, grade: Grader, seed: int
) -> dict[str, list[Labelled]]:
    """Label the journal's answers to these rows and split them, disjoint by question.

    Labels are made here and not when the question is asked, so that a better grader needs no
    second run of the model.

    Args:
        rows: pairs of data set name and row; rows that the journal does not have are left out.
        journal: the model's answers.
        grade: whether an answer to a question is right.
        seed: of the split.
    """
    by_row = {id(row): dataset for dataset, row in rows}
    splits = split_questions([row for _, row in rows], seed=seed, shares=SPLIT_SHARES)
    return {
        name: [
            Labelled(record, _is_wrong(row, record.answer, grade))
            for row in members
            if isinstance(record := journal.record(row_key(by_row[id(row)], row)), Record)
        ]
        for name, members in splits.items()
    }


def _is_wrong(row: Row, answer: str, grade: Grader) -> bool:
    return row.wrong if isinstance(row, LabelledResponse) else not grade(row, answer)


def _arrays(name: str, labelled: Sequence[Labelled], schema: FeatureSchema) -> _Split:
    wrong = np.array([each.wrong for each in labelled], np.bool_)
    rarer = int(min(wrong.sum(), len(wrong) - wrong.sum()))
    if len(wrong) < MIN_SPLIT or rarer < MIN_CLASS:
        raise CalibrationError(
            "Too few labels to fit a scorer",
            why=f"the {name} split has {len(wrong)} answers, {int(wrong.sum())} of them wrong; "
            f"each split needs at least {MIN_SPLIT} answers, {MIN_CLASS} right and {MIN_CLASS} wrong",
            fix="Give more questions, or a mix of easier and harder ones",
        )
    return _Split(np.stack([feature_vector(each.record.signals, schema) for each in labelled]), wrong)


def _fit_start(fit: _Split, schema: FeatureSchema) -> Linear:
    """Logistic regression on standardised log-probability statistics."""
    columns = schema.columns(["logprob"])
    x = fit.x[:, columns].astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=1.0, max_iter=1000).fit((x - mean) / scale, fit.y)
    return linear_of(columns, mean, scale, model.coef_[0], model.intercept_[0])


def _fit_trees(
    arrays: Mapping[str, _Split], schema: FeatureSchema, start: Linear | None, seed: int
) -> tuple[Trees | None, dict[str, Any]]:
    """LightGBM from the start's log-odds, stopped early, with the best share of it kept."""
    columns = schema.columns([group for group in schema.groups if start is None or group != "logprob"])
    fit, stop = arrays["fit"], arrays["stop"]
    begin = {name: _log_odds(start, None, arrays[name].x) for name in ("fit", "stop")}
    settings = {
        **TREE_SETTINGS,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
    }
    learning = lightgbm.Dataset(fit.x[:, columns], fit.y, init_score=begin["fit"], free_raw_data=False)
    stopping = lightgbm.Dataset(stop.x[:, columns], stop.y, init_score=begin["stop"], reference=learning)
    booster = lightgbm.train(
        {**settings, "verbosity": -1},
        learning,
        num_boost_round=TREE_ROUNDS,
        valid_sets=[stopping],
        callbacks=[lightgbm.early_stopping(EARLY_STOPPING_ROUNDS, verbose=False)],
    )
    correction = np.asarray(booster.predict(stop.x[:, columns], raw_score=True), np.float64)
    # Without a start the trees are all there is, so all of them is kept.
    shrinkage = 1.0 if start is None else _best_shrinkage(begin["stop"], correction, stop.y)
    told = {**settings, "rounds": booster.best_iteration, "shrinkage": shrinkage}
    return (_trees_of(booster, columns, shrinkage) if shrinkage else None), told


def _best_shrinkage(start: NDArray[np.float64], correction: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """The share of the correction with the lowest log loss; the smaller one when equal."""
    losses = {share: _log_loss(start + share * correction, wrong) for share in SHRINKAGES}
    return min(SHRINKAGES, key=lambda share: (losses[share], share))


def _log_loss(log_odds: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    return float(np.logaddexp(0.0, np.where(wrong, -log_odds, log_odds)).mean())


def _trees_of(booster: Any, columns: NDArray[np.intp], shrinkage: float) -> Trees:
    """LightGBM's trees as one table of nodes, in vector positions, leaves times the shrinkage."""
    table: dict[str, list[Any]] = {name: [] for name in ("roots", "feature", "threshold", "left", "right", "value")}
    for tree in booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]:
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


def _calibrate(start: Linear | None, trees: Trees | None, split: _Split) -> Model:
    """Platt scaling: a logistic regression on the log-odds, on labels of its own."""
    log_odds = _log_odds(start, trees, split.x)
    scaled = LogisticRegression(C=1e6, max_iter=1000).fit(log_odds[:, None], split.y)
    slope = float(scaled.coef_[0, 0])
    if slope <= 0:
        raise CalibrationError(
            "The score does not rank wrong answers above right ones on the calibration split",
            why="these features carry no signal here, or there are too few labels",
            fix="Give more labelled questions",
        )
    return Model(start=start, trees=trees, calibration=Calibration(slope=slope, intercept=float(scaled.intercept_[0])))


def _baseline(start: Linear | None, split: _Split) -> Model | None:
    try:
        return _calibrate(start, None, split)
    except CalibrationError:  # no signal in them is no reason to refuse a score that has some
        return None


def _log_odds(start: Linear | None, trees: Trees | None, x: Floats) -> NDArray[np.float64]:
    evaluator = Evaluator(start, trees)
    return np.array([evaluator.log_odds(row) for row in x.astype(np.float64)])


def _measure(model: Model, split: _Split) -> Metrics:
    calibration = model.calibration
    log_odds = _log_odds(model.start, model.trees, split.x)
    p_wrong = 1.0 / (1.0 + np.exp(-(calibration.slope * log_odds + calibration.intercept)))
    return metrics_of(p_wrong, split.y)


def _stored(schema: FeatureSchema) -> Schema:
    return Schema(
        layers=schema.layers,
        temperatures=list(schema.temperatures),
        aggregates=list(schema.aggregates),
        groups=list(schema.groups),
        version=schema.version,
    )


def _versions() -> dict[str, str]:
    packages = ("guard", "numpy", "lightgbm", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
