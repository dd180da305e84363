"""Does the layers' signature add anything to guard's own score, and which log-probability columns transfer?

    python benchmarks/signature_views.py records.parquet [--new other.parquet]

Variants of the score are fitted on all sets but one and tested on that one; with ``--new`` they are also fitted on all
sets and tested on others. Each is a mean of logistic regressions, as guard's own score is: some output columns, and
principal components of views of the layers at several prior scales. A view is the all-layer probe of the activations
(`guard.scoring.probe`), or some form of the signature. Platt scaling on held-out sets makes probabilities.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from guard.data.answers import Answers, concatenate
from guard.scoring.probe import principal_components
from guard.scoring.signature import FeatureSchema

Matrix = NDArray[np.floating]

#: Prior scales, and principal components of each view: fewer than in the score itself (five, 256), to be done sooner.
SCALES, COMPONENTS = (0.3, 1.0, 3.0), 64
#: Rows of `Signature.maps` along its second axis.
FIRST, LAST, MEAN = 0, 1, 2
#: Layers of a band.
BAND = 5
#: A divergence below this is rounding.
LEAST_KL = 1e-6


# -- output columns ----------------------------------------------------------------------------


def raw_columns(answers: Answers) -> Matrix:
    """Return the seven log-probability statistics as they are."""
    return answers.features(FeatureSchema(answers.layers, groups=("logprob",))).astype(np.float64)


def margin_columns(answers: Answers) -> Matrix:
    """Return the seven statistics, the margins and the length."""
    groups = ("logprob", "margin", "length")
    return answers.features(FeatureSchema(answers.layers, groups=groups)).astype(np.float64)


def all_logarithms(answers: Answers) -> Matrix:
    """Return the logarithms of the seven statistics."""
    return np.log(np.maximum(np.abs(raw_columns(answers)), 1e-4))


def two_logarithms(answers: Answers) -> Matrix:
    """Return log(-least log-probability) and log(greatest entropy)."""
    return all_logarithms(answers)[:, [1, 5]]


def four_logarithms(answers: Answers) -> Matrix:
    """Return these two, log(-first log-probability) and log(-log-probability of the whole answer)."""
    raw, logs = raw_columns(answers), all_logarithms(answers)
    length = margin_columns(answers)[:, -1:]  # the logarithm of the number of tokens
    whole = np.log(np.maximum(np.abs(raw[:, :1]), 1e-4)) + length
    return np.hstack([two_logarithms(answers), logs[:, [2]], whole])


# -- views of the layers -----------------------------------------------------------------------


def signature(answers: Answers, *, tokens: tuple[int, ...] = (LAST, MEAN), taus: slice = slice(1, 2)) -> Matrix:
    """Return logarithms of the off-diagonal entries of the maps, shape (n, entries)."""
    logs = _log_maps(answers)[:, taus][:, :, list(tokens)]
    return logs[..., ~np.eye(answers.layers, dtype=bool)].reshape(len(answers), -1)


def neighbours(answers: Answers) -> Matrix:
    """Return logarithms of the divergences between neighbouring layers, both ways, of three tokens."""
    logs, at = _log_maps(answers)[:, 1, :3], np.arange(answers.layers - 1)
    return np.concatenate([logs[..., at, at + 1], logs[..., at + 1, at]], axis=-1).reshape(len(answers), -1)


def transitions(answers: Answers) -> Matrix:
    """Return how each layer's distances to all others change from one layer to the next, of the last token."""
    logs = _log_maps(answers)[:, 1, LAST]
    return np.diff(np.where(np.eye(answers.layers, dtype=bool), 0.0, logs), axis=1).reshape(len(answers), -1)


def bands(answers: Answers) -> Matrix:
    """Return the mean logarithm of each block of `BAND` x `BAND` layers, of three tokens and all temperatures."""
    logs = _log_maps(answers)[:, :, :3]
    edges = range(0, answers.layers, BAND)
    blocks = [logs[..., i : i + BAND, j : j + BAND].mean(axis=(-2, -1)) for i in edges for j in edges]
    return np.stack(blocks, axis=-1).reshape(len(answers), -1)


