"""On which single sets does another method beat guard's score, and is the difference significant?

    python benchmarks/single_sets.py records.parquet
    python benchmarks/single_sets.py records.parquet --set opentdb --method "linear probe"

Fits and tests every method within each set, in folds, and prints guard's gain in AUROC over the best of the
others, picked in hindsight, with its paired 95 % interval. The report has the interval of the worst set only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from guard.data.answers import Answers
from guard.evaluation.bootstrap import bootstrap
from guard.evaluation.evaluate import OWN
from guard.evaluation.measures import AUROC
from guard.evaluation.methods import methods_for
from guard.evaluation.predictions import Predictions
from guard.evaluation.protocol import within_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--set", action="append", help="of the records; by default all")
    rivals = [each.name for each in methods_for("all") if each.name != OWN]
    parser.add_argument("--method", action="append", choices=rivals, help="besides guard; by default all")
    arguments = parser.parse_args()
    table = Answers.read(arguments.records)
    run = {OWN, *(arguments.method or rivals)}
    methods = [each for each in methods_for("all") if each.name in run]
    for name in arguments.set or sorted(set(table.dataset.tolist())):
        (found,) = within_dataset(table.take(np.flatnonzero(table.dataset == name)), methods, seed=0)
        print(f"{name:20s} {_describe(found)}", flush=True)


def _describe(found: Predictions) -> str:
    if OWN not in found.p_wrong:
        return f"{OWN} was not fitted: {found.missing[OWN]}"
    judged = bootstrap([found], [AUROC], draws=1000, seed=0)
    values = {name: judged.mean(name, AUROC.name)[0].value for name in found.p_wrong}
    best = max(values.keys() - {OWN}, key=lambda name: values[name] or 0.0)
    gain = judged.gain(OWN, best, AUROC.name).estimate
    if gain.value is None:
        return "answers of one kind only"
    return f"{values[OWN]:.3f}  {best} {values[best]:.3f}  {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"


if __name__ == "__main__":
    main()
