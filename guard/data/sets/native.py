"""The files of a named set: in a folder or from the Hugging Face hub, read row by row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from guard.data.sets.named import NamedSet
from guard.errors import InputError, did_you_mean, missing_extra
from guard.files.json_lines import read_lines

#: A row with its number (that of its line in text files, from 1), or the reason why it cannot be read.
NativeRow = tuple[int, Mapping[str, Any] | str]

_SUFFIXES = ("parquet", "jsonl", "jsonl.gz", "json", "csv")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


# -- finding -----------------------------------------------------------------------------------


def find_files(named: NamedSet, split: str, folder: Path) -> tuple[Path, ...]:
    """Return the files of one split in a folder; the path may also be a single file.

    It searches for the layout of the set's repository, its files without their folder, one file named after the split,
    and a file in guard's own format named after the set.

    Raises:
        InputError: the folder does not exist or has no such file, a part is missing, or there are several copies.
    """
    if folder.is_file():
        return (folder,)
    if not folder.is_dir():
        fix = did_you_mean(folder.name, [other.name for other in folder.parent.glob("*") if other.is_dir()])
        raise InputError(f"There is no folder '{folder}' for the data set '{named.name}'", fix=fix)
    copies = {layout: found for layout, found in _layouts(named, split, folder) if found}
    if not copies:
        patterns = [pattern.format(split=split) for pattern in named.files]
        raise InputError(
            f"'{folder}' holds no file of the split '{split}' of '{named.name}'",
            why=f"looked for {_listed(patterns)}, {split}.jsonl and the like, and {named.name}.jsonl",
            fix=fetch_by_hand(named, split),
        )
    if len(copies) > 1:
        raise InputError(
            f"'{folder}' holds several copies of the split '{split}' of '{named.name}'",
            why=_listed([str(found[0].relative_to(folder)) for found in copies.values()]),
            fix="Give the one file in place of the folder",
        )
    (found,) = copies.values()
    _check_whole(named, split, found, folder)
    return tuple(found)


def _layouts(named: NamedSet, split: str, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    patterns = [pattern.format(split=split) for pattern in named.files]
    yield "repository", [path for pattern in patterns for path in _glob(folder, pattern)]
    converted = [pattern.replace("-*", "/*") for pattern in patterns if "-*" in pattern]
    yield "converted", [path for pattern in converted for path in _glob(folder, pattern)]
    if len(patterns) == 1:
        yield "flat", _glob(folder, PurePosixPath(patterns[0]).name)
    for suffix in _SUFFIXES:
        yield suffix, _glob(folder, f"{split}.{suffix}")
    part = "" if split == named.split else f"_{split}"
    for stem in (named.name, *named.own_names):
        for suffix in ("jsonl", "jsonl.gz"):
            yield f"{stem}.{suffix}", _glob(folder, f"{stem}{part}.{suffix}")


def _glob(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _check_whole(named: NamedSet, split: str, found: Sequence[Path], folder: Path) -> None:
    """Refuse a set with a missing part, which would pass for the whole."""
    patterns = [pattern.format(split=split) for pattern in named.files]
    inside = [path.relative_to(folder).as_posix() for path in found]
    subjects = {name.split("/")[0] for name in inside}
    missing = [pattern for pattern in patterns if pattern.split("/")[0] not in subjects]
    if len(patterns) > 1 and any("/" in name for name in inside) and missing:
        raise InputError(
            f"'{folder}' holds only a part of '{named.name}'",
            why=f"missing: {_listed(missing)}",
            fix=fetch_by_hand(named, split),
        )
    for path in found:
        shard = _SHARD.search(path.name)
        siblings = [_SHARD.sub(f"-{at:05}-of-{shard[2]}.", path.name) for at in range(int(shard[2]))] if shard else []
        absent = [name for name in siblings if not (path.parent / name).is_file()]
        if absent:
            raise InputError(f"'{path.parent}' holds only a part of '{named.name}'", why=f"missing: {_listed(absent)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- the hub -----------------------------------------------------------------------------------


def download(named: NamedSet, split: str, *, revision: str | None = None) -> Path:
    """Return the folder of a set's files in the user's Hugging Face cache; download missing ones.

    Args:
        named: the set.
        split: the split to fetch.
        revision: a commit, branch or tag of the repository; its main branch by default.

    Raises:
        InputError: the set is not on the hub, or cannot be fetched.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not named.on_hub:
        raise InputError(f"'{named.name}' is not on the Hugging Face hub", fix=fetch_by_hand(named, split))
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise missing_extra("huggingface_hub", "datasets") from error
    try:
        folder = snapshot_download(
            named.repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[pattern.format(split=split) for pattern in named.files],
        )
    except Exception as error:  # the client's errors come from several libraries, depending on its version
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"Cannot fetch '{named.name}' ({named.repository}{at}) from the Hugging Face hub",
            why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}",
            fix=fetch_by_hand(named, split),
        ) from error
    return Path(folder)


