"""Is it better to trust the layers less where an input is out of distribution?

    python benchmarks/back_off.py records.parquet [--new other.parquet]

guard's own score, that of the log-probabilities and the out-of-distribution detector are fitted on all sets but one. On
the set that was left out, the log-odds of the two scores are mixed: the share of the log-probabilities rises with the
ood_score, from 0 at a start to a most at 1. Prints AUROC and Brier score for each start and most, and how far out each
set is. With ``--new``, the same on sets that nothing is fitted on.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from signature_views import Matrix, Variant, cells, probabilities, table_of

from guard.data.answers import Answers, concatenate
from guard.scoring.ood import fit_ood_detector

GUARD, OUTPUT = Variant(("raw", "raw+"), ("probe",)), Variant(("2 logs",))
STARTS, MOSTS = (0.0, 0.5, 0.9, 0.99), (0.25, 0.5, 1.0)


def ood_scores(answers: Answers, learn: NDArray[np.intp], out: NDArray[np.intp]) -> Matrix:
    """Return the ood_score of some answers, by a detector of others."""
    order = np.random.default_rng(0).permutation(learn)
    cut = len(order) * 3 // 4
    signals = [[answers.signals(at) for at in part] for part in (order[:cut], order[cut:])]
    detector = fit_ood_detector(*signals)
    return np.array([detector.ood_score(answers.signals(at)) for at in out])


def mixed(own: Matrix, other: Matrix, ood: Matrix, *, start: float, most: float) -> Matrix:
    """Return probabilities whose log-odds are mixed by the ood_score."""
    share = most * np.clip((ood - start) / (1 - start), 0, 1)
    return np.asarray(expit((1 - share) * logit(own) + share * logit(other)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--new", type=Path)
    asked = parser.parse_args()
    answers = Answers.read(asked.records)
    joined = concatenate([answers, *([Answers.read(asked.new)] if asked.new else [])])
    known = np.isin(joined.dataset, np.unique(answers.dataset))
    table = table_of(joined, np.flatnonzero(known))
    own, other, ood = (np.full(len(joined), np.nan) for _ in range(3))
    for name in np.unique(joined.dataset):
        out = np.flatnonzero(joined.dataset == name)
        learn = np.flatnonzero(known & (joined.dataset != name))
        own[out], other[out] = (probabilities(table, variant, learn, out) for variant in (GUARD, OUTPUT))
        ood[out] = ood_scores(joined, learn, out)
        print(f"{name}: ood_score mean {ood[out].mean():.2f}, above .99 {(ood[out] > 0.99).mean():.0%}", flush=True)
    for label, rows in (("left out", known), ("new", ~known)):
        if not rows.any():
            continue
        print(f"\n{label} | AUROC, mean of sets | pooled | Brier\n--- | --- | --- | ---")
        print(" | ".join(["guard", *cells(own, joined, rows)]))
        print(" | ".join(["log-probabilities", *cells(other, joined, rows)]))
        for start, most in product(STARTS, MOSTS):
            p = mixed(own, other, ood, start=start, most=most)
            print(" | ".join([f"from {start:g}, at most {most:g}", *cells(p, joined, rows)]))


if __name__ == "__main__":
    main()
