"""Ask a model labelled questions once, and keep every answer with its signals.

The file is a SQLite journal with one transaction per question. A run can be killed at any moment and resumes without
asking anything twice. Fitting and evaluation read from this file.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from guard.data.further_calls import FurtherCalls, FurtherSignals, ask_further
from guard.data.header_journal import HeaderJournal
from guard.data.in_order import in_order
from guard.data.logit_lens import LENS_SIGNALS, Lens, Residual, ResidualObserver
from guard.data.prompts import completion_prompt, question_prompt, with_default_options
from guard.data.questions import LabelledResponse, Question, Row
from guard.data.sqlite_journal import ShardHeader, asked_digest, row_key
from guard.engines.protocols import Engine, Observer
from guard.errors import CaptureError, InputError, PromptTooLongError
from guard.records import (
    CapturePoint,
    FinishReason,
    Floats,
    Generation,
    Limits,
    ModelInfo,
    Prompt,
    Signals,
    Signature,
)
from guard.scoring.signature import ACTIVATION_TOKENS, AGGREGATES, SignatureObserver

#: Format version of a journal's tables.
_FORMAT = "5"
_SCHEMA = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, dataset TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL,
    skipped TEXT, prompt_tokens INTEGER, seconds REAL,
    logprobs BLOB, entropies BLOB, margins BLOB, maps BLOB, norms BLOB, activations BLOB, lens BLOB, path BLOB,
    samples TEXT, asked TEXT NOT NULL, finish_reason TEXT, p_true REAL, rauq REAL
)"""


_TEMPLATE_DATE = "model.template_date"


