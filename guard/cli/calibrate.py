"""``guard calibrate``: labelled questions in, a scorer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.calibrate_early import show_early
from guard.cli.data_options import (
    GraderOption,
    JournalOption,
    LimitOption,
    MaxTokensOption,
    OnBadOption,
    OptionalDataOption,
    SystemOption,
    TauOption,
)
from guard.cli.engine_options import OPTIONS, EngineOption, EngineOptions, loads_a_model
from guard.cli.intervals import short_interval
from guard.cli.output import (
    JsonOption,
    ModelOption,
    TemplateOption,
    console,
    print_json,
    template_options,
)
from guard.cli.progress import ProgressBars
from guard.cli.scorers import back_off_line, span_facts, spans_line
from guard.cli.terminal import say, shown
from guard.errors import InputError

if TYPE_CHECKING:
    from guard.calibration.at_thresholds import AtThreshold
    from guard.calibration.procedure import CalibrationResult
    from guard.scoring.metrics import BrierGain, Metrics


#: Options that mean something where the answers are recorded.
_BESIDE_RECORDS = {"records", "out", "without", "seed", "as_json"}
#: Options that mean something where only spans are added.
_BESIDE_SCORER = {"scorer", "spans", "out", "model", "engine", "system", "max_tokens", "journal", "as_json", *OPTIONS}
#: Options that mean something where only early stages are added.
_BESIDE_EARLY = {
    *("early", "scorer", "data", "out", "model", "engine", "grader", "on_bad", "limit", "seed", "journal", "as_json"),
    *OPTIONS,
}


@loads_a_model()
def calibrate(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Scorer file to write.")],
    data: OptionalDataOption = None,
    records: Annotated[
        Path | None, typer.Option("--records", help="Fit on answers recorded by guard record; ask nothing.")
    ] = None,
    spans: Annotated[
        Path | None, typer.Option("--spans", help="Labelled spans of longer answers; adds a score of each span.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", help="With --spans or --early: scorer to extend, a file or a name."),
    ] = None,
    early: Annotated[
        bool,
        typer.Option("--early", help="Add early stages to --scorer, at which a policy can stop an answer."),
    ] = False,
    model: ModelOption = "smollm2",
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    grader: GraderOption = None,
    on_bad: OnBadOption = "stop",
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of samples, splits and trees.")] = 0,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    template_option: TemplateOption = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Part of guard's own score to leave out, such as map or activations; repeatable."),
    ] = None,
    tau: TauOption = None,
    capture_point: Annotated[str, typer.Option(help="Where to read activations: mlp or block.")] = "mlp",
    journal: JournalOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask labelled questions, fit a scorer on the answers, and print its metrics on held-out questions.

    The command is resumable: after an interruption, run it again to continue where it stopped.
    """
    if records is not None:
        _refuse_beside(ctx, _BESIDE_RECORDS, "--records", why="nothing is asked, and the labels are recorded")
        _show(_from_records(records, out=out, without=without or (), seed=seed), as_json=as_json)
        return
    if early:
        _refuse_beside(ctx, _BESIDE_EARLY, "--early", why="the questions are asked as the scorer's own were")
        asking: dict[str, Any] = {"model": model, "engine": engine, "engine_options": engine_options, "grader": grader}
        asking |= {"on_bad": on_bad, "limit": limit, "seed": seed, "journal": journal}
        _add_early(data, scorer, out, asking, as_json=as_json)
        return
    if scorer is not None:
        _refuse_beside(ctx, _BESIDE_SCORER, "--scorer", why="the scorer's other scores stay as they are")
        asking = {"model": model, "engine": engine, "engine_options": engine_options, "system": system or ""}
        _add_spans(spans, scorer, out, {**asking, "max_tokens": max_tokens, "journal": journal}, as_json=as_json)
        return
    if not data:
        raise InputError(
            "There is nothing to fit on", fix="Give labelled questions (--data) or recorded answers (--records)"
        )
    from guard.calibration.procedure import calibrate as run

    with ProgressBars() as progress:
        result = run(
            data,
            out=out,
            model=model,
            engine=engine,
            engine_options=engine_options,
            without=without or (),
            grader=grader,
            on_bad=on_bad,  # type: ignore[arg-type]
            limit=limit,
            seed=seed,
            system=system,
            max_tokens=max_tokens,
            template_options=template_options(template_option),
            tau=tau or (1.0,),
            capture_point=capture_point,  # type: ignore[arg-type]
            journal=journal,
            spans=spans,
            progress=progress,
        )
    _show(result, as_json=as_json)


