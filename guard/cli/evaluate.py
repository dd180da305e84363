"""``guard evaluate``: recorded answers in, a report of methods side by side out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.output import JsonOption, console, print_json
from guard.cli.progress import ProgressBars
from guard.cli.terminal import shown

if TYPE_CHECKING:
    from rich.table import Table

    from guard.evaluation.result import EvaluationResult, ModelResult, SettingResult


def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML report to write.")],
    records: Annotated[list[Path] | None, typer.Argument(help="Files written by guard record, one per model.")] = None,
    result: Annotated[Path | None, typer.Option(help="JSON file for the figures; by default OUT with .json.")] = None,
    shift: Annotated[
        list[Path] | None,
        typer.Option(help="Records of the first model under another precision or engine; repeatable."),
    ] = None,
    new: Annotated[
        Path | None, typer.Option(help="Records of the first model on further data sets, for testing only.")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="leave-one-dataset-out, within-dataset cross-validation, pairwise transfer, held-out datasets, "
            "shift or samples; repeatable, by default all."
        ),
    ] = None,
    parts: Annotated[bool, typer.Option(help="Also fit guard's own score with each part left out.")] = True,
    per_set: Annotated[int | None, typer.Option(min=10, help="Largest number of answers of each data set.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Number of bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of folds, methods and resamples.")] = 0,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "How well does it know when it is wrong?",
    notes: Annotated[Path | None, typer.Option(help="JSON file {title: text} with notes on what did not work.")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option("--from", help="JSON results of an earlier evaluation, in place of records; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare guard's score with other methods on recorded answers: within data sets, across them, under shifts."""
    from guard.evaluation.procedure import evaluate as run

    with ProgressBars() as progress:
        found = run(
            records or (),
            out=out,
            result=result,
            shift=shift or (),
            new=new,
            protocol=protocol or (),
            parts=parts,
            per_set=per_set,
            draws=draws,
            seed=seed,
            title=title,
            notes=notes,
            results=again or (),
            progress=progress,
        )
    if as_json:
        print_json({"report": str(out), "verdicts": _verdicts(found)})
    else:
        _print(found, out)


def _verdicts(found: EvaluationResult) -> list[dict[str, object]]:
    return [
        {
            "model": result.model.name,
            "claim": verdict.claim.text,
            "against": verdict.against,
            "gain": verdict.estimate.value,
            "low": verdict.estimate.low,
            "high": verdict.estimate.high,
            "outcome": verdict.outcome,
        }
        for result in found.models
        for verdict in result.verdicts
    ]


def _print(found: EvaluationResult, out: Path) -> None:
    screen = console()
    for result in found.models:
        for setting in result.settings:
            for table in _tables(result, setting):
                screen.print(table)
    for line in _verdicts(found):
        colour = {"reached": "green", "not reached": "red"}.get(str(line["outcome"]), "yellow")
        screen.print(shown(f"{line['outcome']:>13}", colour), shown(f" {line['model']}: {line['claim']}"))
    screen.print(f"Report written to {out}", markup=False)


def _tables(result: ModelResult, setting: SettingResult) -> Iterator[Table]:
    """Return tables of means over the same sets each; see `guard.evaluation.same_sets`."""
    from rich.table import Table

    from guard.evaluation.same_sets import same_sets

    measures = list(dict.fromkeys(score.measure for score in setting.scores))[:5]
    for group in same_sets(result, setting, measures):
        title = f"{result.model.name}: {setting.setting} (means over {len(group.cells)} of {setting.cells} tests)"
        table = Table("method", title=title, title_justify="left", min_width=len(title) + 4)
        for measure in measures:
            table.add_column(measure, justify="right")
        for name in group.methods:
            means = (group.mean(setting, name, measure) for measure in measures)
            table.add_row(name, *("" if mean is None else f"{mean:.3f}" for mean in means))
        yield table
