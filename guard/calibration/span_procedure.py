"""From labelled spans to a scorer that scores spans: ask, label, fit, save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guard import engines
from guard.calibration.span_fit import SpanExamples, fit_span_model
from guard.data.labelled_spans import SpanRow, file_sha256, read_span_rows
from guard.data.progress import Progress, ProgressCallback, ignore_progress
from guard.engines.asked import RequestEngine
from guard.errors import InputError, PromptTooLongError, missing_extra
from guard.files.output_file import check_writable
from guard.records import Generation, Limits, Prompt
from guard.runtime.sources import find_capture_point, loading_options
from guard.scoring.provenance import DataSet
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.scorer_file import SpanModel
from guard.scoring.span_scores import answer_spans
from guard.scoring.spans import can_find_spans

#: Token limit of an answer with spans.
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SpanCalibration:
    """A scorer that scores spans.

    Attributes:
        out: the scorer file.
        scorer: with its model of spans, ``scorer.artefact.spans``.
        unlabelled: number of spans that had no label.
        skipped: number of questions that could not be asked, as where the prompt exceeds the context.
    """

    out: Path
    scorer: Scorer
    unlabelled: int
    skipped: int


@dataclass(frozen=True, slots=True, eq=False)
class LabelledAnswers:
    """The spans of the answers to a file of questions."""

    examples: SpanExamples
    unlabelled: int
    skipped: int


def calibrate_spans(
    spans: str | Path,
    *,
    scorer: str | Path,
    out: str | Path,
    model: str | Path = engines.EMBEDDED,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    system: str = "",
    max_tokens: int = MAX_TOKENS,
    progress: ProgressCallback = ignore_progress,
) -> SpanCalibration:
    """Add a model of spans to a scorer: ask questions, label the answers' spans, fit, and test on held-out answers.

    ``guard calibrate --spans FILE --scorer SCORER`` calls this function. The scorer's other scores stay; its checksum
    changes, so certify after this. The answers are not kept: an interrupted run begins again.

    Args:
        spans: JSON Lines of labelled spans (see `guard.data.labelled_spans`).
        scorer: a scorer of the model: a file, or a name on the shelf.
        out: the scorer file to write, JSON.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``.
        system: system message of every question; empty for none.
        max_tokens: token limit of an answer.
        progress: called with a `guard.Progress` before the first question and after each answer.

    Raises:
        InputError: data, output or options cannot be used, or the scorer is of a base model.
        ScorerMismatchError: the scorer was fitted on another model.
        CalibrationError: there are too few labels, or they show no signal.
        MissingExtraError: the extra ``spans`` is not installed.

    Examples:
        >>> import guard
        >>> guard.calibrate_spans("spans.jsonl", scorer="s.json", out="t.json", model="m.gguf")  # doctest: +SKIP
        >>> guard.calibrate_spans("no.jsonl", scorer="s.json", out="t.json")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    rows, out = check_span_rows(spans), Path(out)
    check_writable(out, "scorer")
    fitted = load_scorer(scorer)
    if fitted.artefact.prompting.completion:
        raise InputError("Spans of a base model's answers cannot be scored", why="its answers are short continuations")
    options = loading_options(fitted, engine_options)
    with engines.load_engine(model, engine=engine or fitted.artefact.binding.engine, **options) as loaded:
        fitted.for_model(loaded.model, find_capture_point(loaded))
        template_options = fitted.artefact.prompting.template_options
        found = label_answers(
            loaded,
            rows,
            system=system,
            template_options=template_options,
            max_tokens=max_tokens,
            progress=progress,
        )
    made = with_span_model(fitted, fit_to(found, spans, max_tokens=max_tokens))
    made.save(out)
    return SpanCalibration(out, made, found.unlabelled, found.skipped)


def check_span_rows(spans: str | Path) -> tuple[SpanRow, ...]:
    """Read labelled spans, and check that spans can be found, before a model is loaded; errors as above."""
    rows = read_span_rows(spans)
    if not can_find_spans():
        raise missing_extra("sentencex", "spans")
    return rows


def label_answers(
    engine: RequestEngine,
    rows: Sequence[SpanRow],
    *,
    system: str,
    template_options: Mapping[str, Any],
    max_tokens: int,
    progress: ProgressCallback,
) -> LabelledAnswers:
    """Ask a loaded model, and return the labelled spans of its answers; arguments as for `calibrate_spans`."""
    columns, wrong, answer = [], [], []
    unlabelled = skipped = 0
    asked = _generations(engine, rows, system, template_options, Limits(max_tokens=max_tokens), progress)
    for number, (row, prompt, generation) in enumerate(asked):
        spans = answer_spans(generation, prompt) if generation else None
        if spans is None or generation is None:
            skipped += 1
            continue
        for label, values in zip(row.labels(generation.text, spans.places), spans.columns, strict=True):
            if label is None:
                unlabelled += 1
                continue
            columns.append(values)
            wrong.append(label)
            answer.append(str(number))
    examples = SpanExamples(
        np.array(columns, np.float64).reshape(len(columns), 3), np.array(wrong, np.bool_), np.array(answer, np.str_)
    )
    return LabelledAnswers(examples, unlabelled, skipped)


def fit_to(found: LabelledAnswers, spans: str | Path, *, max_tokens: int) -> SpanModel:
    """Fit a model of spans to labelled answers; errors as for `fit_span_model`."""
    examples, path = found.examples, Path(spans)
    data = DataSet(name=path.name, sha256=file_sha256(path), rows=len(examples), wrong=int(examples.wrong.sum()))
    return fit_span_model(examples, data=[data], max_tokens=max_tokens)


def with_span_model(scorer: Scorer, model: SpanModel) -> Scorer:
    """Return a scorer with a model of spans."""
    return Scorer(scorer.artefact.model_copy(update={"spans": model}), calibrated=scorer.calibrated)


def _generations(
    engine: RequestEngine,
    rows: Sequence[SpanRow],
    system: str,
    template_options: Mapping[str, Any],
    limits: Limits,
    progress: ProgressCallback,
) -> Iterator[tuple[SpanRow, Prompt, Generation | None]]:
    """Yield each row with the model's answer, or the given one; None where the prompt is too long."""
    progress(Progress("asking", 0, len(rows)))
    for done, row in enumerate(rows, start=1):
        prompt = Prompt.chat(row.question, system=system or None, template_options=template_options)
        try:
            yield row, prompt, engine.generate(prompt, limits=limits, completion=row.response)
        except PromptTooLongError:
            yield row, prompt, None
        progress(Progress("asking", done, len(rows)))
