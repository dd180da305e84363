"""``guard certify``: fresh labelled questions in, a threshold that meets a risk guarantee out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.asking import (
    DataSpecs,
    GraderName,
    Limit,
    OnBad,
    bad_rows_of,
    check_writable,
    read_data,
    rows_of,
)
from guard.cli.output import (
    AsJson,
    ContextTokens,
    Dtype,
    Engine,
    GpuLayers,
    ModelName,
    PolicyName,
    ScorerFile,
    TemplateOptions,
    Threads,
    console,
    engine_options,
    print_json,
    template_options,
)
from guard.cli.progress import under_progress
from guard.errors import InputError

if TYPE_CHECKING:
    from guard.certification.fixed_sequence import Certified, NotCertifiable, Trials
    from guard.certification.trials import AttemptedRow
    from guard.data.questions import Row
    from guard.data.sets import DataSource
    from guard.policy.certificate import Certificate, Certificates
    from guard.policy.document import RiskGuarantee
    from guard.policy.policy import Policy
    from guard.runtime.guard import Guard
    from guard.scoring.provenance import DataSet
    from guard.scoring.scorer import Scorer

#: What the shell is told when there is no such threshold.
EXIT_CODE = 12


def certify(
    data: DataSpecs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Certificate file; other routes in it are kept.")],
    model: ModelName = "smollm2",
    scorer: ScorerFile = None,
    policy: PolicyName = "certified",
    route: Annotated[str | None, typer.Option(help="Section of the policy that is certified.")] = None,
    risk: Annotated[float | None, typer.Option(help="Must be the policy's max_error_rate; may be left out.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Must be the policy's; may be left out.")] = None,
    engine: Engine = None,
    dtype: Dtype = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    context: ContextTokens = None,
    grader: GraderName = None,
    on_bad: OnBad = "stop",
    template_option: TemplateOptions = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and of the rows that place the thresholds.")] = 0,
    journal: Annotated[Path | None, typer.Option(help="Where answers are kept; by default OUT.journal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the threshold that meets a policy's risk guarantee, on questions that the scorer was not fitted on.

    The policy says what is guaranteed: accept: {max_error_rate: 0.05, confidence: 0.9}. All attempts that it
    could make are made. Can be stopped at any moment; the same command goes on where it was.

    Exit code 0 with a certificate, 12 when no threshold can be shown to meet the risk guarantee.
    """
    from guard.certification.fixed_sequence import Certified
    from guard.certification.fixed_sequence import certify as find_threshold
    from guard.certification.trials import TrialJournal, attempted_rows, trials_of
    from guard.data.graders import grade, load_grader
    from guard.data.recording import of_this_model
    from guard.policy.guarantee import ceiling
    from guard.policy.policy import load_policy

    check_writable(out, "certificate")
    chosen = load_policy(policy)
    guarantee = _guarantee(chosen, route, risk, confidence)
    before = _certificates_in(out)
    grader_function = load_grader(grader) if grader else grade
    sources = read_data(data, on_bad=on_bad, limit=limit, seed=seed)
    loading = engine_options(dtype=dtype, threads=threads, gpu_layers=gpu_layers, context=context)
    options = template_options(template_option)
    with _trial_guard(chosen, model=model, scorer=scorer, engine=engine, loading=loading, options=options) as guard:
        rows, notes = _usable(sources, guard.scorer)
        rows, others = of_this_model(rows, guard.engine.model.name)
        notes += [f"{count} responses of another model, {name}" for name, count in others.items()]
        notes += [f"{file}:{row.line}: {row.reason}" for file, row in bad_rows_of(sources)]
        fingerprint = guard.fingerprint(chosen, route)
        with TrialJournal(journal or out.with_name(f"{out.name}.journal"), fingerprint) as answers:
            notes += _ask_all(guard, rows, answers, route)
            answered = attempted_rows(rows, answers)
    _check_some(answered, notes)
    trials = trials_of(answered, grade=grader_function)
    result = find_threshold(
        trials,
        risk=guarantee.max_error_rate,
        confidence=guarantee.confidence,
        seed=seed,
        ceiling=ceiling(chosen.plan(route)),
    )
    if not isinstance(result, Certified):
        _report_failure(result, notes, as_json=as_json)
        raise typer.Exit(EXIT_CODE)
    certificate = _certificate(result, chosen, route, fingerprint, _data_sets(sources, answered, trials), grader, seed)
    before.with_one(certificate).save(out)
    _report(certificate, out, notes, as_json=as_json)


def _check_some(answered: Sequence[object], notes: Sequence[str]) -> None:
    if not answered:
        raise InputError(
            "There is no question to certify on", why="; ".join(notes), fix="Give fresh labelled questions"
        )


def _guarantee(policy: Policy, route: str | None, risk: float | None, confidence: float | None) -> RiskGuarantee:
    """What the policy guarantees on the route; the options may only repeat it."""
    from guard.policy.guarantee import guarantee_of, where

    guarantee = guarantee_of(policy.plan(route))
    if guarantee is None:
        raise InputError(
            f"The policy {where(policy, route)} has no risk guarantee",
            fix=f"Write its accept rule as accept: {{max_error_rate: {risk or 0.05}, confidence: {confidence or 0.9}}}",
        )
    for option, given, wanted in (
        ("--risk", risk, guarantee.max_error_rate),
        ("--confidence", confidence, guarantee.confidence),
    ):
        if given is not None and given != wanted:
            raise InputError(
                f"{option} is {given:g}, but the policy {where(policy, route)} guarantees {guarantee}",
                why="the certificate would not hold for it",
                fix=f"Change one of them, or leave {option} out",
            )
    return guarantee


