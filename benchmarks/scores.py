"""Scores of recorded answers, each by a fit that did not see its question: what `risk_guarantee.py` draws from.

    python benchmarks/scores.py records.parquet scores.jsonl.gz
    python benchmarks/scores.py records.parquet scores.jsonl.gz --sets countries sciq
    python benchmarks/scores.py records.parquet scores.jsonl.gz --shipped

The score is guard's own, fitted on four fifths of the questions of all sets (or of some) and applied to
the rest, five times. With --shipped it is that of the shipped scorer, on those of the answers that it was not fitted
on. One JSON object a line: {"p_wrong": 0.31, "wrong": true}; no question, no answer.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from certify_records import unseen_answers
from numpy.typing import NDArray

from guard.data.answers import Answers, concatenate
from guard.evaluation.methods import GuardMethod
from guard.evaluation.protocol import assign_folds
from guard.scoring.scorer import load_scorer, shipped_scorer

FOLDS = 5


def out_of_fold(table: Answers, *, seed: int) -> NDArray[np.float64]:
    """Probability of being wrong of each answer, shape (n,)."""
    fold = assign_folds(table.group, table.wrong, folds=FOLDS, seed=seed)
    scores = np.empty(len(table))
    for number in range(FOLDS):
        out = fold == number
        fitted = GuardMethod().fit(table.take(np.flatnonzero(~out)), seed=seed)
        scores[out] = fitted.p_wrong(table.take(np.flatnonzero(out)))
    return scores


def main() -> None:
    """Read, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="+", help="of these data sets only")
    parser.add_argument("--shipped", action="store_true", help="score with the shipped scorer what it has not seen")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    table = Answers.read(asked.records)
    if asked.sets:
        table = concatenate([table.take(np.flatnonzero(np.isin(table.dataset, asked.sets)))])
    if asked.shipped:
        by_name, wrong = unseen_answers(table, load_scorer(shipped_scorer()))
        scores = by_name["guard"]
    else:
        scores, wrong = out_of_fold(table, seed=asked.seed), table.wrong
    rows = zip(scores.tolist(), wrong.tolist(), strict=True)
    lines = [json.dumps({"p_wrong": round(p_wrong, 7), "wrong": wrong}) for p_wrong, wrong in rows]
    asked.out.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))
    print(f"{len(lines)} answers, {wrong.mean():.0%} wrong")


if __name__ == "__main__":
    main()
