"""On which single sets does another method beat guard's score, and is it beyond chance?

    python benchmarks/single_sets.py records.parquet
    python benchmarks/single_sets.py records.parquet --set opentdb --method "linear probe"

Fits and tests every method within each set, in folds, and prints guard's gain in AUROC over the best of the
others, picked in hindsight, with its paired 95 % interval. The report has the interval of the worst set only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from guard.evaluation.bootstrap import Bootstrap, bootstrap
from guard.evaluation.evaluate import OWN
from guard.evaluation.measures import AUROC
from guard.evaluation.methods import methods_for
from guard.evaluation.predictions import Predictions
from guard.evaluation.protocol import Method, within
from guard.evaluation.table import Answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--set", action="append", help="of the records; by default all")
    parser.add_argument("--method", action="append", help="besides guard; by default all")
    arguments = parser.parse_args()
    table = Answers.read(arguments.records)
    methods = [each for each in methods_for("all") if not arguments.method or each.name in (OWN, *arguments.method)]
    for name in arguments.set or sorted(set(table.dataset.tolist())):
        (found,) = within(table.take(np.flatnonzero(table.dataset == name)), methods, seed=0)
        print(f"{name:20s} {_told(found, methods)}", flush=True)


def _told(found: Predictions, methods: list[Method]) -> str:
    if OWN not in found.p_wrong:
        return f"{OWN} was not fitted: {found.missing[OWN]}"
    judged = bootstrap([found], [AUROC], draws=1000, seed=0)
    others = [each.name for each in methods if each.name in found.p_wrong and each.name != OWN]
    best = max(others, key=lambda name: _value(judged, name))
    gain = judged.gain(OWN, best, AUROC.name).estimate
    interval = f"{gain.low:+.4f} to {gain.high:+.4f}"
    return f"{_value(judged, OWN):.3f}  {best} {_value(judged, best):.3f}  {gain.value:+.4f} ({interval})"


def _value(judged: Bootstrap, method: str) -> float:
    value = judged.mean(method, AUROC.name)[0].value
    return float("-inf") if value is None else value


if __name__ == "__main__":
    main()
