"""Which rows of labelled data are fresh evidence about a scorer: rows that it was not fitted on, each question once."""

from __future__ import annotations

from collections.abc import Sequence

from guard.calibration.splits import SPLIT_SHARES
from guard.data.prompts import question_prompt
from guard.data.question_sets import list_rows
from guard.data.questions import Question, Row, split_questions
from guard.data.sets import DataSource
from guard.scoring.scorer import Scorer


def fresh_rows(sources: Sequence[DataSource], scorer: Scorer) -> tuple[list[tuple[str, Row]], list[str]]:
    """Return the rows that a scorer was not fitted on, each question once, and notes about the other rows.

    The test split of a calibration file is fresh, unless early stages were fitted on questions of that file.
    """
    used, early = {each.sha256 for each in scorer.artefact.data}, scorer.artefact.early
    staged = {each.sha256 for each in early.data} if early else set()
    rows, notes = list_rows(sources), []
    for source in sources:
        if source.sha256 in staged:
            rows = [(name, row) for name, row in rows if name != source.name]
            notes.append(f"all questions of {source.name}, on which the scorer's early stages were fitted")
            continue
        if source.sha256 in used:
            held_out = _held_out(source.rows, scorer.artefact.seed)
            before = len(rows)
            rows = [(name, row) for name, row in rows if name != source.name or id(row) in held_out]
            what = f"{before - len(rows)} questions of {source.name}"
            notes.append(f"{what}, which the scorer was fitted or calibrated on")
    distinct = {" ".join(_question(row).casefold().split()): (dataset, row) for dataset, row in reversed(rows)}
    kept = {id(row) for _, row in distinct.values()}
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} repeated questions: repeats are not fresh evidence")
    return [(dataset, row) for dataset, row in rows if id(row) in kept], notes


def _held_out(rows: Sequence[Row], seed: int) -> set[int]:
    """Return the test split of a calibration file."""
    return {id(row) for row in split_questions(rows, seed=seed, shares=SPLIT_SHARES)["test"]}


def _question(row: Row) -> str:
    return question_prompt(row).question if isinstance(row, Question) else row.prompt.question
