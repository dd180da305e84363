"""``guard score``: files in, JSON Lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import Dtype, Engine, Force, ModelName, ScorerFile, TemplateOptions, print_json, template_options
from guard.errors import GuardError, InputError, ScorerError

if TYPE_CHECKING:
    from guard.guard import Guard
    from guard.records import Score


def score(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines; - reads standard input.")],
    model: ModelName = "smollm2",
    scorer: ScorerFile = None,
    engine: Engine = None,
    dtype: Dtype = None,
    force: Force = False,
    template_option: TemplateOptions = None,
) -> None:
    """Score answers, one JSON object a line in, one a line out.

    A row has "prompt" (a text or chat messages) and, if the answer exists already, "response"; without
    one the model answers. Rows that cannot be scored come out with "error"; then the exit code is 3.
    """
    from guard.guard import Guard

    rows = list(_rows(files))
    failed = False
    loaded: dict[str, Any] = {
        "engine": engine,
        "engine_options": {"dtype": dtype},
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
    try:
        answer, score = _answer_and_score(guard, row["prompt"], row.get("response"))
    except GuardError as error:
        return {"id": row["id"], "error": str(error)}
    return {
        "id": row["id"],
        "answer": answer,
        "p_wrong": score.p_wrong,
        "baseline_p_wrong": score.baseline_p_wrong,
        "calibrated": score.calibrated,
    }


def _answer_and_score(guard: Guard, prompt: Any, response: str | None) -> tuple[str | None, Score]:
    if response is not None:
        return response, guard.score(prompt, response)
    attempt = guard.ask(prompt).attempts[0]
    if attempt.score is None:
        raise ScorerError("The answer could not be scored", why=attempt.error or "")
    return attempt.answer, attempt.score


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for number, line in enumerate(_text(file).splitlines(), start=1):
            if line.strip():
                yield _row(line, f"{file}:{number}")


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read '{file}'", why=str(error)) from error


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON", why=str(error)) from error
    if isinstance(row, dict) and "prompt" not in row and "question" in row:
        row["prompt"] = row["question"]
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list):
        raise InputError(f"{where} has no prompt", fix='Give {"prompt": "...", "response": "..."} on each line')
    if not isinstance(row.get("response"), str | None):
        raise InputError(f"{where} has a response that is not a text")
    return {"id": where, **row}