@dataclass(frozen=True, slots=True)
class Run:
    """The settings that make two runs comparable; a journal belongs to one run.

    Attributes:
        model: the engine's model.
        capture_point: where activations are read.
        system: system message of every question; empty for none.
        max_tokens: limit of every answer.
        temperatures: of the signatures.
        stop: strings that end an answer, for base models, which do not stop by themselves.
        template_options: variables of the model's chat template, the same for every question.
        completion: ask by a raw text with solved examples instead of chat messages (see
            `guard.data.prompts.completion_prompt`); for models without a chat template.
    """

    model: ModelInfo
    capture_point: CapturePoint
    system: str
    max_tokens: int
    temperatures: tuple[float, ...] = (1.0,)
    stop: tuple[str, ...] = ()
    completion: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """Return the settings, flat, as stored in a journal's header."""
        flat = {**asdict(self), **{f"model.{key}": value for key, value in asdict(self.model).items()}}
        del flat["model"], flat["model.name"], flat["model.context_tokens"]
        for name in (_TEMPLATE_DATE, "model.served"):
            if flat[name] is None:  # as with most templates and models
                del flat[name]
        return {key: json.dumps(value) for key, value in flat.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One question, the model's answer to it, and the signals of the pass.

    Attributes:
        key: ``dataset/id``, unique in a journal.
        dataset: name of the data file.
        question: the question's text.
        answer: the model's (or the given) answer.
        signals: log-probabilities, entropies, margins, signature.
        seconds: time the answer took.
        residual: signals of the residual stream; None unless it was captured (``mlp+block``).
        further: what came of the calls that followed the answer.
        prompt_tokens: tokens of the prompt; 0 if unknown.
        asked: digest of what the model was asked; see `asked_digest`.
        finish_reason: how the answer ended; ``length`` means that it is truncated. Truncated answers are labelled too.
    """

    key: str
    dataset: str
    question: str
    answer: str
    signals: Signals
    seconds: float
    residual: Residual | None = None
    further: FurtherSignals = field(default_factory=FurtherSignals)
    prompt_tokens: int = 0
    asked: str = ""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that the model could not be asked, the reason, and the digest of its prompt."""

    key: str
    reason: str
    asked: str = ""


class Journal(HeaderJournal):
    """The answers of one run or of one shard of it, on disk. Use as a context manager."""

    TABLES = ("header", "answers")
    SCHEMA = _SCHEMA

    def __init__(self, path: str | Path, run: Run, shard: ShardHeader | None = None) -> None:
        super().__init__(path, {"journal": _FORMAT, **run.fields()}, shard)
        self._run = run

    def __len__(self) -> int:
        with self._translated():
            count: int = self._db.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    @property
    def run(self) -> Run:
        """The run that the answers belong to."""
        return self._run

    def answered(self) -> set[str]:
        """Return the keys of the rows that have an answer; skipped ones are asked again."""
        with self._translated():
            return {key for (key,) in self._db.execute("SELECT key FROM answers WHERE skipped IS NULL")}

    def check_questions(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Refuse rows whose key belongs to an answer to another question.

        Raises:
            InputError: a row differs from what was asked under its key.
        """
        with self._translated():
            stored = dict(self._db.execute("SELECT key, asked FROM answers"))
        self._check_asked(rows, stored)

    def append(self, record: Record) -> None:
        """Store an answer; it is safe on disk when this returns."""
        signals, signature = record.signals, record.signals.signature
        blobs = [signals.logprobs, signals.entropies, signals.margins, signature.maps, signature.norms]
        residual, further = record.residual, record.further
        self._insert(
            record.key,
            record.dataset,
            record.question,
            record.answer,
            None,
            record.prompt_tokens,
            record.seconds,
            *(blob.astype("<f4").tobytes() for blob in blobs),
            to_float16(signature.activations).tobytes(),
            None if residual is None else residual.lens.astype("<f4").tobytes(),
            None if residual is None else residual.path.astype("<f4").tobytes(),
            json.dumps(further.samples) if further.samples else None,
            record.asked,
            record.finish_reason,
            further.p_true,
            further.rauq,
        )

    def skip(self, skipped: Skipped, *, dataset: str) -> None:
        """Store the reason why the model cannot be asked a row."""
        self._insert(skipped.key, dataset, "", "", skipped.reason, *[None] * 11, skipped.asked, *[None] * 3)

    def record(self, key: str) -> Record | Skipped | None:
        """Return one row's record or the reason for skipping it; None if it is not in the journal."""
        with self._translated():
            row = self._db.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        try:
            return self._read(row) if row else None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"'{self.path}' is damaged", why=f"the signals of '{key}': {error}", fix="Delete it to start again"
            ) from error

    def skipped(self, keys: Collection[str]) -> list[Skipped]:
        """Return the skipped ones of these rows, in the order in which they were skipped."""
        with self._translated():
            found = self._db.execute("SELECT key, skipped, asked FROM answers WHERE skipped IS NOT NULL").fetchall()
        return [Skipped(*each) for each in found if each[0] in keys]

    def records(self, keys: Sequence[str]) -> list[Record]:
        """Return the records of these rows in this order, without skipped and unknown ones."""
        found = (self.record(key) for key in keys)
        return [record for record in found if isinstance(record, Record)]

    def _insert(self, *values: Any) -> None:
        with self._translated():
            self._db.execute(f"INSERT OR REPLACE INTO answers VALUES ({','.join('?' * 20)})", values)

    def _read(self, row: tuple[Any, ...]) -> Record | Skipped:
        key, dataset, question, answer, skipped, prompt_tokens, seconds, *blobs = row[:-5]
        samples, asked, finish_reason, true, attention = row[-5:]
        if skipped is not None:
            return Skipped(key, skipped, asked)
        texts = all(isinstance(text, str) for text in (key, dataset, question, answer))
        if not texts or not isinstance(seconds, float) or not isinstance(prompt_tokens, int):
            raise ValueError("a value is of the wrong type")
        if finish_reason not in (None, *get_args(FinishReason)):
            raise ValueError("its finish reason is not known")
        if true is not None and not 0 <= true <= 1:
            raise ValueError("its P(true) is no probability")
        if attention is not None and not math.isfinite(attention):
            raise ValueError("its RAUQ is no finite number")
        logprobs, entropies, margins, maps, norms = (np.frombuffer(blob, "<f4") for blob in blobs[:5])
        layers, temperatures, width = self._run.model.layers, self._run.temperatures, self._run.model.width
        activations = np.frombuffer(blobs[5], "<f2").astype(np.float32)
        signature = Signature(
            maps=maps.reshape(len(temperatures), len(AGGREGATES), layers, layers),
            norms=norms.reshape(len(AGGREGATES), layers),
            activations=activations.reshape(len(ACTIVATION_TOKENS), layers, width),
            temperatures=temperatures,
            aggregates=AGGREGATES,
            tokens=len(logprobs),
        )
        lens, path = (None if blob is None else np.frombuffer(blob, "<f4") for blob in blobs[6:])
        residual = None
        if lens is not None and path is not None:
            residual = Residual(lens.reshape(2, len(LENS_SIGNALS), layers), path.reshape(2, 2, layers))
        return Record(
            key=key,
            dataset=dataset,
            question=question,
            answer=answer,
            signals=Signals(logprobs, entropies, margins, signature),
            seconds=seconds,
            residual=residual,
            further=FurtherSignals(_texts(samples), true, attention),
            prompt_tokens=prompt_tokens,
            asked=asked,
            finish_reason=finish_reason,
        )


def _texts(stored: str | None) -> tuple[str, ...]:
    texts = json.loads(stored) if stored else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("the samples are no texts")
    return tuple(texts)


def of_this_model(rows: Sequence[tuple[str, Row]], model: str) -> tuple[list[tuple[str, Row]], Counter[str]]:
    """Return the rows without other models' responses, and the number of these by model.

    A scorer must learn from its own model's errors only.
    """
    others = Counter(
        row.model for _, row in rows if isinstance(row, LabelledResponse) and row.model not in (None, model)
    )
    kept = [pair for pair in rows if not isinstance(pair[1], LabelledResponse) or pair[1].model in (None, model)]
    return kept, Counter({name: count for name, count in others.items() if name is not None})


def find_template_date(journal: str | Path) -> str | None:
    """Return the date in the prompts of a journal; None if the chat template writes none or there is no journal.

    A run that is resumed on another day uses the same prompts.
    """
    try:
        # Opened for writing although nothing is written: a read-only connection leaves files behind.
        with contextlib.closing(sqlite3.connect(f"{Path(journal).resolve().as_uri()}?mode=rw", uri=True)) as db:
            found = db.execute("SELECT value FROM header WHERE name = ?", (_TEMPLATE_DATE,)).fetchone()
        return str(json.loads(found[0])) if found else None
    except (sqlite3.Error, ValueError, TypeError):  # its problems are reported when it is opened
        return None


def resumed_options(options: Mapping[str, Any], journal: str | Path) -> dict[str, Any]:
    """Return options for loading a model, with the date in the prompts of a journal where it has one."""
    found = find_template_date(journal)
    return {**options, "template_date": found} if found else {**options}


def record_rows(
    engine: Engine,
    rows: Sequence[tuple[str, Row]],
    journal: Journal,
    *,
    run: Run,
    lens: Lens | None = None,
    sampled_rows: int = 0,
    calls: FurtherCalls = FurtherCalls(),  # noqa: B008 - frozen
    only: Collection[str] | None = None,
) -> Iterator[Record | Skipped]:
    """Ask the model every row that has no answer in the journal; yield each row once it is stored.

    An engine that answers several requests at the same time is asked several rows at once; they are stored in order.

    Args:
        engine: a loaded engine; its model is the run's.
        rows: pairs of data set name and row.
        journal: where answers are kept.
        run: settings of the run.
        lens: reads the residual stream, for an engine whose capture point is ``mlp+block``.
        sampled_rows: only the first questions of each data set, this many, get further samples.
        calls: that follow each answer.
        only: keys of the rows to ask, such as those of a shard; None for all.

    Raises:
        InputError: the journal has an answer to another question under a row's key.
    """
    journal.check_questions(rows)
    wanted = _wanted(rows, journal.answered(), calls, sampled_rows=sampled_rows, only=only)
    # The lens multiplies by the whole vocabulary: in several threads at once that takes longer, not shorter.
    at_once = 1 if lens is not None else getattr(engine, "at_once", 1)

    def asked(each: _Wanted, cancel: threading.Event) -> Record | Skipped:
        return _record_row(engine, each, run, lens, cancel)

    with contextlib.closing(in_order(asked, wanted, at_once=at_once)) as found:
        for each, result in zip(wanted, found, strict=True):
            if isinstance(result, Record):
                journal.append(result)
            else:
                journal.skip(result, dataset=each.dataset)
            yield result


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A row without an answer, and the calls that follow its answer."""

    dataset: str
    row: Row
    calls: FurtherCalls


def _wanted(
    rows: Sequence[tuple[str, Row]],
    known: set[str],
    calls: FurtherCalls,
    *,
    sampled_rows: int,
    only: Collection[str] | None,
) -> list[_Wanted]:
    seen: Counter[str] = Counter()
    wanted = {}
    for dataset, row in rows:
        seen[dataset] += 1
        key = row_key(dataset, row)
        if key not in known and key not in wanted and (only is None or key in only):
            more = calls.samples if seen[dataset] <= sampled_rows else 0
            wanted[key] = _Wanted(dataset, row, replace(calls, samples=more))
    return [*wanted.values()]


def _record_row(
    engine: Engine, each: _Wanted, run: Run, lens: Lens | None, cancel: threading.Event
) -> Record | Skipped:
    row, key = each.row, row_key(each.dataset, each.row)
    try:
        asked = _ask(engine, row, run, lens, cancel)
        prompt, limits = prompt_of_row(row, run)[0], Limits(max_tokens=run.max_tokens, stop=run.stop)
        further = ask_further(engine, row, prompt, asked.generation, each.calls, limits=limits, cancel=cancel)
    except (PromptTooLongError, CaptureError) as error:
        return Skipped(key, str(error), asked_digest(row))
    return Record(
        key=key,
        dataset=each.dataset,
        question=row.question if isinstance(row, Question) else row.prompt.question,
        answer=asked.generation.text,
        signals=asked.signals,
        seconds=asked.generation.seconds,
        residual=asked.residual,
        further=further,
        prompt_tokens=asked.generation.prompt_tokens,
        asked=asked_digest(row),
        finish_reason=asked.generation.finish_reason,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    generation: Generation
    signals: Signals
    residual: Residual | None


def _ask(engine: Engine, row: Row, run: Run, lens: Lens | None, cancel: threading.Event) -> _Recorded:
    signature = SignatureObserver(temperatures=run.temperatures)
    observer: Observer = signature
    residual = None
    if lens is not None:
        observer = residual = ResidualObserver(signature, layers=run.model.layers)
    prompt, completion = prompt_of_row(row, run)
    limits = Limits(max_tokens=run.max_tokens, stop=run.stop)
    generation = engine.generate(prompt, limits=limits, observer=observer, cancel=cancel, completion=completion)
    if generation.capture_error:
        raise CaptureError(generation.capture_error)
    signals = generation.signals(signature.signature())
    ends = (generation.answer_token_ids[0], generation.answer_token_ids[-1])
    seen = residual.residual(lens, tokens=ends) if residual is not None and lens is not None else None
    return _Recorded(generation, signals, seen)


def prompt_of_row(row: Row, run: Run) -> tuple[Prompt, str | None]:
    """Return the prompt of a row, and the answer if it is given."""
    if not isinstance(row, Question):
        return with_default_options(row.prompt, run.template_options), row.response
    if run.completion:
        return completion_prompt(row), None
    return question_prompt(row, system=run.system, template_options=run.template_options), None


def to_float16(activations: Floats) -> NDArray[np.float16]:
    """Convert to half precision; a massive activation beyond its range becomes the largest value."""
    largest = np.finfo(np.float16).max
    return np.clip(activations, -largest, largest).astype("<f2")
