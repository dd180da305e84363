"""Fit ILIS to recorded answers, and add it to a scorer whose other scores stay as they are, bit for bit.

    python benchmarks/add_ilis.py SCORER.json JOURNAL --data QUESTIONS.jsonl.gz ... --out SCORER.json

For a scorer that was fitted before scorers gave three scores, and whose answers are gone. The journal is one of
`guard record` or `guard calibrate` on the same model, with the same data files, so that the questions fall into the
same splits: ILIS is fitted on answers of the fit split and measured on the test split. The scorer's settings say on how
many answers it was fitted.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from guard.calibration.fitting import Examples, fit_model
from guard.calibration.scorer_fit import Labelled, split_labelled
from guard.data.graders import choose_grader
from guard.data.question_sets import list_rows, read_sets
from guard.data.recording import Journal, Run
from guard.records import ModelInfo
from guard.scoring.metrics import metrics_of
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.signature import feature_vector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--tau", type=float, action="append", help="temperatures of the journal; by default 1")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scorer = load_scorer(options.scorer)
    splits = _splits(scorer, options.journal, options.data, tuple(options.tau or (1.0,)))
    with_ilis(scorer, splits).save(options.out)


def with_ilis(scorer: Scorer, splits: dict[str, list[Labelled]]) -> Scorer:
    """Return the scorer with an ILIS that is fitted to the split ``fit`` and measured on ``test``."""
    artefact, schema = scorer.artefact, scorer.artefact.feature_schema
    parts = {name: _examples(each, scorer) for name, each in splits.items()}
    fitted = fit_model(parts["fit"], schema, score="ilis", seed=artefact.seed)
    names = ("answers_to_fit", "answers_to_test", "added")
    facts = dict(zip(names, (len(parts["fit"]), len(parts["test"]), datetime.now(UTC).date().isoformat()), strict=True))
    added = artefact.model_copy(
        update={
            "scores": {**artefact.scores, "ilis": fitted.model},
            "settings": {**artefact.settings, "ilis": {**fitted.settings, **facts}},
        }
    )
    p_wrong = [Scorer(added).score(each.record.signals).scores["ilis"].p_wrong for each in splits["test"]]
    measured = asdict(metrics_of(np.array(p_wrong), parts["test"].wrong))
    print({name: round(value, 3) for name, value in measured.items()}, facts)
    return Scorer(added.model_copy(update={"metrics": {**added.metrics, "ilis": measured}}))


def _examples(labelled: list[Labelled], scorer: Scorer) -> Examples:
    schema = scorer.artefact.feature_schema
    return Examples(
        x=np.array([feature_vector(each.record.signals, schema) for each in labelled], np.float32),
        wrong=np.array([each.wrong for each in labelled], np.bool_),
        dataset=np.array([each.record.dataset for each in labelled], np.str_),
    )


def _splits(scorer: Scorer, journal: Path, data: list[Path], tau: tuple[float, ...]) -> dict[str, list[Labelled]]:
    artefact, binding = scorer.artefact, scorer.artefact.binding
    known = {name: getattr(binding, name) for name in type(binding).model_fields if name != "capture_point"}
    run = Run(
        model=ModelInfo(name="", context_tokens=0, **known),
        capture_point=binding.capture_point,
        system=artefact.prompting.system,
        max_tokens=artefact.prompting.max_tokens,
        temperatures=tau,
    )
    rows = list_rows(read_sets(data, seed=artefact.seed))
    grade, _ = choose_grader(None)
    with Journal(journal, run) as answers:
        return split_labelled(rows, answers, grade=grade, seed=artefact.seed)


if __name__ == "__main__":
    main()
