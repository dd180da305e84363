"""``guard score``: files in, JSON Lines out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.cli.data_options import RayCpusOption, RayGpusOption, RayOption, ShardOption
from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import (
    ForceOption,
    ModelOption,
    ScorerOption,
    TemplateOption,
    print_json,
    template_options,
)
from guard.cli.shards import scoring
from guard.errors import InputError


@loads_a_model()
def score(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines files; - reads standard input.")],
    model: ModelOption = "smollm2",
    scorer: ScorerOption = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    force: ForceOption = False,
    template_option: TemplateOption = None,
    journal: Annotated[
        Path | None, typer.Option("--journal", help="Journal to keep results in, so that the run can be resumed.")
    ] = None,
    shard: ShardOption = None,
    ray: RayOption = None,
    ray_cpus: RayCpusOption = 1.0,
    ray_gpus: RayGpusOption = 0.0,
) -> None:
    """Score answers: one JSON object per line in, one per line out.

    A row has "prompt" (a text or chat messages) and, for an existing answer, "response"; without one the model
    answers. Rows that cannot be scored get an "error", and the exit code is 3.
    """
    failed = False
    results = scoring(shards=ray, cpus=ray_cpus, gpus=ray_gpus)(
        list(_rows(files)),
        model=model,
        scorer=scorer,
        engine=engine,
        engine_options=engine_options,
        force_scorer=force,
        template_options=template_options(template_option),
        journal=journal,
        shard=shard,
    )
    for result in results:
        failed = failed or "error" in result
        print_json(result)
    raise typer.Exit(3 if failed else 0)


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
    from guard.data.scored_rows import check_row

    try:
        row = read_object(line)
    except InputError as error:
        return {"id": where, "error": str(error)}
    if "prompt" not in row and "question" in row:
        row["prompt"] = row["question"]
    row.pop("error", None)  # a row may have one, as results have
    return check_row(row, where)