def fetch_by_hand(named: NamedSet, split: str) -> str:
    """Return instructions for a set that guard cannot fetch."""
    patterns = [pattern.format(split=split) for pattern in named.files]
    if named.on_hub:
        wanted = patterns[0] if len(patterns) == 1 else f"*/{PurePosixPath(patterns[0]).name}"
        get = f"run: hf download {named.repository} --repo-type dataset --local-dir FOLDER --include '{wanted}'"
        return f"Where there is a network, {get}. Then give {named.name}@FOLDER"
    return f"Download {patterns[0]} from github.com/{named.repository} into a folder, and give {named.name}@FOLDER"


# -- reading -----------------------------------------------------------------------------------


def read_native(path: Path, *, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[NativeRow]:
    """Return the rows of a Parquet, JSON Lines (plain or gzip), JSON or CSV file, one after another.

    Args:
        path: path of the file; its name determines the format.
        columns: columns that every row must have.
        optional: further columns, read if present.

    Raises:
        InputError: the file cannot be read, has an unknown format, or lacks a column.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    suffix = path.name.casefold().removesuffix(".gz").rpartition(".")[2]
    try:
        if suffix == "parquet":
            yield from _parquet(path, columns, optional)
        elif suffix == "csv":
            yield from _csv(path, columns)
        elif suffix in ("json", "jsonl"):
            yield from _json(path, columns)
        else:
            raise InputError(f"'{path}' is of no known format", fix="Known: .parquet, .jsonl, .jsonl.gz, .json, .csv")
    except OSError as error:
        raise InputError(f"Cannot read '{path}'", why=error.strerror or str(error)) from error


def is_own_format(path: Path) -> bool:
    """Return whether a file is in guard's own format, by its first row; no native one has these keys."""
    if not path.name.casefold().endswith((".jsonl", ".jsonl.gz")):
        return False
    for _, content in read_lines(path):
        row = _object(content)
        return isinstance(row, dict) and not {"answers", "answer_index", "response"}.isdisjoint(row)
    return False


def _parquet(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[NativeRow]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("pyarrow", "datasets") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            _check_columns(path, columns, there)
            wanted = [*columns, *(column for column in optional if column in there)]
            number = 0
            for batch in file.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        with path.open("rb") as content:
            pointer = content.read(40).startswith(b"version https://git-lfs")
        raise InputError(
            f"'{path}' is not a whole Parquet file",
            why="it is the pointer that Git LFS leaves in place of a file" if pointer else str(error).splitlines()[0],
            fix="Fetch the file again" + (" with: git lfs pull" if pointer else ""),
        ) from error


def _csv(path: Path, columns: Sequence[str]) -> Iterator[NativeRow]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, restkey="\0", strict=True)
            _check_columns(path, columns, list(rows.fieldnames or ()))
            for row in rows:
                whole = "\0" not in row and None not in row.values()
                yield rows.line_num, row if whole else "has more or fewer cells than the header"
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not a CSV file in UTF-8", why=str(error)) from error


def _json(path: Path, columns: Sequence[str]) -> Iterator[NativeRow]:
    """Read one object per line, or one list of objects."""
    with path.open("rb") as file:
        listed = file.read(100).lstrip().startswith(b"[")
    if not listed:
        for number, content in read_lines(path):
            yield number, _with_columns(_object(content), columns)
        return
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not JSON", why=str(error)) from error
    for number, row in enumerate(rows, start=1):
        yield number, _with_columns(row if isinstance(row, dict) else "is not an object", columns)


def _object(content: bytes | None) -> dict[str, Any] | str:
    if content is None:
        return "the line is too long"
    try:
        row = json.loads(content)
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg} in column {error.colno}"
    except (RecursionError, ValueError):
        return "is nested too deeply, or has a number that is too long"
    return row if isinstance(row, dict) else "is not an object"


def _with_columns(row: dict[str, Any] | str, columns: Sequence[str]) -> dict[str, Any] | str:
    absent = [column for column in columns if isinstance(row, dict) and column not in row]
    return f"misses {_listed(absent)}" if absent else row


def _check_columns(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    absent = [column for column in columns if column not in there]
    if absent:
        raise InputError(
            f"'{path}' has no column '{absent[0]}'",
            why=f"it has {_listed(list(there))}" if there else "it is empty",
            fix="Is it a file of another data set or split?",
        )
