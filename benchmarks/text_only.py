"""What do the texts alone tell, beside guard's score and other methods?

    python benchmarks/text_only.py records.parquet [--per-set 80] [--out text-only.json]

guard's own score, log-probabilities, and the controls of `guard evaluate`: logistic regressions on the question's and
the answer's text, on the question's category, on the answer's length; and two probabilities that are not fitted. Each
is fitted and tested within each set (five folds, never a question in two), and fitted on all sets but one and tested
on that one. Printed are means over the sets with 95 % intervals, and the gain of guard, by a paired bootstrap.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, versions

from guard.data.answers import Answers
from guard.evaluation.bootstrap import Estimate, bootstrap
from guard.evaluation.evaluate import OWN
from guard.evaluation.measures import AUROC, BRIER
from guard.evaluation.methods import methods_for
from guard.evaluation.predictions import LEAVE_ONE_OUT, WITHIN, Predictions
from guard.evaluation.protocol import leave_one_dataset_out, within_dataset

COMPARED = (
    *(OWN, "log-probabilities", "text only", "question category", "length"),
    *("sequence probability, unfitted", "least token probability, unfitted"),
)


def first_of_each_set(answers: Answers, count: int) -> Answers:
    """Return up to a number of answers of each set."""
    rows = [np.flatnonzero(answers.dataset == name)[:count] for name in np.unique(answers.dataset)]
    return answers.take(np.concatenate(rows))


def measured(found: Sequence[Predictions]) -> dict[str, dict[str, Any]]:
    """Return the figures of each method of one protocol, and the gain of guard over it."""
    result = bootstrap(found, [AUROC, BRIER])
    figures: dict[str, dict[str, Any]] = {}
    for name in result.methods:
        means = {each.name: result.mean(name, each.name) for each in (AUROC, BRIER)}
        gains = {each.name: result.gain(OWN, name, each.name) for each in (AUROC, BRIER)}
        figures[name] = {measure: _rounded(estimate) for measure, (estimate, _) in means.items()}
        figures[name] |= {"sets": means[AUROC.name][1]}
        figures[name] |= {f"gain in {measure}": _rounded(gain.estimate) for measure, gain in gains.items()}
    return figures


def _rounded(estimate: Estimate) -> list[float | None]:
    return [None if each is None else round(each, 4) for each in (estimate.value, estimate.low, estimate.high)]


def show(protocol: str, figures: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    columns = ("AUROC", "Brier", "gain in AUROC", "gain in Brier")
    print(f"\n{protocol}\n| method | sets | {' | '.join(columns)} |\n| --- {'| --- ' * (len(columns) + 1)}|")
    for name, each in figures.items():
        cells = ["-" if each[key][0] is None else "{:.3f} ({:.3f} to {:.3f})".format(*each[key]) for key in columns]
        print(f"| {name} | {each['sets']} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Fit, test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--per-set", type=int, default=150, help="answers of each set")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    answers = first_of_each_set(Answers.read(asked.records), asked.per_set)
    methods = [each for each in methods_for("all") if each.name in COMPARED]
    print(f"{len(answers)} answers, {answers.wrong.mean():.0%} wrong")
    found = {}
    for protocol, run in ((WITHIN, within_dataset), (LEAVE_ONE_OUT, leave_one_dataset_out)):
        found[protocol] = measured(run(answers, methods, seed=0))
        show(protocol, found[protocol])
    if asked.out:
        about = {"machine": machine(), "versions": versions(), "answers": len(answers)}
        about |= {"wrong": round(float(answers.wrong.mean()), 4)}
        asked.out.write_text(json.dumps({**about, "protocols": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
