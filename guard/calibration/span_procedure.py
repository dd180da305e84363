"""From labelled spans to a scorer that scores spans: ask, label, fit, save."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guard import engines
from guard.calibration.kept_answers import KeptAnswers
from guard.calibration.span_fit import SpanExamples, fit_span_model
from guard.data.labelled_spans import SpanRow, file_sha256, read_span_rows
from guard.data.progress import Progress, ProgressCallback, ignore_progress
from guard.data.prompts import with_default_options
from guard.data.recording import Run, resumed_options
from guard.engines.asked import RequestEngine
from guard.errors import InputError, PromptTooLongError, missing_extra
from guard.files.output_file import check_writable, choose_journal
from guard.records import Limits, Prompt
from guard.runtime.sources import find_capture_point, loading_options
from guard.scoring.provenance import DataSet
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.scorer_file import SpanModel
from guard.scoring.span_scores import answer_spans
from guard.scoring.spans import RULES, Extent, can_find_spans

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
    journal: str | Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> SpanCalibration:
    """Add a model of spans to a scorer: ask questions, label the answers' spans, fit, and test on held-out answers.

    ``guard calibrate --spans FILE --scorer SCORER`` calls this function. The scorer's other scores stay; its checksum
    changes, so certify after this. Answers are kept in a journal, one transaction per question, so that an interrupted
    run can be resumed without asking anything twice.

    Args:
        spans: JSON Lines of labelled spans (see `guard.data.labelled_spans`).
        scorer: a scorer of the model: a file, or a name on the shelf.
        out: the scorer file to write, JSON.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``.
        system: system message of every question; empty for none.
        max_tokens: token limit of an answer.
        journal: the file for answers; by default ``OUT.journal``.
        progress: called with a `guard.Progress` before the first question and after each answer.

    Raises:
        InputError: data, output, options or journal cannot be used, the scorer is of a base model, or a response is
            another model's.
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
    kept = choose_journal(out, journal)
    options = resumed_options(loading_options(fitted, engine_options), kept)
    with engines.load_engine(model, engine=engine or fitted.artefact.binding.engine, **options) as loaded:
        point = find_capture_point(loaded)
        fitted.for_model(loaded.model, point)
        check_own_responses(rows, loaded.model.name)
        template_options = fitted.artefact.prompting.template_options
        run = Run(loaded.model, point, system, max_tokens, template_options=template_options)
        found = label_answers(loaded, rows, run=run, journal=kept, progress=progress)
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
    engine: RequestEngine, rows: Sequence[SpanRow], *, run: Run, journal: Path, progress: ProgressCallback
) -> LabelledAnswers:
    """Ask a loaded model what the journal does not have, and return the labelled spans of all answers.

    Args:
        engine: the model.
        rows: the questions, with their labels.
        run: how they are asked.
        journal: where the answers are kept.
        progress: as for `calibrate_spans`.

    Raises:
        InputError: the journal belongs to another run, or is damaged.
    """
    columns, wrong, answer = [], [], []
    unlabelled = skipped = 0
    with KeptAnswers(journal, {"journal": "spans", "rules": str(RULES), **run.fields()}) as kept:
        asked = list(_asked(engine, rows, run, kept, progress))
    for number, (row, spans) in enumerate(zip(rows, asked, strict=True)):
        if spans is None:
            skipped += 1
            continue
        for label, values in zip(row.labels(spans.text, spans.places), spans.columns, strict=True):
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


def check_own_responses(rows: Sequence[SpanRow], name: str) -> None:
    """Refuse the responses of other models: this one would read them as if it had written them.

    Raises:
        InputError: a response is another model's.
    """
    if others := sorted({row.model for row in rows if row.model not in (None, name)}, key=str):
        raise InputError(
            f"The labelled spans have responses of another model: {', '.join(map(str, others))}",
            why=f"a scorer learns from the answers of its own model, and this is {name}",
            fix=f"Write its own: guard review export --spans --model {name}",
        )


def fit_to(found: LabelledAnswers, spans: str | Path, *, max_tokens: int) -> SpanModel:
    """Fit a model of spans to labelled answers; errors as for `fit_span_model`."""
    examples, path = found.examples, Path(spans)
    data = DataSet(name=path.name, sha256=file_sha256(path), rows=len(examples), wrong=int(examples.wrong.sum()))
    return fit_span_model(examples, data=[data], max_tokens=max_tokens)


def with_span_model(scorer: Scorer, model: SpanModel) -> Scorer:
    """Return a scorer with a model of spans."""
    return Scorer(scorer.artefact.model_copy(update={"spans": model}), calibrated=scorer.calibrated)


@dataclass(frozen=True, slots=True)
class _KeptSpans:
    """What is kept of an answer: its text, and the places and columns of its spans."""

    text: str
    places: tuple[Extent, ...]
    columns: tuple[tuple[float, ...], ...]

    @classmethod
    def read(cls, content: Mapping[str, Any], journal: KeptAnswers) -> _KeptSpans:
        """Read what a journal has; raise InputError where it is damaged."""
        try:
            places = tuple((int(start), int(end)) for start, end in content["places"])
            columns = tuple((float(a), float(b), float(c)) for a, b, c in content["columns"])
            return cls(str(content["text"]), places, columns)
        except (KeyError, TypeError, ValueError) as error:
            raise journal.damaged(error) from error


def _asked(
    engine: RequestEngine, rows: Sequence[SpanRow], run: Run, kept: KeptAnswers, progress: ProgressCallback
) -> Iterator[_KeptSpans | None]:
    """Yield the spans of each answer, asked or given; None where the prompt is too long or the text differs."""
    progress(Progress("asking", 0, len(rows)))
    for done, row in enumerate(rows, start=1):
        key = hashlib.sha256(json.dumps(_identity(row)).encode("utf-8", "surrogatepass")).hexdigest()
        content = kept.content(key)
        if content is None and (content := _ask(engine, row, run)) is not None:
            kept.keep(key, content)
        yield None if content is None else _KeptSpans.read(content, kept)
        progress(Progress("asking", done, len(rows)))


def _identity(row: SpanRow) -> list[Any]:
    """Return what tells an answer from the others of a run."""
    if (prompt := row.prompt) is None:
        return [row.question, row.response]
    asked = [prompt.messages, prompt.text, prompt.tools, dict(prompt.template_options), prompt.plain]
    return [*asked, row.response]


def _prompt(row: SpanRow, run: Run) -> Prompt:
    if row.prompt is not None:
        return with_default_options(row.prompt, run.template_options)
    return Prompt.chat(row.question, system=run.system or None, template_options=run.template_options)


def _ask(engine: RequestEngine, row: SpanRow, run: Run) -> dict[str, Any] | None:
    prompt = _prompt(row, run)
    try:
        generation = engine.generate(prompt, limits=Limits(max_tokens=run.max_tokens), completion=row.response)
    except PromptTooLongError:
        return None
    spans = answer_spans(generation, prompt)
    if spans is None:
        return None
    return {"text": generation.text, "places": spans.places, "columns": spans.columns.tolist()}
