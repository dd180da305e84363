"""``guard evaluate``: recorded answers in, a report of methods side by side out."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.asking import check_choice, check_writable
from guard.cli.output import AsJson, console, print_json
from guard.cli.progress import Progress
from guard.cli.terminal import shown
from guard.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from guard.data.answers import Answers
    from guard.evaluation.evaluate import Plan
    from guard.evaluation.protocol import Step
    from guard.evaluation.result import EvaluationResult, ModelCard, ModelResult, Note, SettingResult


def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="The report, one HTML file.")],
    records: Annotated[list[Path] | None, typer.Argument(help="What guard record wrote, one file a model.")] = None,
    result: Annotated[Path | None, typer.Option(help="The numbers as JSON; by default OUT with .json.")] = None,
    shift: Annotated[
        list[Path] | None,
        typer.Option(help="Records of the first model under another precision or engine; repeatable."),
    ] = None,
    new: Annotated[
        Path | None, typer.Option(help="Records of the first model on further data sets, to test on and not to fit on.")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="leave-one-dataset-out, within-dataset cross-validation, pairwise transfer, held-out datasets, "
            "shift or samples; repeatable, by default all."
        ),
    ] = None,
    parts: Annotated[bool, typer.Option(help="Fit guard's own score with each part left out.")] = True,
    per_set: Annotated[int | None, typer.Option(min=10, help="At most so many answers of each data set.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, methods and resamples.")] = 0,
    title: Annotated[str, typer.Option(help="Of the report.")] = "How well does it know when it is wrong?",
    notes: Annotated[Path | None, typer.Option(help="What was tried and did not work: JSON, {title: text}.")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Show numbers that were computed before, in place of records; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare guard's score with others on recorded answers: within data sets, across them, under shifts."""
    from guard.evaluation.report import render
    from guard.evaluation.result import EvaluationResult, Provenance

    check_writable(out, "report")
    if bool(records) == bool(again):
        raise InputError("Give records to evaluate, or results with --from", fix="One of the two, not both")
    protocols = _protocols(protocol or [], new, shift or [], records or [], per_set)
    told = _notes(notes)
    if again:
        found = _joined([EvaluationResult.from_json(_text(file)) for file in again], title, told)
    else:
        from guard.evaluation.evaluate import Plan

        plan = Plan(protocols=protocols, parts=parts, draws=draws, seed=seed)
        models = _run(records or [], new, shift or [], plan, per_set)
        command = shlex.join(["guard", *sys.argv[1:]])
        provenance = Provenance.here(commands=[command], seeds={"folds, methods and resamples": seed})
        found = EvaluationResult(title, tuple(models), told, provenance)
    (result or out.with_suffix(".json")).write_text(found.to_json() + "\n", encoding="utf-8")
    out.write_text(render(found), encoding="utf-8")
    if as_json:
        print_json({"report": str(out), "verdicts": _verdicts(found)})
    else:
        _print(found, out)


def _protocols(
    protocol: list[str], new: Path | None, shift: list[Path], records: list[Path], per_set: int | None
) -> tuple[str, ...]:
    """What is to be run; better said now than after an hour that something does not fit."""
    from guard.evaluation.predictions import HELD_OUT, PROTOCOLS, SHIFT

    for name in protocol:
        check_choice("--protocol", name, PROTOCOLS)
    if not records and (protocol or new or shift or per_set):
        options = "--protocol, --new, --shift and --per-set"
        raise InputError(f"{options} are for records, not for results", fix="Leave --from out")
    for name, option, given in ((HELD_OUT, "--new", bool(new)), (SHIFT, "--shift", bool(shift))):
        if protocol and given != (name in protocol):
            what = f"--protocol '{name}' needs {option} RECORDS, and the other way round"
            raise InputError(what, fix="Give both, or neither")
    if protocol and len(records) > 1 and set(protocol) <= {HELD_OUT, SHIFT}:
        why = f"they belong to the first, and there are {len(records)}"
        raise InputError("New sets and shifts are of one model", why=why, fix="Give one file of records")
    return tuple(protocol or PROTOCOLS)


def _joined(results: list[EvaluationResult], title: str, notes: tuple[Note, ...]) -> EvaluationResult:
    """Results of several runs in one report, with the circumstances of the first, the newest date and all commands.

    Protocols that were run apart on the same records become one result.
    """
    models: dict[tuple[ModelCard, str], ModelResult] = {}
    for model in (model for each in results for model in each.models):
        same = model.model, model.records
        models[same] = models[same].joined(model) if same in models else model
    commands = tuple(command for each in results for command in each.provenance.commands)
    created = max(each.provenance.created for each in results)
    return replace(
        results[0],
        title=title,
        models=tuple(models.values()),
        did_not_work=notes or tuple(note for each in results for note in each.did_not_work),
        provenance=replace(results[0].provenance, commands=commands, created=created),
    )


