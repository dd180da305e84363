"""``guard record``: labelled questions in, one file of answers with all their signals out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.data_options import (
    DataOption,
    GraderOption,
    JournalOption,
    LimitOption,
    MaxTokensOption,
    OnBadOption,
    RayCpusOption,
    RayGpusOption,
    RayOption,
    ShardOption,
    SystemOption,
    TauOption,
)
from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import (
    JsonOption,
    ModelOption,
    TemplateOption,
    console,
    print_json,
    template_options,
)
from guard.cli.progress import ProgressBars
from guard.cli.shards import on_ray, shard_sentence

if TYPE_CHECKING:
    from guard.data.answers import Answers
    from guard.data.procedure import RecordingResult


@loads_a_model()
def record(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file of answers to write.")],
    model: ModelOption = "smollm2",
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    grader: GraderOption = None,
    on_bad: OnBadOption = "stop",
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled rows.")] = 0,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    template_option: TemplateOption = None,
    tau: TauOption = None,
    samples: Annotated[
        int, typer.Option(min=0, max=100, help="Number of additional answers to sample per question.")
    ] = 0,
    sampled_rows: Annotated[int, typer.Option(min=1, help="Number of questions per set to sample answers for.")] = 200,
    p_true: Annotated[
        bool, typer.Option("--p-true", help="Ask the model whether each of its answers is right.")
    ] = False,
    rauq: Annotated[
        bool, typer.Option("--rauq", help="Also compute RAUQ from the model's attention (transformers only).")
    ] = False,
    completion: Annotated[
        bool | None,
        typer.Option(
            "--completion/--chat", help="Let the model continue a text; by default only without a chat template."
        ),
    ] = None,
    lens: Annotated[bool, typer.Option(help="Also record the residual stream (GGUF on llama.cpp only).")] = True,
    journal: JournalOption = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Ask nothing; write the answers that the journal has.")
    ] = False,
    shard: ShardOption = None,
    ray: RayOption = None,
    ray_cpus: RayCpusOption = 1.0,
    ray_gpus: RayGpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Ask labelled questions once, and keep what all methods of guard evaluate need.

    The command is resumable: after an interruption, run it again to continue where it stopped, or with --partial to
        write the answers so far. Data sets take turns, so an interrupted run has about as many answers from each.
    """
    from guard.data.procedure import record as run

    with ProgressBars() as progress:
        result = on_ray(run, shards=ray, cpus=ray_cpus, gpus=ray_gpus)(
            data,
            out=out,
            model=model,
            engine=engine,
            engine_options=engine_options,
            grader=grader,
            on_bad=on_bad,
            limit=limit,
            seed=seed,
            system=system,
            max_tokens=max_tokens,
            template_options=template_options(template_option),
            tau=tau or (1.0,),
            samples=samples,
            sampled_rows=sampled_rows,
            p_true=p_true,
            rauq=rauq,
            completion=completion,
            lens=lens,
            journal=journal,
            partial=partial,
            shard=shard,
            progress=progress,
        )
    _report(result, shard, as_json=as_json)


def _report(result: RecordingResult, shard: str | None, *, as_json: bool) -> None:
    table = result.answers
    sets = [_summary(table, str(name)) for name in dict.fromkeys(table.dataset)]
    if as_json:
        recorded = {"residual": table.lens is not None, "completion": table.metadata["completion"], "sets": sets}
        notes = {"notes": result.notes, "left_out": result.left_out}
        print_json({"out": str(result.out), "n": len(table), **recorded, **notes})
        return
    from rich.table import Table

    screen = console()
    shown = Table(title="Recorded answers", title_justify="left")
    shown.add_column("set")
    for name in ("n", "wrong", "cut", "tokens", "seconds", "sampled"):
        shown.add_column(name, justify="right")
    for each in sets:
        share = f"{each['wrong'] / each['n']:.0%}"
        counts = (str(each["truncated"]), f"{each['tokens']:.1f}", f"{each['seconds']:.2f}", str(each["sampled"]))
        shown.add_row(each["name"], str(each["n"]), share, *counts)
    screen.print(shown)
    screen.print("Tokens and seconds: means per answer.", style="dim")
    for line in (*result.notes, *(f"left out {each}" for each in result.left_out)):
        screen.print(line, style="yellow", markup=False)
    written = f"Answers written to {result.out}" if shard is None else shard_sentence(shard, result.out)
    screen.print(written, markup=False)


def _summary(table: Answers, name: str) -> dict[str, Any]:
    import numpy as np

    from guard.scoring.labels import number_wrong

    part = table.take(np.flatnonzero(table.dataset == name))
    return {
        "name": name,
        "n": len(part),
        "wrong": number_wrong(part.wrong),
        "truncated": int(part.truncated.sum()),
        "tokens": float(part.tokens.mean()),
        "seconds": float(part.seconds.mean()),
        "sampled": sum(map(bool, part.samples)),
    }