def _log_maps(answers: Answers) -> Matrix:
    return np.log(np.maximum(answers.maps.astype(np.float64), LEAST_KL))


VIEWS: Mapping[str, Callable[[Answers], Matrix]] = {
    "map (last, mean)": signature,
    "map, three temperatures": lambda answers: signature(answers, taus=slice(0, 3)),
    "neighbouring layers": neighbours,
    "transitions": transitions,
    "bands": bands,
}


# -- one score ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A mean of regressions.

    Attributes:
        columns: groups of output columns; each gives a regression without layers and one for each view and scale.
        views: names of views, each in regressions of its own; ``probe`` is that of the activations.
        joint: put all views into each regression together instead.
    """

    columns: tuple[str, ...]
    views: tuple[str, ...] = ()
    joint: bool = False


@dataclass(frozen=True)
class Table:
    """What variants read, of all answers."""

    columns: Mapping[str, Matrix]
    kernels: Mapping[str, Matrix]
    wrong: NDArray[np.bool_]
    dataset: NDArray[np.str_]


COLUMNS: Mapping[str, Callable[[Answers], Matrix]] = {
    "raw": raw_columns,
    "raw+": margin_columns,
    "logs": all_logarithms,
    "2 logs": two_logarithms,
    "4 logs": four_logarithms,
}


def table_of(answers: Answers, rows: NDArray[np.intp], *, layers: bool) -> Table:
    """Return the inputs of all variants; views are standardised over the training answers, and left out on demand."""
    every, kernels = np.arange(len(answers)), dict[str, Matrix]()
    if layers:
        kernels["probe"] = np.asarray(answers.products.between(every, every))
    for name, view in VIEWS.items() if layers else ():
        values = view(answers)
        scale = values[rows].std(axis=0)
        kept = scale > 1e-9
        units = ((values - values[rows].mean(axis=0)) / np.where(kept, scale, 1))[:, kept] / np.sqrt(kept.sum())
        kernels[name] = (units @ units.T).astype(np.float32)
    return Table({name: make(answers) for name, make in COLUMNS.items()}, kernels, answers.wrong, answers.dataset)


def log_odds(table: Table, variant: Variant, learn: NDArray[np.intp], out: NDArray[np.intp]) -> Matrix:
    """Return the variant's log-odds of some answers, fitted on others."""
    seen = {name: _components(table.kernels[name], learn, out) for name in variant.views}
    blocks: list[tuple[Matrix, Matrix]] = [(np.zeros((len(learn), 0)), np.zeros((len(out), 0)))]
    groups = [tuple(variant.views)] if variant.joint else [(name,) for name in variant.views]
    for group in groups:
        for scale in SCALES:
            pair = [np.hstack([np.sqrt(scale) * seen[name][side] for name in group]) for side in (0, 1)]
            blocks.append((pair[0], pair[1]))
    found = []
    for name in variant.columns:
        values = table.columns[name]
        mean, spread = values[learn].mean(axis=0), values[learn].std(axis=0)
        standard = (values - mean) / np.where(spread > 0, spread, 1)
        for inside, outside in blocks:
            model = LogisticRegression(C=1.0, solver="newton-cholesky", max_iter=200)
            model.fit(np.hstack([standard[learn], inside]), table.wrong[learn])
            found.append(model.decision_function(np.hstack([standard[out], outside])))
    return np.mean(found, axis=0)


def _components(kernel: Matrix, learn: NDArray[np.intp], out: NDArray[np.intp]) -> tuple[Matrix, Matrix]:
    inside = kernel[np.ix_(learn, learn)]
    components = principal_components(inside, count=COMPONENTS)
    return components.of(inside), components.of(kernel[np.ix_(out, learn)])


