"""ILIS alone under each option that its paper leaves open, beside the evaluation's linear probe.

    guard record --data FILE ... --tau 0.25 --tau 1 --tau 4 --no-lens --out records.parquet
    python benchmarks/ilis_options.py records.parquet [--out options.json]

Options: the temperature of the softmax, the token whose map is read (the last one, or the mean over all), and the
learner: LightGBM as in guard's ``ilis`` score, LightGBM as it comes, or a logistic regression of the logarithms. Each
is fitted on all sets but one and tested on that one; nothing is calibrated or chosen. A choice by this table is made
in hindsight: it flatters the best row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier
from measuring import machine, versions
from numpy.typing import NDArray
from signature_views import LAST, MEAN, Matrix, cells, signature
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from guard.calibration.fitting import TREE_SETTINGS
from guard.data.answers import Answers
from guard.evaluation.methods import LinearProbeMethod
from guard.records import Doubles

AnswerRows = NDArray[np.intp]
FitAndScore = Callable[[AnswerRows, AnswerRows], Doubles]

TOKENS = {"last": LAST, "mean": MEAN}
#: Number of trees with guard's settings; guard chooses among 50 to 400 on held-out answers.
ROUNDS = 200
#: Inverse of the ridge penalty of the regression of logarithms.
RIDGE = 1e-2


def learners() -> dict[str, Callable[[], Any]]:
    """Return what makes each learner. Trees do not care whether they read a value or its logarithm."""
    settings: dict[str, Any] = {name: value for name, value in TREE_SETTINGS.items() if name != "num_threads"}
    quiet: dict[str, Any] = {"verbosity": -1, "n_jobs": 1, "random_state": 0}
    return {
        "LightGBM, guard's settings": lambda: LGBMClassifier(n_estimators=ROUNDS, **settings, **quiet),
        "LightGBM as it comes": lambda: LGBMClassifier(**quiet),
        "regression of logarithms": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE, max_iter=2000)),
    }


def variants(answers: Answers) -> Iterator[tuple[dict[str, object], FitAndScore]]:
    """Yield options, and what fits to some answers and scores others under them."""
    for at, tau in enumerate(answers.temperatures):
        for token, place in TOKENS.items():
            columns = signature(answers, tokens=(place,), taus=slice(at, at + 1)).astype(np.float32)
            for learner, make in learners().items():
                yield {"tau": tau, "token": token, "learner": learner}, _by_columns(answers, columns, make)
    yield {"method": "linear probe"}, partial(_by_probe, answers)


def _by_columns(answers: Answers, columns: Matrix, make: Callable[[], Any]) -> FitAndScore:
    return lambda learn, out: make().fit(columns[learn], answers.wrong[learn]).predict_proba(columns[out])[:, 1]


def _by_probe(answers: Answers, learn: AnswerRows, out: AnswerRows) -> Doubles:
    return LinearProbeMethod().fit(answers.take(learn), seed=0).p_wrong(answers.take(out))


def left_out(answers: Answers, fit_and_score: FitAndScore) -> Doubles:
    """Return p_wrong of each answer by a fit to the other sets."""
    p = np.full(len(answers), np.nan)
    for name in np.unique(answers.dataset):
        out = answers.dataset == name
        p[out] = fit_and_score(np.flatnonzero(~out), np.flatnonzero(out))
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    answers, found = Answers.read(asked.records), []
    print(f"{len(answers)} answers of {len(np.unique(answers.dataset))} sets: AUROC, mean of sets; pooled; Brier")
    for options, fit_and_score in variants(answers):
        measured = cells(left_out(answers, fit_and_score), answers, np.ones(len(answers), np.bool_))
        found.append({**options, **dict(zip(("auroc", "pooled", "brier"), map(float, measured), strict=True))})
        print(", ".join(f"{name} {value}" for name, value in options.items()), *measured, flush=True)
    if asked.out:
        about = {"answers": len(answers), "machine": machine(), "versions": versions()}
        asked.out.write_text(json.dumps({**about, "found": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
