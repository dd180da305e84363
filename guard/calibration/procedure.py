"""Makes a scorer file from labelled questions: ask, grade, split, fit, test, save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from guard import engines
from guard.calibration.scorer_fit import (
    FittedScorer,
    Labelled,
    check_enough_rows,
    check_parts,
    fit_scorer,
    split_labelled,
)
from guard.calibration.span_procedure import (
    MAX_TOKENS,
    check_own_responses,
    check_span_rows,
    fit_to,
    label_answers,
    with_span_model,
)
from guard.checked import checked_choice, checked_seed
from guard.data.graders import Grader, choose_grader
from guard.data.progress import ProgressCallback, ask_with_progress, ignore_progress
from guard.data.question_sets import DataSpecs, data_sets, list_bad_rows, list_rows, read_sets
from guard.data.questions import BadRow, Row
from guard.data.recording import Journal, Skipped, find_template_date, of_this_model, record_rows
from guard.data.run_settings import how_to_ask, settings_of_run
from guard.data.sets import DataSource, OnBad
from guard.data.sqlite_journal import row_key
from guard.files.output_file import check_writable, choose_journal
from guard.runtime.sources import find_capture_point


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A scorer with its metrics on held-out questions, and the rows that were left out.

    Attributes:
        out: the scorer file.
        fitted: the scorer with its metrics on the test split.
        bad_rows: rows that cannot be used, each with its file; only with ``on_bad="skip"``.
        skipped: rows that could not be asked, such as prompts that exceed the context.
        other_models: number of given responses that belong to another model, by that model's name.
        truncated: number of labelled answers that were truncated. They are labelled like the others.
    """

    out: Path
    fitted: FittedScorer
    bad_rows: tuple[tuple[Path, BadRow], ...]
    skipped: tuple[Skipped, ...]
    other_models: Mapping[str, int]
    truncated: int


def calibrate(
    data: DataSpecs,
    *,
    out: str | Path,
    model: str | Path = engines.EMBEDDED,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    grader: str | Grader | None = None,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    seed: int = 0,
    system: str | None = None,
    max_tokens: int | None = None,
    template_options: Mapping[str, Any] | None = None,
    tau: Sequence[float] = (1.0,),
    capture_point: Literal["mlp", "block"] = "mlp",
    journal: str | Path | None = None,
    spans: str | Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> CalibrationResult:
    """Ask labelled questions, fit a scorer on the answers, and test it on held-out questions.

    ``guard calibrate`` calls this function: the same arguments give the same file, byte for byte. Answers are stored
    in a journal, one transaction per question, so that an interrupted run can be resumed without asking anything twice.

    Args:
        data: one or several JSON Lines files or named sets (``NAME@FOLDER``, ``hub:NAME``).
        out: the scorer file to write, JSON.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``, such as ``{"threads": 4, "context_tokens": 8192}``.
        without: parts of guard's own score to leave out, such as ``map`` or ``activations``.
        grader: ``text``, ``number``, ``choice``, ``regex``, ``module:function`` or a function of question and answer;
            by default each question's own.
        on_bad: ``stop`` raises if a row cannot be used, ``skip`` leaves the row out.
        limit: maximal number of rows of each data set, drawn by ``seed``.
        seed: seed of samples, splits and trees, from 0 to 2**31 - 1.
        system: system message of every question, empty for none; by default that of the data sets.
        max_tokens: token limit of an answer; by default that of the data sets, mostly 32.
        template_options: variables of the model's chat template, such as ``{"enable_thinking": False}``.
        tau: temperatures of the signature's softmax.
        capture_point: where activations are read, ``mlp`` or ``block``.
        journal: the file for answers; by default ``OUT.journal``. Those of ``spans`` are kept beside it, in a file
            whose name ends in ``.spans``.
        spans: JSON Lines of labelled spans (see `guard.data.labelled_spans`), on which a model of spans is fitted as
            well. Their questions are asked without a system message.
        progress: called with a `guard.Progress` before the first question and after each answer.

    Returns:
        the scorer with its metrics on the test split, and the rows that were left out.

    Raises:
        InputError: data, output, options or journal cannot be used.
        CalibrationError: there are too few rows or labels, or guard's own score carries no signal.
        ModelFileError, EngineError: the model cannot be loaded or fails.

    Examples:
        >>> import guard
        >>> result = guard.calibrate("questions.jsonl", out="scorer.json", model="model.gguf")  # doctest: +SKIP
        >>> result.fitted.metrics["guard"].auroc  # doctest: +SKIP
        0.87
        >>> guard.calibrate("no.jsonl", out="scorer.json")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out = Path(out)
    check_parts(without)
    check_writable(out, "scorer")
    grade, _ = choose_grader(grader)
    checked_choice("capture_point", capture_point, ("mlp", "block"))
    checked_seed(seed)
    sources = read_sets(data, on_bad=on_bad, limit=limit, seed=seed)
    if max_tokens is None or system is None:
        how_to_ask(sources, system=system, max_tokens=max_tokens)  # fail before the model is loaded
    check_enough_rows([row for _, row in list_rows(sources)], seed=seed)
    span_rows = () if spans is None else check_span_rows(spans)
    kept = choose_journal(out, journal)
    loading = {**(engine_options or {}), "template_date": find_template_date(kept)}
    with engines.load_engine(model, engine=engine, capture_point=capture_point, **loading) as loaded:
        rows, others = _own_rows(sources, loaded.model.name, seed)
        check_own_responses(span_rows, loaded.model.name)
        run = settings_of_run(
            loaded,
            sources,
            system=system,
            max_tokens=max_tokens,
            tau=tau,
            completion=None,
            template_options=template_options,
            capture_point=find_capture_point(loaded),
        )
        with Journal(kept, run) as answers:
            asked = record_rows(loaded, rows, answers, run=run)
            ask_with_progress(asked, rows=rows, known=answers.answered(), progress=progress)
            skipped = answers.skipped({row_key(dataset, row) for dataset, row in rows})
            splits = split_labelled(rows, answers, grade=grade, seed=seed)
        found = spans and label_answers(
            loaded,
            span_rows,
            run=replace(run, system="", max_tokens=MAX_TOKENS),
            journal=kept.with_name(f"{kept.name}.spans"),
            progress=progress,
        )
    labelled = [each for members in splits.values() for each in members]
    summaries = data_sets(sources, ((each.record.dataset, each.wrong) for each in labelled))
    fitted = fit_scorer(splits, run=run, data=summaries, without=tuple(without), seed=seed)
    if spans and found:
        span_model = fit_to(found, spans, max_tokens=MAX_TOKENS)
        fitted = replace(fitted, scorer=with_span_model(fitted.scorer, span_model))
    fitted.scorer.save(out)
    return CalibrationResult(out, fitted, list_bad_rows(sources), tuple(skipped), others, _truncated(labelled))


def _own_rows(sources: Sequence[DataSource], model: str, seed: int) -> tuple[list[tuple[str, Row]], Counter[str]]:
    """Return the rows without responses of other models, if enough are left."""
    rows, others = of_this_model(list_rows(sources), model)
    if others:
        check_enough_rows([row for _, row in rows], seed=seed)
    return rows, others


def _truncated(labelled: Sequence[Labelled]) -> int:
    return sum(each.record.finish_reason == "length" for each in labelled)
