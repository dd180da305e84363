"""What could be certified for the embedded model, by each score of the shipped scorer, on recorded answers.

    guard record --data FILE ... --out records.parquet
    python benchmarks/certify_records.py records.parquet

Of the sets that the scorer was fitted on, only the test split counts; other sets count whole. ``guard certify`` does
the same with the whole procedure of a policy, and asks the questions itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.calibration.recorded import split_answers
from guard.certification.fixed_sequence import Certified, Trials, find_threshold
from guard.data.answers import Answers
from guard.records import Doubles
from guard.scores import ScoreName
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer

RISKS, CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 0.9


def unseen_answers(answers: Answers, scorer: Scorer) -> tuple[dict[ScoreName, Doubles], NDArray[np.bool_]]:
    """Return p_wrong by each score, and labels, each shape (n,), of the answers that a scorer was not fitted on."""
    seen = np.isin(answers.dataset, [each.name for each in scorer.artefact.data])
    tested = split_answers(answers.take(np.flatnonzero(seen)), seed=scorer.artefact.seed)["test"]
    others = answers.take(np.flatnonzero(~seen))
    signals = [*(each.record.signals for each in tested), *(others.signals(at) for at in range(len(others)))]
    wrong = np.array([*(each.wrong for each in tested), *others.wrong], np.bool_)
    scores = [scorer.score(each).scores for each in signals]
    return {name: np.array([each[name].p_wrong for each in scores]) for name in scorer.gives}, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    answers, scorer = Answers.read(parser.parse_args().records), load_scorer(shipped_scorer())
    scores, wrong = unseen_answers(answers, scorer)
    print(f"{len(wrong)} answers, {wrong.mean():.0%} wrong; confidence {CONFIDENCE:.0%}")
    for name, p_wrong in scores.items():
        for risk in RISKS:
            found = find_threshold(Trials.from_scores(p_wrong, wrong), risk=risk, confidence=CONFIDENCE)
            said = f"accepts {found.accepted} of {found.n}" if isinstance(found, Certified) else "not certifiable"
            print(f"{name}: at most {risk:.0%} wrong: {said}")


if __name__ == "__main__":
    main()
