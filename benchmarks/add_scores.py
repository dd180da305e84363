"""Fit some scores of a scorer to recorded answers; its other scores stay as they are, bit for bit.

    python benchmarks/add_scores.py SCORER.json JOURNAL --data QUESTIONS.jsonl.gz ... --out SCORER.json

For a scorer whose answers are gone, and that was fitted before there was such a score, or before it read what it reads
now. The journal is one of `guard record` or `guard calibrate` on the same model, with the same data files, so that the
questions fall into the same splits: scores are fitted on answers of the fit split and measured on the test split. The
scorer's settings say on how many answers each was fitted.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from guard.calibration.fitting import Examples, fit_model
from guard.calibration.scorer_fit import Labelled, split_labelled
from guard.data.graders import choose_grader
from guard.data.question_sets import list_rows, read_sets
from guard.data.recording import Journal, Run
from guard.records import ModelInfo
from guard.scores import SCORE_NAMES, ScoreName
from guard.scoring.metrics import compute_metrics
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.scorer_file import Artefact, Schema
from guard.scoring.signature import GROUPS, FeatureSchema, feature_vector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--score", action="append", choices=SCORE_NAMES[1:], help="by default all but guard's own")
    parser.add_argument("--tau", type=float, action="append", help="temperatures of the journal; by default 1")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scorer = load_scorer(options.scorer)
    splits = _splits(scorer, options.journal, options.data, tuple(options.tau or (1.0,)))
    for name in options.score or SCORE_NAMES[1:]:
        scorer = with_score(scorer, name, splits)
    scorer.save(options.out)


def with_score(scorer: Scorer, score: ScoreName, splits: dict[str, list[Labelled]]) -> Scorer:
    """Return the scorer with a score that is fitted to the split ``fit`` and measured on ``test``."""
    artefact, schema = scorer.artefact, _extended(scorer.artefact.feature_schema)
    parts = {name: _examples(each, schema) for name, each in splits.items()}
    fitted = fit_model(parts["fit"], schema, score=score, seed=artefact.seed)
    names = ("answers_to_fit", "answers_to_test", "added")
    facts = dict(zip(names, (len(parts["fit"]), len(parts["test"]), datetime.now(UTC).date().isoformat()), strict=True))
    models = {name: fitted.model if name == score else artefact.scores.get(name) for name in SCORE_NAMES}
    added = artefact.model_copy(
        update={
            "schema_": Schema.from_schema(schema),
            "feature_names": list(schema.names),
            "scores": {name: each for name, each in models.items() if each},
            "settings": {**artefact.settings, score: {**fitted.settings, **facts}},
        }
    )
    added = Artefact.model_validate(added.model_dump(by_alias=True))  # checked, and without what was derived before
    p_wrong = [Scorer(added).score(each.record.signals).scores[score].p_wrong for each in splits["test"]]
    measured = asdict(compute_metrics(np.array(p_wrong), parts["test"].wrong))
    print(score, {name: round(value, 3) for name, value in measured.items()}, facts)
    return Scorer(added.model_copy(update={"metrics": {**added.metrics, score: measured}}))


def _extended(schema: FeatureSchema) -> FeatureSchema:
    """Return the schema with all groups of features; those that it had stay where they are."""
    extended = replace(schema, groups=GROUPS)
    if extended.names[: schema.size] != schema.names:
        raise SystemExit("The scorer's features would move")
    return extended


def _examples(labelled: list[Labelled], schema: FeatureSchema) -> Examples:
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
