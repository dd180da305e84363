"""``guard calibrate``: labelled questions in, a scorer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.asking import (
    DataSpecs,
    GraderName,
    Limit,
    MaxTokens,
    OnBad,
    System,
    Tau,
    bad_rows_of,
    check_choice,
    check_writable,
    how_to_ask,
    read_data,
    rows_of,
    run_of,
)
from guard.cli.output import (
    AsJson,
    ContextTokens,
    Dtype,
    Engine,
    GpuLayers,
    ModelName,
    TemplateOptions,
    Threads,
    console,
    engine_options,
    print_json,
)
from guard.cli.progress import under_progress
from guard.cli.terminal import shown

if TYPE_CHECKING:
    from guard.calibration.scorer_fit import Fitted
    from guard.data.questions import BadRow
    from guard.data.recording import Skipped
    from guard.data.sets import DataSource
    from guard.scoring.metrics import AtThreshold, Gain, Metrics
    from guard.scoring.provenance import DataSet

_FEATURES = ("combined", "ilis", "logprob")


def calibrate(
    data: DataSpecs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the scorer is written.")],
    model: ModelName = "smollm2",
    engine: Engine = None,
    dtype: Dtype = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    context: ContextTokens = None,
    features: Annotated[str, typer.Option(help="combined, ilis (the published score alone) or logprob.")] = "combined",
    grader: GraderName = None,
    on_bad: OnBad = "stop",
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, splits and trees.")] = 0,
    system: System = None,
    max_tokens: MaxTokens = None,
    template_option: TemplateOptions = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave a part of the score out, such as map or activations; repeatable.")
    ] = None,
    tau: Tau = None,
    capture_point: Annotated[str, typer.Option(help="Where activations are read: mlp or block.")] = "mlp",
    journal: Annotated[Path | None, typer.Option(help="Where answers are kept; by default OUT.journal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask labelled questions, learn from the answers how to score, and say how well that works.

    Can be stopped at any moment; the same command goes on where it was.
    """
    from guard.calibration.scorer_fit import check_enough_rows, fit_scorer, split_labelled
    from guard.data.graders import grade, load_grader
    from guard.data.recording import Journal, of_this_model, record_rows, template_date_of
    from guard.data.sqlite_journal import row_key
    from guard.engines import load_engine
    from guard.runtime.guard import capture_point_of

    check_choice("--features", features, _FEATURES)
    check_writable(out, "scorer")
    grader_function = load_grader(grader) if grader else grade
    check_choice("--capture-point", capture_point, ("mlp", "block"))
    sources = read_data(data, on_bad=on_bad, limit=limit, seed=seed)
    if max_tokens is None or system is None:
        how_to_ask(sources, system=system, max_tokens=max_tokens)  # better said before the model is loaded
    rows, bad = rows_of(sources), bad_rows_of(sources)
    check_enough_rows([row for _, row in rows], seed=seed)
    kept = journal or out.with_name(f"{out.name}.journal")
    loading = engine_options(dtype=dtype, threads=threads, gpu_layers=gpu_layers, context=context)
    asked_on = {"template_date": template_date_of(kept)}
    with load_engine(model, engine=engine, capture_point=capture_point, **loading, **asked_on) as loaded:
        rows, others = of_this_model(rows, loaded.model.name)
        if others:
            check_enough_rows([row for _, row in rows], seed=seed)
        run = run_of(
            loaded, sources, system, max_tokens, tau, None, template_option, capture_point=capture_point_of(loaded)
        )
        with Journal(kept, run) as answers:
            under_progress(record_rows(loaded, rows, answers, run=run), rows=rows, known=answers.keys())
            skipped = answers.skipped({row_key(dataset, row) for dataset, row in rows})
            splits = split_labelled(rows, answers, grade=grader_function, seed=seed)
    fitted = fit_scorer(
        splits,
        run=run,
        data=_data_sets(sources, splits),
        features=features,  # type: ignore[arg-type]
        without=tuple(without or ()),
        seed=seed,
    )
    fitted.scorer.save(out)
    _report(fitted, out, bad, skipped, others, truncated=_truncated(splits), as_json=as_json)