def _certificates_in(out: Path) -> Certificates:
    """What the file has already, read before anything is asked."""
    from guard.policy.certificate import Certificates, load_certificates

    return load_certificates(out) if out.exists() else Certificates(str(out), {})


def _trial_guard(
    policy: Policy,
    *,
    model: str,
    scorer: str | None,
    engine: str | None,
    loading: dict[str, Any],
    options: dict[str, Any] | None,
) -> Guard:
    from guard.policy.guarantee import trial_policy
    from guard.runtime.guard import Guard

    def nobody(_: object) -> None:
        """In place of every handler: attempts alone hand no case to anybody."""

    handlers = dict.fromkeys(policy.handler_names(), nobody)
    return Guard.load(
        model,
        scorer=scorer,
        policy=trial_policy(policy),
        engine=engine,
        engine_options=loading,
        handlers=handlers,
        template_options=options,
    )


def _usable(sources: Sequence[DataSource], scorer: Scorer) -> tuple[list[tuple[str, Row]], list[str]]:
    """The rows that the scorer has not learnt from, each question once, and what was left out."""
    used = {each.sha256 for each in scorer.artefact.data}
    rows, notes = rows_of(sources), []
    for source in sources:
        if source.sha256 in used:
            held_out = _held_out(source.rows, scorer.artefact.seed)
            before = len(rows)
            rows = [(name, row) for name, row in rows if name != source.name or id(row) in held_out]
            what = f"{before - len(rows)} questions of {source.name}"
            notes.append(f"{what}, which the scorer was fitted or calibrated on")
    distinct = {" ".join(_question(row).casefold().split()): (dataset, row) for dataset, row in reversed(rows)}
    kept = {id(row) for _, row in distinct.values()}
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} questions that were there already: repeats are no fresh evidence")
    return [(dataset, row) for dataset, row in rows if id(row) in kept], notes


def _held_out(rows: Sequence[Row], seed: int) -> set[int]:
    """The part of a calibration file that only measured the scorer."""
    from guard.calibration.scorer_fit import SPLIT_SHARES
    from guard.data.questions import split_questions

    return {id(row) for row in split_questions(rows, seed=seed, shares=SPLIT_SHARES)["test"]}


def _question(row: Row) -> str:
    from guard.data.prompts import question_prompt
    from guard.data.questions import Question

    return question_prompt(row).question if isinstance(row, Question) else row.prompt.question


def _ask_all(guard: Guard, rows: list[tuple[str, Row]], journal: Any, route: str | None) -> list[str]:
    """Ask what was not asked yet, under a progress bar; what could not be asked."""
    from guard.certification.trials import run_trials
    from guard.data.recording import Skipped
    from guard.data.sqlite_journal import row_key

    under_progress(run_trials(guard, rows, journal, route=route), rows=rows, known=journal.keys())
    records = (journal.row(row_key(dataset, row)) for dataset, row in rows)
    return [f"{record.key}: {record.reason}" for record in records if isinstance(record, Skipped)]


def _data_sets(sources: Sequence[DataSource], answered: Sequence[AttemptedRow], trials: Trials) -> list[DataSet]:
    from guard.scoring.provenance import DataSet

    first_wrong = trials.wrong[:, 0]
    return [
        DataSet(
            name=source.name,
            sha256=source.sha256,
            rows=sum(each.dataset == source.name for each in answered),
            wrong=sum(
                bool(wrong) for each, wrong in zip(answered, first_wrong, strict=True) if each.dataset == source.name
            ),
        )
        for source in sources
    ]


def _certificate(
    result: Certified,
    policy: Policy,
    route: str | None,
    fingerprint: Any,
    data: list[DataSet],
    grader: str | None,
    seed: int,
) -> Certificate:
    import guard
    from guard.policy.certificate import Certificate

    return Certificate(
        route=route,
        policy=policy.name,
        **asdict(result),
        coverage=result.coverage,
        seed=seed,
        grader=grader or "by the row",
        fingerprint=fingerprint,
        data=data,
        created_by=f"guard {guard.__version__}",
    )


def _report(certificate: Certificate, out: Path, notes: list[str], *, as_json: bool) -> None:
    if as_json:
        told = certificate.model_dump(mode="json", exclude={"fingerprint"})
        print_json({"certified": True, "out": str(out), **told, "left_out": notes})
        return
    screen = console()
    screen.print(certificate.explain(), markup=False)
    _print_notes(notes)
    screen.print(f"Certificate written to {out}", markup=False)


def _report_failure(result: NotCertifiable, notes: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"certified": False, **asdict(result), "explanation": result.explain(), "left_out": notes})
        return
    console().print(result.explain(), markup=False)
    _print_notes(notes)


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        console().print(f"left out {note}", style="yellow", markup=False)