def _add_spans(spans: Path | None, scorer: str, out: Path, asking: Mapping[str, Any], *, as_json: bool) -> None:
    """Add a model of spans to a scorer, and show its figures."""
    if spans is None:
        fix = "Give labelled spans (--spans FILE), or --early with --data"
        raise InputError("--scorer names the scorer that gets spans or early stages", fix=fix)
    from guard.calibration.span_procedure import calibrate_spans

    given = {name: value for name, value in asking.items() if value is not None}
    with ProgressBars() as progress:
        made = calibrate_spans(spans, scorer=scorer, out=out, **given, progress=progress)
    fitted = made.scorer.artefact.spans
    assert fitted is not None
    if as_json:
        left_out = {"unlabelled": made.unlabelled, "skipped": made.skipped}
        print_json({"out": str(out), "sha256": made.scorer.sha256, **span_facts(fitted), **left_out})
        return
    say(spans_line(fitted))
    say(f"Without a label: {made.unlabelled} spans. Not asked: {made.skipped} questions.")
    say(f"Scorer written to {out}")


def _add_early(
    data: list[str] | None, scorer: str | None, out: Path, asking: Mapping[str, Any], *, as_json: bool
) -> None:
    """Add early stages to a scorer, and show what they save and lose."""
    if scorer is None or not data:
        fix = "Fit a scorer first; then give it (--scorer FILE), and labelled questions that it has not seen (--data)"
        raise InputError("--early needs a scorer and fresh questions", fix=fix)
    from guard.calibration.early_procedure import calibrate_early

    with ProgressBars() as progress:
        made = calibrate_early(data, scorer=scorer, out=out, **asking, progress=progress)
    show_early(made, as_json=as_json)


def _from_records(records: Path, **options: Any) -> CalibrationResult:
    from guard.calibration.recorded import calibrate_records

    return calibrate_records(records, **options)


def _refuse_beside(ctx: typer.Context, allowed: set[str], beside: str, *, why: str) -> None:
    """Refuse options that mean nothing beside another."""
    for name in ctx.params.keys() - allowed:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} does not go with {beside}", why=why)


def _show(result: CalibrationResult, *, as_json: bool) -> None:
    if as_json:
        print_json(_json(result))
    else:
        _print(result)


def _json(result: CalibrationResult) -> dict[str, Any]:
    fitted, artefact = result.fitted, result.fitted.scorer.artefact
    return {
        "out": str(result.out),
        "sha256": fitted.scorer.sha256,
        "splits": artefact.split_sizes,
        "metrics": artefact.metrics,
        "absent": dict(fitted.absent),
        "brier_gain": fitted.brier_gain and asdict(fitted.brier_gain),
        "thresholds": [_threshold_facts(each) for each in fitted.thresholds],
        "bad_rows": [{"file": str(file), "line": row.line, "reason": row.reason} for file, row in result.bad_rows],
        "skipped": [{"key": each.key, "reason": each.reason} for each in result.skipped],
        "truncated": result.truncated,
        "by_ending": asdict(fitted.by_ending),
        "back_off": artefact.back_off and artefact.back_off.model_dump(),
        "spans": span_facts(artefact.spans) if artefact.spans else None,
        "other_models": dict(result.other_models),
    }


