"""The file of recorded answers: Parquet with one row per answer. docs/how-to/recording.md describes it.

Arrays are stored as bytes of a fixed size, values per token as lists. Pages have checksums, so that damage is not
read as a slightly different answer. Arrow's fixed-shape tensors would save a few lines, but Parquet stores them as
lists: writing takes two to seven times, reading three to five times as long (`benchmarks/tensor_columns.py` on a busy
machine, pyarrow 26).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.data.columns import ARRAYS, KINDS, OPTIONAL, RAGGED, Columns, array_shapes, to_offsets
from guard.errors import InputError, did_you_mean, missing_extra
from guard.files.write_whole import replacing
from guard.scoring.labels import are_graded

FORMAT, FORMAT_VERSION = "guard-answers", 4

#: Key of guard's own entry in the file's metadata.
_KEY = b"guard"
#: Bytes of a row group: the memory for reading and writing beside the table itself.
_GROUP_BYTES = 2**25
#: Limits on what a file from elsewhere can make the reader allocate for one answer.
_MAX_LAYERS, _MAX_WIDTH, _MAX_TEMPERATURES = 1024, 2**17, 16

_RECORD_AGAIN = "Write it again with guard record"


def write_columns(columns: Columns, path: Path) -> None:
    """Write a file, whole or not at all; see `Answers.write`."""
    pyarrow = _pyarrow()
    every = array_shapes(columns.metadata)
    # Of a model that shows no layers, arrays of nothing are not written.
    shapes = {name: every[name] for name in every if getattr(columns, name) is not None and np.prod(every[name][0])}
    metadata = dict(columns.metadata)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "metadata": metadata, "sha256": _digest(metadata)}
    optional = [name for name in OPTIONAL if getattr(columns, name) is not None]
    kinds = _kinds(optional, graded=are_graded(columns.wrong))
    schema = _schema(shapes, kinds).with_metadata({_KEY: json.dumps(header)})
    row_bytes = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes.values())
    step = max(1, _GROUP_BYTES // max(row_bytes, 1024))
    options = {"compression": "zstd", "use_dictionary": ["dataset"], "write_statistics": False}
    try:
        with (
            replacing(path, private=True) as scratch,
            pyarrow.parquet.ParquetWriter(scratch, schema, write_page_checksum=True, **options) as writer,
        ):
            for start in range(0, len(columns), step):
                rows = slice(start, min(start + step, len(columns)))
                arrays = [_to_arrow(columns, field, rows) for field in schema]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot write the answers to {str(path)!r}", why=why, fix="Give another file") from error


def read_columns(path: Path) -> Columns:
    """Read a file; see `Answers.read`."""
    pyarrow = _pyarrow()
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*.parquet")] if path.parent.is_dir() else []
        raise InputError(f"There is no file {str(path)!r}", fix=did_you_mean(path.name, near))
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = _metadata_in(file.schema_arrow.metadata or {}, path)
            shapes = array_shapes(metadata)
            names = file.schema_arrow.names
            shapes = {name: shapes[name] for name in shapes if name in names}
            graded = "wrong" in names and file.schema_arrow.field("wrong").type == pyarrow.float64()
            kinds = _kinds([name for name in OPTIONAL if name in names], graded=graded)
            if not file.schema_arrow.equals(_schema(shapes, kinds)):
                raise ValueError("its columns do not match its header")
            columns = _read_groups(file, shapes, metadata, kinds)
        _check(columns)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"'{path}' is damaged", why=why, fix=_RECORD_AGAIN) from error
    except MemoryError as error:
        raise InputError(f"'{path}' is too large for this machine's memory", why=str(error)) from error
    return columns


def _metadata_in(entries: Mapping[bytes, bytes], path: Path) -> dict[str, Any]:
    header = json.loads(entries.get(_KEY, b"null"))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"'{path}' has no recorded answers", fix="Give the file that guard record wrote")
    if header.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has format version {header.get('format_version')!r:.40}",
            why=f"this guard reads version {FORMAT_VERSION}",
            fix="Upgrade guard, or record again",
        )
    metadata: dict[str, Any] = header["metadata"]
    if "sha256" in header and header["sha256"] != _digest(metadata):  # another writer may leave the sum out
        raise ValueError("the checksum of its header does not match")
    temperatures = metadata["temperatures"]
    sizes = (metadata["model.layers"], _MAX_LAYERS), (metadata["model.width"], _MAX_WIDTH)
    if not all(isinstance(size, int) and 0 <= size <= most for size, most in sizes):
        raise ValueError("its number of layers or their width is not a valid size")
    if not 0 < len(temperatures) <= _MAX_TEMPERATURES or not all(isinstance(tau, (int, float)) for tau in temperatures):
        raise ValueError("its temperatures are not numbers")
    return metadata


def _digest(metadata: Any) -> str:
    return sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


# -- columns to Arrow --------------------------------------------------------------------------


def _schema(shapes: Mapping[str, tuple[tuple[int, ...], str]], kinds: Mapping[str, type]) -> Any:
    pyarrow = _pyarrow()
    arrow = {object: pyarrow.string(), np.str_: pyarrow.string(), np.bool_: pyarrow.bool_()}
    arrow |= {np.float64: pyarrow.float64(), np.int32: pyarrow.int32()}
    fields = {name: arrow[kind] for name, kind in kinds.items()}
    fields |= {"samples": _listed(pyarrow.string()), **{name: _listed(pyarrow.float32()) for name in RAGGED}}
    fields |= {name: pyarrow.binary(int(np.prod(s)) * np.dtype(kind).itemsize) for name, (s, kind) in shapes.items()}
    return pyarrow.schema([pyarrow.field(name, kind, nullable=False) for name, kind in fields.items()])


def _kinds(optional: Sequence[str], *, graded: bool) -> Mapping[str, type]:
    """Return the types of the columns of one value, with these optional ones; graded labels are numbers."""
    kinds: dict[str, type] = {**KINDS, "wrong": np.float64} if graded else dict(KINDS)
    return {**kinds, **dict.fromkeys(optional, np.float64)}


def _listed(kind: Any) -> Any:
    pyarrow = _pyarrow()
    return pyarrow.list_(pyarrow.field("element", kind, nullable=False))


def _to_arrow(columns: Columns, field: Any, rows: slice) -> Any:
    pyarrow = _pyarrow()
    values = getattr(columns, field.name)
    if field.name in RAGGED:
        offsets = columns.offsets[rows.start : rows.stop + 1]
        tokens = values[offsets[0] : offsets[-1]]
        return pyarrow.ListArray.from_arrays((offsets - offsets[0]).astype(np.int32), tokens, type=field.type)
    if pyarrow.types.is_fixed_size_binary(field.type):
        data = np.ascontiguousarray(values[rows])
        return pyarrow.Array.from_buffers(field.type, len(data), [None, pyarrow.py_buffer(data)])
    return pyarrow.array(values[rows], type=field.type)


# -- Arrow to columns --------------------------------------------------------------------------


def _read_groups(
    file: Any,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    metadata: Mapping[str, Any],
    kinds: Mapping[str, type],
) -> Columns:
    """Read one row group after another into arrays that are allocated once."""
    total = file.metadata.num_rows
    _check_counts(file)
    arrays: dict[str, Any] = {name: np.empty((total, *shape), kind) for name, (shape, kind) in shapes.items()}
    values: dict[str, list[Any]] = {name: [] for name in kinds}
    tokens: dict[str, list[NDArray[np.float32]]] = {name: [] for name in RAGGED}
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in RAGGED}
    samples: list[tuple[str, ...]] = []
    start = 0
    for number in range(file.num_row_groups):
        group = file.read_row_group(number).combine_chunks()
        if any(column.null_count for column in group.columns):
            raise ValueError("a value is missing")
        rows = slice(start, start + len(group))
        start += len(group)
        for name in kinds:
            values[name] += group[name].to_pylist()
        samples += [tuple(each) for each in group["samples"].to_pylist()]
        for name, (shape, kind) in shapes.items():
            arrays[name][rows] = _from_binary(group[name], kind).reshape(len(group), *shape)
        for name in RAGGED:
            listed = group[name].combine_chunks()
            tokens[name].append(listed.flatten().to_numpy())
            counts[name].append(np.diff(listed.offsets.to_numpy().astype(np.int64)))
    if start != total:
        raise ValueError("rows are missing")
    lengths = {name: np.concatenate([np.zeros(0, np.int64), *parts]) for name, parts in counts.items()}
    if any(not np.array_equal(each, lengths[RAGGED[0]]) for each in lengths.values()):
        raise ValueError("the columns of tokens differ in length")
    nothing = {name: np.empty((total, *shape), kind) for name, (shape, kind) in array_shapes(metadata).items()}
    columns: dict[str, Any] = {**({} if metadata["model.layers"] else nothing), "lens": None, "path": None, **arrays}
    columns |= {name: np.array(values[name], kind) for name, kind in kinds.items()}
    columns |= {name: np.concatenate([np.zeros(0, np.float32), *parts]) for name, parts in tokens.items()}
    return Columns(**columns, samples=tuple(samples), offsets=to_offsets(lengths[RAGGED[0]]), metadata=metadata)


def _check_counts(file: Any) -> None:
    """Refuse a damaged row count before it makes the reader allocate more than the file can hold."""
    rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if sum(rows) != file.metadata.num_rows or min(rows, default=0) < 0:
        raise ValueError("its row groups do not add up to its rows")


def _from_binary(column: Any, kind: str) -> NDArray[Any]:
    """Return the values of a column of fixed-size bytes, without their shape."""
    array = column.combine_chunks()
    size = array.type.byte_width
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data[array.offset * size : (array.offset + len(array)) * size].view(kind)


def _check(columns: Columns) -> None:
    """Refuse values that are wrong although all checksums match."""
    if len(columns) and np.diff(columns.offsets).min() < 1:
        raise ValueError("there is an answer without tokens")
    for name in ("logprobs", "entropies", *ARRAYS):
        array = getattr(columns, name)
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"'{name}' has values that are not finite")
    if not ((columns.wrong >= 0) & (columns.wrong <= 1)).all():
        raise ValueError("'wrong' has values that are not from 0 to 1")
    if columns.p_true is not None and ((columns.p_true < 0) | (columns.p_true > 1)).any():
        raise ValueError("'p_true' has values that are no probabilities")
    if columns.rauq is not None and np.isinf(columns.rauq).any():
        raise ValueError("'rauq' has values that are not finite")
    if np.isnan(columns.margins).any():  # infinity stands for a token without a rival
        raise ValueError("'margins' has values that are not numbers")


def _pyarrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("pyarrow", "evaluate") from error
    return pyarrow
