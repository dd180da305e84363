"""``guard certify``: fresh labelled questions in, a threshold that meets a risk guarantee out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.data_options import (
    DataOption,
    GraderOption,
    JournalOption,
    LimitOption,
    OnBadOption,
    RayCpusOption,
    RayGpusOption,
    RayOption,
    ShardOption,
)
from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import (
    FallbackOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    ScorerOption,
    TemplateOption,
    console,
    print_json,
    template_options,
    user_functions,
)
from guard.cli.progress import ProgressBars
from guard.cli.shards import on_ray, shard_sentence

if TYPE_CHECKING:
    from guard.certification.base_rate import BaseRate
    from guard.certification.procedure import CertificationResult

#: Exit code where no threshold can be certified.
EXIT_CODE = 12


@loads_a_model()
def certify(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Certificate file to write; its other routes are kept.")],
    model: ModelOption = "smollm2",
    scorer: ScorerOption = None,
    policy: PolicyOption = "certified",
    route: Annotated[str | None, typer.Option(help="Route of the policy to certify.")] = None,
    risk: Annotated[float | None, typer.Option(help="Repeats the policy's max_error_rate, as a check.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Repeats the policy's confidence, as a check.")] = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    fallback: FallbackOption = None,
    grader: GraderOption = None,
    on_bad: OnBadOption = "stop",
    template_option: TemplateOption = None,
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of samples and of the rows that place the thresholds.")] = 0,
    journal: JournalOption = None,
    shard: ShardOption = None,
    ray: RayOption = None,
    ray_cpus: RayCpusOption = 1.0,
    ray_gpus: RayGpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Find the threshold that meets a policy's risk guarantee, on questions that the scorer was not fitted on.

    The policy states the guarantee: accept: {max_error_rate: 0.05, confidence: 0.9}. The model makes every attempt that
    the policy could make. The command is resumable: after an interruption, run it again to continue where it stopped.

    Exit code 0 with a certificate or after a shard, 12 when no threshold can be certified.
    """
    from guard.certification.procedure import certify as run

    with ProgressBars() as progress:
        result = on_ray(run, shards=ray, cpus=ray_cpus, gpus=ray_gpus)(
            data,
            out=out,
            model=model,
            scorer=scorer,
            policy=policy,
            route=route,
            risk=risk,
            confidence=confidence,
            engine=engine,
            engine_options=engine_options,
            fallbacks=user_functions("fallback", fallback),
            grader=grader,
            on_bad=on_bad,
            limit=limit,
            seed=seed,
            template_options=template_options(template_option),
            journal=journal,
            shard=shard,
            progress=progress,
        )
    if as_json:
        print_json(_json(result))
    else:
        _print(result, shard)
    if result.not_certifiable is not None:
        raise typer.Exit(EXIT_CODE)


def _json(result: CertificationResult) -> dict[str, Any]:
    left_out = {**_base_rate(result.base_rate), "left_out": result.left_out}
    if result.certificate is not None:
        content = result.certificate.model_dump(mode="json", exclude={"fingerprint"})
        return {
            "certified": True,
            "out": str(result.out),
            "certificate_sha256": result.certificate.sha256,
            **content,
            **left_out,
        }
    if result.not_certifiable is None:  # of a shard
        return {"certified": False, "out": str(result.out), **left_out}
    reason = asdict(result.not_certifiable)
    return {"certified": False, **reason, "explanation": result.explain(), **left_out}


def _base_rate(base: BaseRate | None) -> dict[str, Any]:
    if base is None:  # of a shard
        return {}
    more = {"forced_abstention": base.forced, "forced_abstention_bound": base.forced_bound}
    return {"base_rate": {**asdict(base), **more}}


def _print(result: CertificationResult, shard: str | None) -> None:
    screen = console()
    screen.print(result.explain() if shard is None else shard_sentence(shard, result.out), markup=False)
    for each in result.left_out:
        screen.print(f"left out {each}", style="yellow", markup=False)
    if result.certificate is not None:
        screen.print(f"Certificate written to {result.out}", markup=False)
