"""Is it better to trust the layers less where an input is out of distribution?

    python benchmarks/back_off.py records.parquet [--new other.parquet] [--unlike unlike.parquet]

guard's own score, that of the log-probabilities and the out-of-distribution detector are fitted on all sets but one. On
the set that was left out, the log-odds of the two scores are mixed: the share of the log-probabilities rises with the
ood_score, from 0 at a start to a most at 1. Prints AUROC and Brier score for each start and most, and how far out each
set is. With ``--new``, the same on sets that nothing is fitted on. With ``--unlike``, the mean p_wrong of answers to
inputs that are unlike questions (recorded from the sets that `unlike_inputs.py` writes), and how many are accepted.
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
#: Below which an answer to an unlike input counts as accepted: the threshold of the policy ``permissive``.
ACCEPT = 0.6
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


def below(own: Matrix, other: Matrix, ood: Matrix, names: NDArray[np.str_]) -> None:
    """Print for each kind of unlike inputs the mean p_wrong and how many are accepted, without and with mixtures."""
    columns = {"guard": own, "log-probabilities": other}
    mixtures = ((0.99, 0.5), (0.9, 1.0), (0.0, 1.0))
    columns |= {f"from {s:g}, at most {m:g}": mixed(own, other, ood, start=s, most=m) for s, m in mixtures}
    print("\nunlike | above .99 | " + " | ".join(columns) + "\n--- | ---" + " | ---" * len(columns))
    for name in np.unique(names):
        rows = names == name
        cells = [f"{p[rows].mean():.3f}, {(p[rows] < ACCEPT).sum()} of {rows.sum()}" for p in columns.values()]
        print(" | ".join([name, f"{(ood[rows] > 0.99).mean():.0%}", *cells]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--new", type=Path, help="answers to sets that nothing is fitted on")
    parser.add_argument("--unlike", type=Path, help="answers to inputs that are unlike questions")
    asked = parser.parse_args()
    tables = [Answers.read(path) for path in (asked.records, asked.new, asked.unlike) if path]
    joined, names = concatenate(tables), [np.unique(table.dataset) for table in tables]
    known = np.isin(joined.dataset, names[0])
    unlike = np.isin(joined.dataset, names[-1] if asked.unlike else [])
    table = table_of(joined, np.flatnonzero(known))
    own, other, ood = (np.full(len(joined), np.nan) for _ in range(3))
    for out in [joined.dataset == name for name in names[0]] + [~known] * (len(tables) > 1):
        rows, learn = np.flatnonzero(out), np.flatnonzero(known & ~out)
        own[rows], other[rows] = (probabilities(table, variant, learn, rows) for variant in (GUARD, OUTPUT))
        ood[rows] = ood_scores(joined, learn, rows)
    for name in np.unique(joined.dataset):
        far = ood[joined.dataset == name]
        print(f"{name}: ood_score mean {far.mean():.2f}, above .99 {(far > 0.99).mean():.0%}")
    for label, chosen in (("left out", known), ("new", ~known & ~unlike)):
        if not chosen.any():
            continue
        print(f"\n{label} | AUROC, mean of sets | pooled | Brier\n--- | --- | --- | ---")
        print(" | ".join(["guard", *cells(own, joined, chosen)]))
        print(" | ".join(["log-probabilities", *cells(other, joined, chosen)]))
        for start, most in product(STARTS, MOSTS):
            p = mixed(own, other, ood, start=start, most=most)
            print(" | ".join([f"from {start:g}, at most {most:g}", *cells(p, joined, chosen)]))
    if unlike.any():
        below(own[unlike], other[unlike], ood[unlike], joined.dataset[unlike])


if __name__ == "__main__":
    main()
