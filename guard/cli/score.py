"""``guard score``: files in, JSON Lines out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import (
    ForceOption,
    ModelOption,
    ScorerOption,
    TemplateOption,
    print_json,
    template_options,
)
from guard.errors import GuardError, InputError, ScorerError
from guard.outcome_export import readings

if TYPE_CHECKING:
    from guard.runtime.guard import Guard
    from guard.scores import Score

_WANTED = 'Give {"prompt": "...", "response": "..."} on each line.'


@loads_a_model()
def score(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines; - reads standard input.")],
    model: ModelOption = "smollm2",
    scorer: ScorerOption = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    force: ForceOption = False,
    template_option: TemplateOption = None,
) -> None:
    """Score answers: one JSON object per line in, one per line out.

    A row has "prompt" (a text or chat messages) and, for an existing answer, "response"; without one the model
    answers. Rows that cannot be scored get an "error", and the exit code is 3.
    """
    from guard.runtime.guard import Guard

    rows = list(_rows(files))
    failed = False
    loaded: dict[str, Any] = {
        "engine": engine,
        "engine_options": engine_options,
        "force_scorer": force,
        "template_options": template_options(template_option),
    }
    with Guard.load(model, scorer=scorer, policy="shadow", **loaded) as guard:
        for row in rows:
            result = _scored(guard, row)
            failed = failed or "error" in result
            print_json(result)
    raise typer.Exit(3 if failed else 0)


def _scored(guard: Guard, row: dict[str, Any]) -> dict[str, Any]:
    if "prompt" not in row:
        return row
    try:
        answer, score, finish_reason = _answer_and_score(guard, row["prompt"], row.get("response"))
    except GuardError as error:
        return {"id": row["id"], "error": str(error)}
    return {
        "id": row["id"],
        "answer": answer,
        "p_wrong": score.p_wrong,
        "scores": readings(score.scores),
        "calibrated": score.calibrated,
        "finish_reason": finish_reason,
    }


def _answer_and_score(guard: Guard, prompt: Any, response: str | None) -> tuple[str | None, Score, str | None]:
    if response is not None:
        return response, guard.score(prompt, response), None
    attempt = guard.ask(prompt).attempts[0]
    if attempt.score is None:
        raise ScorerError("The answer could not be scored", why=attempt.error or "")
    return attempt.answer, attempt.score, attempt.finish_reason


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for number, line in _lines(file):
            yield _row(line, f"{file}:{number}")


def _lines(file: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield numbers and contents of the lines of a file or of standard input."""
    from guard.files.json_lines import check_json_lines, read_lines, split_lines

    if str(file) == "-":
        return split_lines(sys.stdin.buffer)
    check_json_lines(file)
    return read_lines(file)


def _row(line: bytes | None, where: str) -> dict[str, Any]:
    """Return a row to score, or one with "error" if it cannot be scored."""
    from guard.data.questions import read_object

    try:
        row = read_object(line)
    except InputError as error:
        return {"id": where, "error": str(error)}
    if "prompt" not in row and "question" in row:
        row["prompt"] = row["question"]
    row = {"id": where, **row}
    if not isinstance(row.get("prompt"), str | list):
        return {"id": row["id"], "error": f"{where} has no prompt. {_WANTED}"}
    if not isinstance(row.get("response"), str | None):
        return {"id": row["id"], "error": f"{where} has a response that is not a text. {_WANTED}"}
    return row