def _run(
    records: list[Path], new: Path | None, shifts: list[Path], plan: Plan, per_set: int | None
) -> list[ModelResult]:
    from guard.data.answers import Answers, concatenate
    from guard.evaluation.evaluate import evaluate as run
    from guard.evaluation.protocol import capped

    def read(file: Path) -> Answers:
        table = Answers.read(file)
        # A table of its own: what is computed of all answers is then computed of these only.
        return table if per_set is None else concatenate([capped(table, per_set=per_set, seed=plan.seed)])

    models = []
    for number, file in enumerate(records):
        table = read(file)
        fresh = None if number or new is None else _of_this_model(table, read(new))
        shifted = {} if number else _named_shifts(table, [read(other) for other in shifts])
        with Progress() as progress:
            models.append(run(table, plan, new=fresh, shifted=shifted, progress=partial(_tell, progress, table)))
    return models


def _tell(progress: Progress, table: Answers, step: Step) -> None:
    progress(f"{table.metadata['model.name']}: {step.setting}", step.done + 1, step.total)


def _of_this_model(table: Answers, new: Answers) -> Answers:
    from guard.evaluation.evaluate import model_card

    here, there = model_card(table), model_card(new)
    if here != there:
        was, now = (f"{each.name} {each.quantization} on {each.engine}" for each in (here, there))
        raise InputError(
            "The records of --new are of another model, precision or engine",
            why=f"{now}, not {was}" if was != now else f"both are {was}, with other weights",
            fix="Record the new sets with the same model; --shift is for another precision or engine",
        )
    return new


def _named_shifts(table: Answers, others: list[Answers]) -> dict[str, Answers]:
    for other in others:
        shape, theirs = ((each.metadata["model.layers"], each.metadata["model.width"]) for each in (table, other))
        if shape != theirs:
            raise InputError(
                f"The records of --shift are of another model, {other.metadata['model.name']}",
                why=f"it has {theirs[0]} layers of {theirs[1]}, not {shape[0]} of {shape[1]}",
                fix="Give records of the same model under another precision or engine",
            )
    named = {_shift_name(table, other): other for other in others}
    if len(named) < len(others):
        raise InputError("Two records of --shift have the same precision and engine", fix="Leave one out")
    return named


def _shift_name(table: Answers, other: Answers) -> str:
    names = ("model.engine", "model.quantization", "model.weights_sha256")
    (engine, was, weights), (other_engine, now, other_weights) = (
        [str(each.metadata[name]) for name in names] for each in (table, other)
    )
    if engine != other_engine:
        return f"{engine} {was} to {other_engine} {now}"
    return f"{was} as it was" if (was, weights) == (now, other_weights) else f"{was} to {now}"


def _notes(file: Path | None) -> tuple[Note, ...]:
    from guard.evaluation.result import Note

    if file is None:
        return ()
    try:
        value = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"'{file}' is not JSON", why=str(error)) from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InputError(f"'{file}' holds no notes", fix='Write {"title": "text", ...}')
    return tuple(Note(title, text) for title, text in value.items())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read '{file}'", why=str(error)) from error


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
    """Means over the sets that all methods of a table have; methods that lack some sets have tables of their own.

    A mean over fewer sets is another mean: in one table they would be taken for comparable.
    """
    from rich.table import Table

    measures = list(dict.fromkeys(score.measure for score in setting.scores))[:5]
    cells = _cells(setting, measures)
    shown_methods = [method.name for method in result.methods if cells.get(method.name)]
    everywhere = set().union(*(cells[name] for name in shown_methods)) if shown_methods else set()
    for missing_some in (False, True):
        names = [name for name in shown_methods if (cells[name] != everywhere) == missing_some]
        if missing_some and names:
            names = list(dict.fromkeys([result.own, *names]))
        common = everywhere.intersection(*(cells[name] for name in names if name in cells)) if names else set()
        if not common:
            continue
        title = f"{result.model.name}: {setting.setting} (means over {len(common)} of {setting.cells} tests)"
        table = Table("method", title=title, title_justify="left", min_width=len(title) + 4)
        for measure in measures:
            table.add_column(measure, justify="right")
        for name in names:
            table.add_row(name, *(_mean_over(setting, name, measure, common) for measure in measures))
        yield table


def _cells(setting: SettingResult, measures: Sequence[str]) -> dict[str, set[tuple[str, str]]]:
    """Where each method has a value of each of these measures that any method has there."""
    values = {(each.method, each.measure, each.train, each.test): each.value for each in setting.per_cell}
    methods = {each.method for each in setting.per_cell}
    places = {(each.train, each.test) for each in setting.per_cell}
    return {
        method: {at for at in places if any(values.get((method, measure, *at)) is not None for measure in measures)}
        for method in methods
    }


def _mean_over(setting: SettingResult, method: str, measure: str, cells: set[tuple[str, str]]) -> str:
    values = [
        each.value
        for each in setting.per_cell
        if (each.method, each.measure) == (method, measure) and (each.train, each.test) in cells
    ]
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""