def _print(result: CalibrationResult) -> None:
    from rich.table import Table

    screen, fitted = console(), result.fitted
    table = Table(title="Held-out questions (the test split)", title_justify="left")
    table.add_column("score")
    for name in ("n", "wrong", "AUROC", "AUPRC", "Brier", "ECE"):
        table.add_column(name, justify="right")
    for name, metrics in fitted.metrics.items():
        table.add_row(name, *_cells(metrics))
    screen.print(table)
    screen.print("AUROC, AUPRC: higher is better. Brier, ECE: lower is better. Positive: wrong.", style="dim")
    if fitted.brier_gain:
        screen.print(_gain_line(fitted.brier_gain))
    _print_thresholds(fitted.thresholds)
    if back_off := fitted.scorer.artefact.back_off:
        screen.print(shown(back_off_line(back_off)))
    print_left_out(result)
    if spans := fitted.scorer.artefact.spans:
        screen.print(shown(spans_line(spans)))
    screen.print(f"Scorer written to {result.out}", markup=False)


def print_left_out(result: CalibrationResult) -> None:
    """Print which rows a calibration left out, and how truncated answers did."""
    screen = console()
    for score, reason in result.fitted.absent.items():
        screen.print(shown(f"no score '{score}' in the scorer: {reason}", "yellow"))
    for file, row in result.bad_rows:
        screen.print(f"left out {file}:{row.line}: {row.reason}", style="yellow", markup=False)
    for each in result.skipped:
        screen.print(f"left out {each.key}: {each.reason}", style="yellow", markup=False)
    ending = result.fitted.by_ending
    for name, part in (("truncated", ending.truncated), ("complete", ending.complete)):
        if result.truncated and part is not None:
            rank = "" if part.auroc is None else f", AUROC {part.auroc:.3f}"
            shares = f"{part.wrong:.0%} wrong, mean p(wrong) {part.p_wrong:.0%}"
            screen.print(f"{name} answers of the test split: {part.n}, {shares}{rank}", style="dim")
    if result.truncated:
        share = f"{result.truncated} of {sum(result.fitted.scorer.artefact.split_sizes.values())} answers"
        screen.print(f"{share} are truncated at their token limit; they are labelled like the others", style="dim")
    for name, count in result.other_models.items():
        screen.print(shown(f"left out {count} responses of another model, {name}", "yellow"))


def _cells(metrics: Metrics) -> list[str]:
    values = (metrics.auroc, metrics.auprc, metrics.brier, metrics.ece)
    return [str(metrics.n), f"{metrics.wrong:.0%}", *(f"{value:.3f}" for value in values)]


def _gain_line(gain: BrierGain) -> str:
    words = f"significantly {gain.verdict}" if gain.verdict in ("better", "worse") else gain.verdict
    interval = f"{gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}"
    return f"Brier against log-probabilities alone: {words} ({interval}; above 0 is better)."


def _threshold_facts(each: AtThreshold) -> dict[str, Any]:
    return {**asdict(each), "coverage": each.coverage, "error_rate": each.error_rate}


def _print_thresholds(thresholds: Sequence[AtThreshold]) -> None:
    from rich import box
    from rich.table import Table

    title = f"Effect of accept: {{below: ...}} on {thresholds[0].n} answers"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("below", "accepted", "wrong of these"):
        table.add_column(name, justify="right")
    for each in thresholds:
        accepted = f"{each.accepted}: {short_interval(each.coverage)}"
        wrong = f"{each.wrong:g}: {short_interval(each.error_rate)}" if each.error_rate else "-"
        table.add_row(f"{each.below:g}", accepted, wrong)
    console().print(table)
    console().print("In brackets: 95 % intervals, for one threshold chosen beforehand.", style="dim")
    console().print("A guaranteed error rate needs fresh labels: guard certify.", style="dim")
