"""``guard recalibrate``: old labels and new verdicts in, a scorer and certificates out, and in use on request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.calibrate import print_left_out
from guard.cli.certify import EXIT_CODE
from guard.cli.data_options import GraderOption, LimitOption, OnBadOption, OptionalDataOption
from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.intervals import minutes_a_day, number_interval, percent_interval
from guard.cli.output import (
    CertificateOption,
    JsonOption,
    ModelOption,
    ScorerOption,
    StoreOption,
    console,
    plain_table,
    print_json,
)
from guard.cli.progress import ProgressBars
from guard.cli.review_options import open_store
from guard.cli.terminal import say

if TYPE_CHECKING:
    from guard.recalibration.expected import ExpectedChange
    from guard.recalibration.procedure import RecalibrationResult


@loads_a_model()
def recalibrate(
    policy: Annotated[str, typer.Option("--policy", "-p", help="The policy in use: a file or a built-in name.")],
    into: Annotated[Path, typer.Option("--into", metavar="FOLDER", help="Folder for the labels and the new files.")],
    data: OptionalDataOption = None,
    scorer: ScorerOption = None,
    certificate: CertificateOption = None,
    model: ModelOption = "smollm2",
    store: StoreOption = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only calls since then: 30d, 12h, or an ISO 8601 time.")
    ] = None,
    labels_of: Annotated[
        str | None, typer.Option("--labels-of", metavar="MODEL", help="Only answers of the model of this name.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of the questions whose answers may be held out for certificates.")
    ] = 0.5,
    apply: Annotated[
        bool, typer.Option("--apply", help="Replace the scorer and the certificate in use; the old files are kept.")
    ] = False,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    grader: GraderOption = None,
    on_bad: OnBadOption = "stop",
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of samples, splits, trees and of the held-out answers.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a new scorer and certificates from old labels (--data) and the verdicts of the store; show what changes.

    Nothing in use changes without --apply. The command is resumable: its folder keeps the labels and all answers, so
    the same command with --apply switches to what it has shown.

    Exit code 0 if every guarantee of the policy has a certificate, 12 if not.
    """
    from guard.recalibration.procedure import recalibrate as run

    with open_store(store) as opened, ProgressBars() as progress:
        result = run(
            opened,
            into=into,
            policy=policy,
            data=data or (),
            scorer=scorer,
            certificate=certificate,
            model=model,
            since=since,
            labels_of=labels_of,
            share=share,
            apply=apply,
            engine=engine,
            engine_options=engine_options,
            grader=grader,
            on_bad=on_bad,  # type: ignore[arg-type]
            limit=limit,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(_json(result))
    else:
        _print(result)
    if not result.is_certified:
        raise typer.Exit(EXIT_CODE)


_COUNTS = ("fitted_on", "held_out", "known", "undrawn", "contradicted", "undecided", "other_routes", "applied")


def _json(result: RecalibrationResult) -> dict[str, Any]:
    fitted = result.calibration.fitted
    return {
        "scorer": str(result.scorer),
        "scorer_sha256": fitted.scorer.sha256,
        "certificate": None if result.certificate is None else str(result.certificate),
        "certified": result.is_certified,
        "metrics": fitted.scorer.artefact.metrics,
        "routes": [
            {"route": route, "certified": each.certificate is not None, "explanation": each.explain()}
            for route, each in result.certifications.items()
        ],
        "changes": [asdict(each) for each in result.changes],
        **{name: getattr(result, name) for name in _COUNTS},
    }


def _print(result: RecalibrationResult) -> None:
    metrics = result.calibration.fitted.metrics[
        "guard" if "guard" in result.calibration.fitted.metrics else "log-probabilities"
    ]
    say(f"{result.fitted_on:,} new labels fit the scorer, {result.held_out:,} are held out. {_unused(result)}".rstrip())
    print_left_out(result.calibration)
    say(f"New scorer on {metrics.n:,} held-out questions: AUROC {metrics.auroc:.3f}, Brier {metrics.brier:.3f}.")
    for route, each in result.certifications.items():
        say(f"{_named(route)}: {each.explain()}")
    for change in result.changes:
        console().print(_table(change))
        say(_sample(change))
    say(_end(result))


def _unused(result: RecalibrationResult) -> str:
    reasons = {
        "to questions of the old labels": result.known,
        "to held-out questions, not drawn": result.undrawn,
        "contradicted by a later verdict": result.contradicted,
        "on routes that the policy does not have": result.other_routes,
        "still without a verdict": result.undecided,
    }
    found = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
    return f"Not used: {'; '.join(found)}." if found else ""


def _table(change: ExpectedChange) -> Any:
    both = (change.present, change.proposed)
    rows = [
        ("accepted", *(percent_interval(each.coverage) for each in both)),
        ("to people, a day", *(number_interval(each.escalations_a_day) for each in both)),
        ("reviews, a day", *(f"{each.reviews_a_day:,.1f}" for each in both)),
        ("reviewers' minutes, a day", *(minutes_a_day(each.minutes_a_day) for each in both)),
        ("wrong among accepted", *("-" if each.errors is None else percent_interval(each.errors) for each in both)),
    ]
    if change.proposed.unknown:
        rows.append(("would ask again", "0", f"{change.proposed.unknown:,}"))
    return plain_table((_named(change.route), "now", "recalibrated"), rows)


def _sample(change: ExpectedChange) -> str:
    source = "estimated from the labels" if change.estimated else "by the audit log"
    return (
        f"By {change.sampled:,} held-out answers, a random sample of {change.answers_a_day:,.1f} a day ({source}); "
        "intervals at 95 %."
    )


def _end(result: RecalibrationResult) -> str:
    if result.applied:
        return "The new files are in use from the next start of your programs; the old ones are in the folder 'before'."
    files = " and ".join(str(path) for path in (result.scorer, result.certificate) if path is not None)
    return f"Written: {files}. Nothing in use has changed."


def _named(route: str | None) -> str:
    return "no route" if route is None else route
