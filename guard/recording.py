"""Put labelled questions to a model once, and keep every answer with its signals.

The file is a SQLite journal: one transaction a question, so that a run can be killed at any moment
and goes on where it was, without asking anything twice. All fitting and evaluating reads from it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from guard.backends.base import Engine
from guard.errors import CaptureError, InputError, PromptTooLongError
from guard.questions import Question, Row, question_prompt
from guard.records import (
    CapturePoint,
    Floats,
    Generation,
    Limits,
    ModelInfo,
    Prompt,
    Sampling,
    Signals,
    Signature,
)
from guard.signature import AGGREGATES, SignatureObserver

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS header (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, dataset TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL,
    skipped TEXT, prompt_tokens INTEGER, seconds REAL,
    logprobs BLOB, entropies BLOB, margins BLOB, maps BLOB, norms BLOB, first BLOB, last BLOB
)""",
)


@dataclass(frozen=True, slots=True)
class Run:
    """What makes two runs comparable; a journal belongs to one of these.

    Attributes:
        model: the engine's model.
        capture_point: where activations are read.
        system: system message of every question; empty for none.
        max_tokens: limit of every answer.
        temperatures: of the signatures.
        activations: whether the first and last token's raw activations are kept too (for probes).
    """

    model: ModelInfo
    capture_point: CapturePoint
    system: str
    max_tokens: int
    temperatures: tuple[float, ...] = (1.0,)
    activations: bool = False

    def fields(self) -> dict[str, str]:
        """Flat, as stored in a journal's header."""
        flat = {**asdict(self), **{f"model.{key}": value for key, value in asdict(self.model).items()}}
        del flat["model"], flat["model.name"], flat["model.context_tokens"]
        return {key: json.dumps(value) for key, value in flat.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One question, the model's answer to it, and what the layers said meanwhile.

    Attributes:
        key: ``dataset/id``, unique in a journal.
        dataset: name of the data file.
        question: the question's text.
        answer: the model's (or the given) answer.
        signals: log-probabilities, entropies, margins, signature.
        first, last: activations of the first and last token, shape (L, D) float16, or None.
        seconds: time the answer took.
    """

    key: str
    dataset: str
    question: str
    answer: str
    signals: Signals
    first: NDArray[np.float16] | None
    last: NDArray[np.float16] | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that could not be put to the model, and why."""

    key: str
    reason: str


class Journal:
    """The answers of one run, on disk. Use as a context manager."""

    def __init__(self, path: str | Path, run: Run) -> None:
        self.path = Path(path)
        self._run = run
        with self._translated():
            self._db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            with self._translated():
                self._set_up()
            self._check_header()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        with self._translated():
            count: int = self._db.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    def keys(self) -> set[str]:
        """Keys of all rows that were put to the model, skipped ones included."""
        with self._translated():
            return {key for (key,) in self._db.execute("SELECT key FROM answers")}

    def append(self, record: Record, *, prompt_tokens: int) -> None:
        """Keep an answer; it is safe on disk when this returns."""
        signals, signature = record.signals, record.signals.signature
        blobs = [signals.logprobs, signals.entropies, signals.margins, signature.maps, signature.norms]
        self._insert(
            record.key,
            record.dataset,
            record.question,
            record.answer,
            None,
            prompt_tokens,
            record.seconds,
            *(blob.astype("<f4").tobytes() for blob in blobs),
            *(None if array is None else array.astype("<f2").tobytes() for array in (record.first, record.last)),
        )

    def skip(self, skipped: Skipped, *, dataset: str) -> None:
        """Keep the fact that a row cannot be put to this model."""
        self._insert(skipped.key, dataset, "", "", skipped.reason, *[None] * 9)

    def record(self, key: str) -> Record | Skipped | None:
        """What is known of one row; None if it was not asked yet."""
        with self._translated():
            row = self._db.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        try:
            return self._read(row) if row else None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"'{self.path}' is damaged", why=f"the signals of '{key}': {error}", fix="Delete it to start again"
            ) from error

    def records(self, keys: Sequence[str]) -> list[Record]:
        """The records of these rows in this order, skipped and unknown ones left out."""
        found = (self.record(key) for key in keys)
        return [record for record in found if isinstance(record, Record)]

    def _insert(self, *values: Any) -> None:
        with self._translated():
            self._db.execute(f"INSERT OR REPLACE INTO answers VALUES ({','.join('?' * 14)})", values)

    def _read(self, row: tuple[Any, ...]) -> Record | Skipped:
        key, dataset, question, answer, skipped, _, seconds, *blobs = row
        if skipped is not None:
            return Skipped(key, skipped)
        if not all(isinstance(text, str) for text in (key, dataset, question, answer)) or not isinstance(
            seconds, float
        ):
            raise ValueError("a value is of the wrong type")
        logprobs, entropies, margins, maps, norms = (np.frombuffer(blob, "<f4") for blob in blobs[:5])
        layers, temperatures = self._run.model.layers, self._run.temperatures
        signature = Signature(
            maps=maps.reshape(len(temperatures), len(AGGREGATES), layers, layers),
            norms=norms.reshape(len(AGGREGATES), layers),
            temperatures=temperatures,
            aggregates=AGGREGATES,
            tokens=len(logprobs),
        )
        first, last = (None if blob is None else np.frombuffer(blob, "<f2").reshape(layers, -1) for blob in blobs[5:])
        return Record(
            key=key,
            dataset=dataset,
            question=question,
            answer=answer,
            signals=Signals(logprobs, entropies, margins, signature),
            first=first,
            last=last,
            seconds=seconds,
        )

    def _set_up(self) -> None:
        # One writer at a time, and a commit survives the death of the process.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables - {"header", "answers"}:
            raise InputError(f"'{self.path}' is a database of something else", fix="Give another file")
        # Tables and header at once: a journal without its whole header would fit no run.
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            self._db.execute(statement)
        if not self._db.execute("SELECT count(*) FROM header").fetchone()[0]:
            self._db.executemany("INSERT INTO header VALUES (?, ?)", self._run.fields().items())
        self._db.execute("COMMIT")

    def _check_header(self) -> None:
        fields = self._run.fields()
        with self._translated():
            stored = dict(self._db.execute("SELECT name, value FROM header"))
        differing = [name for name in fields if stored.get(name) != fields[name]]
        if differing:
            details = "; ".join(f"{name}: {stored.get(name)} there, {fields[name]} now" for name in differing)
            raise InputError(
                f"'{self.path}' holds the answers of another run",
                why=details,
                fix="Give another file, or delete this one to start again",
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:  # ValueError: a path or damaged bytes that are no text
            fix = "Another run may be using it" if "locked" in str(error) else "Give another file"
            raise InputError(f"Cannot use the journal '{self.path}'", why=str(error), fix=fix) from error


class _ActivationKeeper:
    """Keeps the first and the last token's activations, and passes all on to the signature."""

    def __init__(self, signature: SignatureObserver) -> None:
        self._signature = signature
        self.first: Floats | None = None
        self.last: Floats | None = None

    def observe(self, activations: Floats) -> None:
        self._signature.observe(activations)
        self.last = activations.copy()
        if self.first is None:
            self.first = self.last


def row_key(dataset: str, row: Row) -> str:
    """A row's key in a journal."""
    return f"{dataset}/{row.id}"


def record_rows(
    engine: Engine,
    rows: Sequence[tuple[str, Row]],
    journal: Journal,
    *,
    run: Run,
) -> Iterator[Record | Skipped]:
    """Put every row that the journal does not have yet to the model; yields each as it is kept.

    Args:
        engine: a loaded engine; its model is the run's.
        rows: pairs of data set name and row.
        journal: where answers are kept.
        run: how questions are put.
    """
    known = journal.keys()
    for dataset, row in rows:
        key = row_key(dataset, row)
        if key in known:
            continue
        try:
            generation, signals, keeper = _ask(engine, row, run)
        except (PromptTooLongError, CaptureError) as error:
            skipped = Skipped(key, str(error))
            journal.skip(skipped, dataset=dataset)
            known.add(key)
            yield skipped
            continue
        record = Record(
            key=key,
            dataset=dataset,
            question=row.question if isinstance(row, Question) else row.prompt.question,
            answer=generation.text,
            signals=signals,
            first=_half(keeper.first) if run.activations else None,
            last=_half(keeper.last) if run.activations else None,
            seconds=generation.seconds,
        )
        journal.append(record, prompt_tokens=generation.prompt_tokens)
        known.add(key)
        yield record


def _ask(engine: Engine, row: Row, run: Run) -> tuple[Generation, Signals, _ActivationKeeper]:
    observer = SignatureObserver(temperatures=run.temperatures)
    keeper = _ActivationKeeper(observer)
    prompt, replay = _put(row, run)
    limits = Limits(max_tokens=run.max_tokens)
    generation = engine.generate(prompt, sampling=Sampling(), limits=limits, observer=keeper, replay=replay)
    if generation.capture_error:
        raise CaptureError(generation.capture_error)
    signals = Signals(generation.logprobs, generation.entropies, generation.margins, observer.signature())
    return generation, signals, keeper


def _put(row: Row, run: Run) -> tuple[Prompt, str | None]:
    if isinstance(row, Question):
        return question_prompt(row, system=run.system), None
    return row.prompt, row.response


def _half(activations: Floats | None) -> NDArray[np.float16] | None:
    """In half the space; a massive activation beyond its range becomes the largest value."""
    if activations is None:
        return None
    largest = np.finfo(np.float16).max
    return np.clip(activations, -largest, largest).astype(np.float16)
