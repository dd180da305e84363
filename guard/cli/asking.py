"""What commands that ask labelled questions share: options, reading data, the progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.output import console
from guard.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from guard.questions import BadRow, Row

DataFiles = Annotated[list[Path], typer.Option("--data", "-d", help="JSON Lines (.gz too); give it once a file.")]
GraderName = Annotated[
    str | None, typer.Option("--grader", help="text, number, choice, regex or module:function; by default by the row.")
]
OnBad = Annotated[str, typer.Option("--on-bad", help="What bad rows do: stop or skip.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many rows of each file, drawn by seed.")]


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Raise where an option's value is not one of those that there are."""
    if value not in known:
        raise InputError(f"There is no {option} {value}", fix=did_you_mean(value, known))


def check_writable(out: Path, what: str) -> None:
    """Better said now than after an hour of questions."""
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"Cannot write the {what} to '{out}'", fix="Give a file in a folder that exists")


def read_data(
    files: Sequence[Path], *, on_bad: str, limit: int | None, seed: int
) -> tuple[list[tuple[str, Row]], list[tuple[Path, BadRow]]]:
    """The rows of all files, each with the name of its data set, and the lines that cannot be used.

    Raises:
        InputError: a file cannot be read, has bad rows that are not to be skipped, or the name of another.
    """
    from guard.questions import read_rows

    check_choice("--on-bad", on_bad, ("stop", "skip"))
    rows: list[tuple[str, Row]] = []
    bad: list[tuple[Path, BadRow]] = []
    names = [dataset_name(file) for file in files]
    for name, file in zip(names, files, strict=True):
        if names.count(name) > 1:
            raise InputError(f"Two data files are called '{name}'", fix="Rename one: answers are kept by file name")
        result = read_rows(file, on_bad=on_bad, limit=limit, seed=seed)  # type: ignore[arg-type]
        rows += [(name, row) for row in result.rows]
        bad += [(file, problem) for problem in result.bad]
    return rows, bad


def dataset_name(file: Path) -> str:
    """What the rows of a file are called."""
    return file.name.removesuffix(".gz").removesuffix(".jsonl")


def file_sha256(file: Path) -> str:
    """Of the file as it is, compressed or not."""
    from hashlib import sha256

    return sha256(file.read_bytes()).hexdigest()


def under_progress(asked: Iterable[object], *, total: int, done: int) -> None:
    """Work through an iterator of questions under a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task("asking", total=total, completed=done)
        for _ in asked:
            progress.advance(task)
