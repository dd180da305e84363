"""Makes a certificate from fresh labelled questions: select fresh rows, make all attempts, grade, certify, save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from guard.calibration.fresh import fresh_rows
from guard.certification.base_rate import BaseRate
from guard.certification.fixed_sequence import Certified, NotCertifiable, find_threshold
from guard.certification.trials import AttemptedRow, TrialJournal, attempted_rows, label_trials, run_trials
from guard.checked import checked_seed
from guard.data.graders import Grader, choose_grader
from guard.data.labelling import check_not_graded, check_same_weights
from guard.data.progress import ProgressCallback, ask_with_progress, ignore_progress
from guard.data.question_sets import DataSpecs, data_sets, list_bad_rows, list_rows, read_sets
from guard.data.questions import Row
from guard.data.recording import Skipped, of_this_model
from guard.data.sets import DataSource, OnBad
from guard.data.shards import Shard, select_part
from guard.data.sqlite_journal import row_key
from guard.engines import EMBEDDED
from guard.errors import InputError
from guard.files.output_file import check_writable, choose_journal
from guard.policy.certificate import Certificate, Certificates, Fingerprint, load_certificates
from guard.policy.document import RiskGuarantee
from guard.policy.guarantee import ceiling, find_guarantee, is_seeded, trial_policy, where
from guard.policy.policy import Policy, load_policy
from guard.runtime.guard import Guard
from guard.runtime.sources import FallbackFunction, Source


@dataclass(frozen=True, slots=True)
class CertificationResult:
    """A certificate, or the reason why there is none.

    Attributes:
        out: the certificate file, not written without a certificate; of a shard its journal.
        certificate: what was certified; None where no threshold can be certified, and for a shard.
        not_certifiable: why no threshold can be certified, and what would help; None with a certificate, and for a
            shard.
        left_out: rows that were not used, each with its reason.
        base_rate: what the share of wrong answers forces, whatever the score; None for a shard.
    """

    out: Path
    certificate: Certificate | None
    not_certifiable: NotCertifiable | None
    left_out: tuple[str, ...]
    base_rate: BaseRate | None

    def explain(self) -> str:
        """Return the certificate, or the reason for none, and what the base rate forces, as sentences."""
        parts = (self.certificate or self.not_certifiable, self.base_rate)
        return " ".join(part.explain() for part in parts if part is not None)


def certify(
    data: DataSpecs,
    *,
    out: str | Path,
    model: str | Path = EMBEDDED,
    scorer: str | Path | None = None,
    policy: str | Path | Policy = "certified",
    route: str | None = None,
    risk: float | None = None,
    confidence: float | None = None,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    fallbacks: Mapping[str, Guard | Source | FallbackFunction] | None = None,
    grader: str | Grader | None = None,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    seed: int = 0,
    template_options: Mapping[str, Any] | None = None,
    journal: str | Path | None = None,
    shard: str | None = None,
    progress: ProgressCallback = ignore_progress,
) -> CertificationResult:
    """Find the threshold that meets a policy's risk guarantee, on questions that the scorer was not fitted on.

    The policy states the guarantee: ``accept: {max_error_rate: 0.05, confidence: 0.9}``. The model makes every attempt
    that the policy could make. ``guard certify`` calls this function: the same arguments give the same file, byte for
    byte, if the policy's sampled retries have a ``seed``. Attempts are stored in a journal, one transaction per
    question, so that an interrupted run can be resumed without asking anything twice.

    Args:
        data: one or several JSON Lines files or named sets (``NAME@FOLDER``, ``hub:NAME``).
        out: the certificate file; certificates for other routes in it are kept.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        scorer: scorer file of `guard.calibrate`; optional for the embedded model.
        policy: a file, a built-in name, or a `Policy`.
        route: section of the policy to certify.
        risk: the policy's ``max_error_rate``; optional, for a check.
        confidence: the policy's confidence; optional, for a check.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``, such as ``{"threads": 4, "context_tokens": 8192}``.
        fallbacks: for the policy's ``fallback: {to: NAME}``, as for `Guard`. A certificate cannot check a function of
            the caller: certify again when it changes.
        grader: ``text``, ``number``, ``choice``, ``regex``, ``module:function`` or a function of question and answer;
            by default each question's own.
        on_bad: ``stop`` raises if a row cannot be used, ``skip`` leaves the row out.
        limit: maximal number of rows of each data set, drawn by ``seed``.
        seed: seed of samples and of the grid rows, from 0 to 2**31 - 1.
        template_options: variables of the model's chat template; by default those of the calibration.
        journal: where attempts are kept; by default ``OUT.journal``, or ``OUT.3-of-8.journal`` for a shard.
        shard: make the attempts at this part of the questions only, such as ``3/8``, and certify nothing;
            `merge_shards` joins the journals, and the same call with the result certifies.
        progress: called with a `guard.Progress` before the first question and after each.

    Returns:
        the certificate, or the reason why no threshold can be certified; neither for a shard.

    Raises:
        InputError: the policy states no guarantee, or data, output, options or journal cannot be used.
        CertificateError: the output exists and is not a certificate file.
        ScorerMismatchError: the scorer was fitted on another model.
        ModelFileError, EngineError: the model cannot be loaded or fails.

    Examples:
        >>> import guard
        >>> result = guard.certify("fresh.jsonl", out="certificate.json", policy="policy.yaml")  # doctest: +SKIP
        >>> result.certificate.threshold if result.certificate else result.explain()  # doctest: +SKIP
        0.31
        >>> guard.certify("fresh.jsonl", out="certificate.json", policy="balanced")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out = Path(out)
    check_writable(out, "certificate")
    chosen = load_policy(policy)
    guarantee = _guarantee(chosen, route, risk, confidence)
    before = load_certificates(out) if out.exists() else Certificates(str(out), {})
    grade, grader_name = choose_grader(grader)
    checked_seed(seed)
    part = None if shard is None else Shard.parse(shard)
    kept = part.journal(out, journal) if part else choose_journal(out, journal)
    sources = read_sets(data, on_bad=on_bad, limit=limit, seed=seed)
    check_not_graded(row for _, row in list_rows(sources))
    check_same_weights(row for _, row in list_rows(sources))
    with Guard.load(
        model,
        scorer=scorer,
        policy=trial_policy(chosen),
        engine=engine,
        engine_options=engine_options,
        fallbacks=fallbacks,
        handlers=dict.fromkeys(chosen.handler_names(), _no_handler),
        template_options=template_options,
    ) as loaded:
        trial = _run_trial(loaded, chosen, sources, route, kept, part, progress)
    if part is not None:
        return CertificationResult(kept, None, None, tuple(trial.left_out), None)
    _check_some(trial)
    labels = label_trials(trial.rows, grade=grade)
    result = find_threshold(
        labels,
        risk=guarantee.max_error_rate,
        confidence=guarantee.confidence,
        seed=seed,
        ceiling=ceiling(chosen.plan(route)),
    )
    base_rate = BaseRate(len(labels), labels.never_right, guarantee.max_error_rate, guarantee.confidence)
    if not isinstance(result, Certified):
        return CertificationResult(out, None, result, tuple(trial.left_out), base_rate)
    wrong = zip((each.dataset for each in trial.rows), map(bool, labels.wrong[:, 0]), strict=True)
    certificate = Certificate(
        route=route,
        policy=chosen.name,
        **asdict(result),
        coverage=result.coverage,
        seed=seed,
        grader=grader_name,
        fingerprint=trial.fingerprint,
        data=data_sets(sources, wrong),
        deterministic=trial.deterministic,
        seeded=is_seeded(chosen.plan(route)),
        created_by=f"guard {version('ilis-guard')}",
    )
    before.with_one(certificate).save(out)
    return CertificationResult(out, certificate, None, tuple(trial.left_out), base_rate)