def probabilities(table: Table, variant: Variant, learn: NDArray[np.intp], out: NDArray[np.intp]) -> Matrix:
    """Return calibrated probabilities of some answers, fitted on others; the calibration holds out whole sets."""
    held_out = np.empty(len(learn))
    for part in np.array_split(np.random.default_rng(0).permutation(np.unique(table.dataset[learn])), 5):
        inner = np.isin(table.dataset[learn], part)
        held_out[inner] = log_odds(table, variant, learn[~inner], learn[inner])
    platt = LogisticRegression(C=10.0).fit(held_out[:, None], table.wrong[learn])
    slope, intercept = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    return np.asarray(expit(slope * log_odds(table, variant, learn, out) + intercept))


# -- comparisons -------------------------------------------------------------------------------


def variants() -> Iterator[tuple[str, Variant]]:
    for name in ("raw", "logs", "2 logs", "4 logs"):
        yield f"log-probabilities: {name}", Variant((name,))
    for name in ("2 logs", "4 logs"):
        yield f"log-probabilities: raw, and {name}", Variant(("raw", name))
    today = ("raw", "raw+")
    yield "guard today", Variant(today, ("probe",))
    for name in ("2 logs", "4 logs"):
        yield f"guard, {name}, raw and raw+", Variant((name, *today), ("probe",))
    yield "log-probabilities with map", Variant(("2 logs",), ("map (last, mean)",))
    for name in VIEWS:
        yield f"guard today, and {name}", Variant(today, ("probe", name))
    yield "guard today, and map in the same regressions", Variant(today, ("probe", "map (last, mean)"), joint=True)


def compare(answers: Answers, new: Answers | None, *, layers: bool) -> None:
    joined = answers if new is None else concatenate([answers, new])
    known = np.isin(joined.dataset, np.unique(answers.dataset))
    table = table_of(joined, np.flatnonzero(known), layers=layers)
    sets = np.unique(answers.dataset)
    print(f"{len(answers)} answers of {len(sets)} sets; {len(joined) - len(answers)} of further sets")
    print("variant | AUROC, mean of sets | AUROC, pooled | Brier | new: AUROC | pooled | Brier")
    print("--- | --- | --- | --- | --- | --- | ---")
    for name, variant in ((name, variant) for name, variant in variants() if layers or not variant.views):
        p = np.full(len(joined), np.nan)
        for each in sets:
            out = np.flatnonzero(joined.dataset == each)
            p[out] = probabilities(table, variant, np.flatnonzero(known & (joined.dataset != each)), out)
        if new is not None:
            p[~known] = probabilities(table, variant, np.flatnonzero(known), np.flatnonzero(~known))
        found = [*cells(p, joined, known), *(cells(p, joined, ~known) if new is not None else [])]
        print(" | ".join([name, *found]), flush=True)


def cells(p: Matrix, answers: Answers, rows: NDArray[np.bool_]) -> list[str]:
    """Return AUROC (mean of sets, and pooled) and Brier score (mean of sets) of some answers."""
    parts = [rows & (answers.dataset == name) for name in np.unique(answers.dataset[rows])]
    both = [part for part in parts if 0 < answers.wrong[part].sum() < part.sum()]
    auroc = np.mean([roc_auc_score(answers.wrong[part], p[part]) for part in both])
    brier = np.mean([brier_score_loss(answers.wrong[part], p[part]) for part in parts])
    return [f"{value:.4f}" for value in (auroc, roc_auc_score(answers.wrong[rows], p[rows]), brier)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--new", type=Path, help="answers to sets that no variant is fitted on")
    parser.add_argument("--without-layers", action="store_true", help="only variants of the log-probabilities")
    asked = parser.parse_args()
    new = Answers.read(asked.new) if asked.new else None
    compare(Answers.read(asked.records), new, layers=not asked.without_layers)


if __name__ == "__main__":
    main()