def _report(
    fitted: Fitted,
    out: Path,
    bad: list[tuple[Path, BadRow]],
    skipped: list[Skipped],
    others: Mapping[str, int],
    *,
    truncated: int,
    as_json: bool,
) -> None:
    if as_json:
        print_json({**_json(fitted, out, bad, skipped), "truncated": truncated, "other_models": dict(others)})
    else:
        _print(fitted, out, bad, skipped)
        if truncated:
            share = f"{truncated} of {sum(fitted.scorer.artefact.split_sizes.values())} answers"
            console().print(f"{share} were cut at their token limit; they are labelled like the others", style="dim")
        for name, count in others.items():
            console().print(shown(f"left out {count} responses of another model, {name}", "yellow"))


def _truncated(splits: dict[str, Any]) -> int:
    """How many of the labelled answers are cut."""
    return sum(each.record.finish_reason == "length" for members in splits.values() for each in members)


def _data_sets(sources: Sequence[DataSource], splits: dict[str, Any]) -> list[DataSet]:
    from guard.scoring.provenance import DataSet

    labelled = [each for members in splits.values() for each in members]
    return [
        DataSet(
            name=source.name,
            sha256=source.sha256,
            rows=sum(each.record.dataset == source.name for each in labelled),
            wrong=sum(each.wrong for each in labelled if each.record.dataset == source.name),
        )
        for source in sources
    ]


def _json(fitted: Fitted, out: Path, bad: list[tuple[Path, BadRow]], skipped: list[Skipped]) -> dict[str, Any]:
    artefact = fitted.scorer.artefact
    return {
        "out": str(out),
        "sha256": fitted.scorer.sha256,
        "features": artefact.features,
        "splits": artefact.split_sizes,
        **artefact.metrics,
        "brier_gain": fitted.brier_gain and asdict(fitted.brier_gain),
        "thresholds": [asdict(each) for each in fitted.thresholds],
        "bad_rows": [{"file": str(file), "line": row.line, "reason": row.reason} for file, row in bad],
        "skipped": [{"key": each.key, "reason": each.reason} for each in skipped],
    }


def _print(fitted: Fitted, out: Path, bad: list[tuple[Path, BadRow]], skipped: list[Skipped]) -> None:
    from rich.table import Table

    screen = console()
    table = Table(title="Held-out questions (the test split)", title_justify="left")
    table.add_column("score")
    for name in ("n", "wrong", "AUROC", "AUPRC", "Brier", "ECE"):
        table.add_column(name, justify="right")
    table.add_row(fitted.scorer.artefact.features, *_cells(fitted.test))
    if fitted.baseline:
        table.add_row("log-probabilities alone", *_cells(fitted.baseline))
    screen.print(table)
    screen.print("AUROC, AUPRC: higher is better. Brier, ECE: lower is better. Positive: wrong.", style="dim")
    if fitted.brier_gain:
        screen.print(_gain_line(fitted.brier_gain))
    _print_thresholds(fitted.thresholds)
    for file, row in bad:
        screen.print(f"left out {file}:{row.line}: {row.reason}", style="yellow", markup=False)
    for each in skipped:
        screen.print(f"left out {each.key}: {each.reason}", style="yellow", markup=False)
    screen.print(f"Scorer written to {out}", markup=False)


def _cells(metrics: Metrics) -> list[str]:
    values = (metrics.auroc, metrics.auprc, metrics.brier, metrics.ece)
    return [str(metrics.n), f"{metrics.wrong:.0%}", *(f"{value:.3f}" for value in values)]


def _gain_line(gain: Gain) -> str:
    words = "cannot be told from chance" if gain.verdict == "not told apart" else f"is surely {gain.verdict}"
    interval = f"{gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}"
    return f"Brier against log-probabilities alone: {words} ({interval}; above 0 is better)."


def _print_thresholds(thresholds: Sequence[AtThreshold]) -> None:
    from rich.table import Table

    table = Table(title="What a rule accept: {below: ...} would have let through", title_justify="left")
    for name in ("below", "accepted", "of these wrong"):
        table.add_column(name, justify="right")
    for each in thresholds:
        share = f"{each.wrong} ({each.wrong / each.accepted:.0%})" if each.accepted else "-"
        table.add_row(f"{each.below:g}", f"{each.accepted} of {each.n}", share)
    console().print(table)
    console().print("An error rate that is promised needs fresh labels: guard certify.", style="dim")