# -- the trial ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trial:
    """All attempts of a trial run.

    Attributes:
        rows: the rows with their attempts.
        fingerprint: what a certificate from this run is bound to.
        deterministic: whether each request ran alone, from an empty cache.
        left_out: rows that were not used, each with its reason.
    """

    rows: Sequence[AttemptedRow]
    fingerprint: Fingerprint
    deterministic: bool
    left_out: Sequence[str]


def _run_trial(
    guard: Guard,
    policy: Policy,
    sources: Sequence[DataSource],
    route: str | None,
    journal: Path,
    shard: Shard | None,
    progress: ProgressCallback,
) -> _Trial:
    """Make every attempt at the fresh rows, or at those of a shard, that the journal does not have yet."""
    fresh, left_out = _rows_to_ask(sources, guard)
    fingerprint, part = guard.fingerprint(policy, route), select_part(fresh, shard)
    rows = part.rows
    with TrialJournal(journal, fingerprint, part.header) as answers:
        asked = run_trials(guard, rows, answers, route=route)
        ask_with_progress(asked, rows=rows, known=answers.answered(), progress=progress)
        left_out += _skipped(rows, answers)
        attempted = attempted_rows(rows, answers)
    return _Trial(attempted, fingerprint, guard.engine.model.deterministic, left_out)


def _no_handler(_: object) -> None:
    """Replace every handler: a trial run escalates nothing."""


def _check_some(trial: _Trial) -> None:
    if not trial.rows:
        why = "; ".join(trial.left_out)
        raise InputError("There are no questions to certify on", why=why, fix="Give fresh labelled questions")


def _guarantee(policy: Policy, route: str | None, risk: float | None, confidence: float | None) -> RiskGuarantee:
    """Return the policy's guarantee on the route; the options must agree with it."""
    guarantee = find_guarantee(policy.plan(route))
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


# -- rows --------------------------------------------------------------------------------------


def _rows_to_ask(sources: Sequence[DataSource], guard: Guard) -> tuple[list[tuple[str, Row]], list[str]]:
    rows, notes = fresh_rows(sources, guard.scorer)
    rows, others = of_this_model(rows, guard.engine.model.name)
    notes += [f"{count} responses of another model, {name}" for name, count in others.items()]
    notes += [f"{file}:{row.line}: {row.reason}" for file, row in list_bad_rows(sources)]
    return rows, notes


def _skipped(rows: Sequence[tuple[str, Row]], journal: TrialJournal) -> list[str]:
    """Return the questions that could not be asked."""
    records = (journal.row(row_key(dataset, row)) for dataset, row in rows)
    return [f"{record.key}: {record.reason}" for record in records if isinstance(record, Skipped)]
