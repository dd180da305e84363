"""Scores of held-out answers by a new scorer, kept so that a later run need not compute them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.data.progress import Progress, ProgressCallback
from guard.data.prompts import with_default_options
from guard.data.scored_rows import ScoreJournal
from guard.errors import GuardError
from guard.recalibration.dividing import JudgedAnswer
from guard.runtime.guard import Guard


def score_answers(
    answers: Sequence[JudgedAnswer],
    *,
    scorer: Path,
    journal: Path,
    model: str | Path,
    engine: str | None,
    engine_options: Mapping[str, Any] | None,
    progress: ProgressCallback,
) -> dict[str, dict[str, Any]]:
    """Return by its id each answer's ``scores`` (by name) and ``ood_score``, or ``error``.

    Raises:
        InputError: the journal belongs to another scorer.
        GuardError: as for `guard.runtime.guard.Guard.load`.
    """
    options: dict[str, Any] = {"engine": engine, "engine_options": engine_options}
    with (
        Guard.load(model, scorer=scorer, policy="shadow", all_scores=True, **options) as guard,
        ScoreJournal(journal, guard.fingerprint(guard.policy)) as kept,
    ):
        known = kept.answered()
        for done, answer in enumerate(answers):
            progress(Progress("comparing", done, len(answers)))
            if answer.row.id not in known:
                kept.keep(answer.row.id, _score(guard, answer), _said(answer))
        return {answer.row.id: kept.result(answer.row.id) for answer in answers}


def _score(guard: Guard, answer: JudgedAnswer) -> dict[str, Any]:
    try:
        score = guard.score(with_default_options(answer.row.prompt, guard.template_options), answer.row.response)
    except GuardError as error:
        return {"error": str(error)}
    scores = {name: each.p_wrong for name, each in score.scores.items()}
    return {"scores": scores, "ood_score": score.ood_score}


def _said(answer: JudgedAnswer) -> str:
    return json.dumps([answer.content["prompt"], answer.row.response])
