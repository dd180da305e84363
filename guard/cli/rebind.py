"""``guard rebind``: a scorer of one model in, one of the same weights in another precision or engine out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.data_options import DataOption, GraderOption, OnBadOption
from guard.cli.engine_options import EngineOptions, loads_a_model
from guard.cli.output import JsonOption, ModelOption, console, print_json
from guard.cli.terminal import shown

if TYPE_CHECKING:
    from guard.calibration.rebinding import ReboundScorer

#: Parts of a scorer that do not move, in words, with what makes them again.
_DROPPED = {
    "ood_detector": "the out-of-distribution detector, for which there were too few answers; give more questions",
    "back_off": "the back-off, which needs the detector",
    "spans": "the scores of spans, unchecked on the new model; fit them with guard calibrate --spans FILE --scorer OUT",
    "early": "the early stages, unchecked on the new model; fit them with guard calibrate --early --scorer OUT",
}


@loads_a_model()
def rebind(
    scorer: Annotated[str, typer.Argument(metavar="SCORER", help="Scorer file, or its name on the shelf.")],
    data: DataOption,
    to: Annotated[
        str, typer.Option("--to", help="Model to move to: the same weights in another precision, or the same file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Scorer file to write.")],
    model: ModelOption = "smollm2",
    to_engine: Annotated[
        str | None, typer.Option("--to-engine", help="Engine of the new model; by default the scorer's.")
    ] = None,
    to_engine_options: EngineOptions = None,
    engine_options: EngineOptions = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Check on labels; without it, scores are marked as uncalibrated.")
    ] = True,
    grader: GraderOption = None,
    on_bad: OnBadOption = "stop",
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of questions of each data set.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled questions.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Move a scorer to another precision or engine of its model, by unlabelled answers that both models read.

    A fine-tuned model is refused (exit code 3): its weights differ by more than rounding.
    """
    from guard.calibration.rebinding import rebind as run

    result = run(
        scorer,
        data,
        model=model,
        to=to,
        out=out,
        to_engine=to_engine,
        engine_options=engine_options,
        to_engine_options=to_engine_options,
        check=check,
        grader=grader,
        on_bad=on_bad,  # type: ignore[arg-type]
        limit=limit,
        seed=seed,
    )
    if as_json:
        print_json(_json(result))
    else:
        _print(result)


def _json(result: ReboundScorer) -> dict[str, Any]:
    rebound = result.scorer.artefact.rebound
    assert rebound is not None
    return {
        "out": str(result.out),
        "sha256": result.scorer.sha256,
        **rebound.model_dump(exclude={"fitted_on"}),
        "forced": dict(result.forced),
        "dropped": list(result.dropped),
        "left_out": list(result.left_out),
    }


def _print(result: ReboundScorer) -> None:
    rebound, out = result.scorer.artefact.rebound, console()
    assert rebound is not None
    difference = f"{rebound.difference_before:.3f} before, {rebound.difference_after:.3f} after"
    out.print(shown(f"p(wrong) of {rebound.answers} answers in both models, mean difference: {difference}"))
    for name, figures in rebound.metrics.items():
        forced = result.forced[name]
        values = (f"{key} {figures[key.lower()]:.3f} (forced {forced[key.lower()]:.3f})" for key in ("AUROC", "Brier"))
        out.print(shown(f"{name}: {', '.join(values)} on {rebound.checked} labelled answers"))
    if not rebound.checked:
        out.print("unchecked: the scores are marked as uncalibrated", style="yellow")
    for name in result.dropped:
        out.print(shown(f"not moved: {_DROPPED[name]}", "yellow"))
    for each in result.left_out:
        out.print(shown(f"left out {each}", "yellow"))
    out.print(shown(f"Scorer written to {result.out}"))
