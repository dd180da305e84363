"""How the shipped scorer does on question sets that it was not fitted on.

    python benchmarks/unseen.py --limit 300 --data set1.jsonl.gz --data set2.jsonl.gz

Asks the embedded model, scores each answer with the shipped scorer and with the token log-probabilities
alone that were fitted beside it, and prints both for each set. Can be stopped and resumed (--journal).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from guard.backends import load_engine
from guard.graders import grade
from guard.guard import capture_point_of
from guard.metrics import Metrics, metrics_of
from guard.questions import Question, read_rows
from guard.recording import Journal, Record, Run, record_rows, row_key
from guard.scorer import Scorer, load_scorer, shipped_scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--journal", type=Path, default=Path("unseen.journal"))
    arguments = parser.parse_args()
    with load_engine("smollm2") as engine:
        scorer = load_scorer(shipped_scorer()).for_model(engine.model, capture_point_of(engine))
        asked = scorer.artefact.prompting
        run = Run(engine.model, capture_point_of(engine), asked.system, asked.max_tokens)
        with Journal(arguments.journal, run) as journal:
            for file in arguments.data:
                name = file.name.removesuffix(".gz").removesuffix(".jsonl")
                rows = [(name, row) for row in read_rows(file, limit=arguments.limit, seed=0).rows]
                for _ in record_rows(engine, rows, journal, run=run):
                    pass
                _print(name, *_measured(scorer, rows, journal))


def _measured(scorer: Scorer, rows: list[tuple[str, object]], journal: Journal) -> tuple[Metrics, Metrics]:
    scores, baselines, wrong = [], [], []
    for name, row in rows:
        record = journal.record(row_key(name, row))  # type: ignore[arg-type]
        if isinstance(record, Record) and isinstance(row, Question):
            score = scorer.score(record.signals)
            scores.append(score.p_wrong)
            baselines.append(score.baseline_p_wrong)
            wrong.append(not grade(row, record.answer))
    labels = np.array(wrong)
    return metrics_of(np.array(scores), labels), metrics_of(np.array(baselines, float), labels)


def _print(name: str, ours: Metrics, baseline: Metrics) -> None:
    both = f"AUROC {ours.auroc:.3f} ({baseline.auroc:.3f})  Brier {ours.brier:.3f} ({baseline.brier:.3f})"
    print(f"{name:16s} n {ours.n}  wrong {ours.wrong:.0%}  {both}  ECE {ours.ece:.3f} ({baseline.ece:.3f})")


if __name__ == "__main__":
    main()
