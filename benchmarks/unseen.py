"""How a scorer does on question sets that it was not fitted on.

    guard record --data FILE ... --out records.parquet
    python benchmarks/unseen.py records.parquet
    python benchmarks/unseen.py records-of-gemma.parquet --scorer gemma-3-270m-q4_k_m

Scores recorded answers with a scorer of their model, by default the embedded model's, and with the token
log-probabilities alone that were fitted beside it, and prints both for each unseen set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from guard.data.answers import Answers, find_run
from guard.scoring.metrics import Metrics, compute_metrics
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--scorer", default=shipped_scorer(), help="a file, or a name on the shelf")
    asked = parser.parse_args()
    table, scorer = Answers.read(asked.records), load_scorer(asked.scorer)
    run = find_run(table)
    scorer = scorer.for_model(run.model, run.capture_point)
    seen = {data.name for data in scorer.artefact.data}
    means = []
    for name in sorted(set(table.dataset) - seen):
        ours, baseline = _measured(scorer, table.take(np.flatnonzero(table.dataset == name)))
        _print(name, ours, baseline)
        means.append((ours.auroc, baseline.auroc, ours.brier, baseline.brier))
    aurocs, briers = np.split(np.array(means), 2, axis=1)
    aurocs = aurocs[np.isfinite(aurocs).all(axis=1)]  # a set with answers of one kind only has none
    for name, values in (("AUROC", aurocs), ("Brier", briers)):
        ours, baseline = values.mean(axis=0)
        print(f"mean of {len(values)}: {name} {ours:.3f} ({baseline:.3f})")


def _measured(scorer: Scorer, answers: Answers) -> tuple[Metrics, Metrics]:
    scores = [scorer.score(answers.signals(at)) for at in range(len(answers))]
    ours = compute_metrics(np.array([score.p_wrong for score in scores]), answers.wrong)
    return ours, compute_metrics(
        np.array([score.scores["log-probabilities"].p_wrong for score in scores]), answers.wrong
    )


def _print(name: str, ours: Metrics, baseline: Metrics) -> None:
    both = f"AUROC {ours.auroc:.3f} ({baseline.auroc:.3f})  Brier {ours.brier:.3f} ({baseline.brier:.3f})"
    print(f"{name:16s} n {ours.n}  wrong {ours.wrong:.0%}  {both}  ECE {ours.ece:.3f} ({baseline.ece:.3f})")


if __name__ == "__main__":
    main()
