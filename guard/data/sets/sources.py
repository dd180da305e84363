"""Data sets by name: the ten of the ILIS paper, from a folder or from the Hugging Face hub.

`load_set` returns the rows of one; `resolve` reads the argument of ``--data``.
docs/reference/data.md lists them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guard.checked import checked_seed
from guard.data.questions import BadRow, Question, Row, bad_rows_error, draw_rows, read_rows
from guard.data.sets.named import SETS, MalformedRowError, NamedSet, UnfitRowError
from guard.data.sets.native import download, find_files, is_own_format, read_native
from guard.errors import InputError, did_you_mean

__all__ = ["SETS", "DataSource", "NamedSet", "get_set", "load_set", "resolve"]

_NAME = re.compile(r"(?P<name>[\w-]+)(?::(?P<split>[\w-]+))?")

OnBad = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class DataSource:
    """The data read for one ``--data``.

    Attributes:
        name: of the data set; answers are kept under it.
        rows: usable rows, in the order of the files.
        bad: rows that are left out, each with its file, its number and the reason.
        sha256: of the file's bytes; of several files, of their digests in order.
        named: the named set, with its system message and answer length; None for a file of the user's own.
    """

    name: str
    rows: tuple[Row, ...]
    bad: tuple[tuple[Path, BadRow], ...]
    sha256: str
    named: NamedSet | None = None


def get_set(name: str) -> NamedSet:
    """Return a named set.

    Raises:
        InputError: there is none of this name.
    """
    if name not in SETS:
        raise InputError(f"There is no data set '{name}'", fix=did_you_mean(name, SETS))
    return SETS[name]


def load_set(
    name: str,
    *,
    folder: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    on_bad: OnBad = "stop",
) -> tuple[Row, ...]:
    """Return the questions of a named set.

    Open questions with the same text become one with all their answers, and repeated questions with choices are
    dropped. Known faulty rows (with the same choice twice) are left out.

    Args:
        name: one of `SETS`.
        folder: where its files are, or one file; by default they come from the Hugging Face hub and
            are kept in its cache.
        split: by default the one that the set is usually reported on.
        limit: draw at most this many rows, as `guard.data.questions.read_rows` does.
        seed: decides which rows are drawn.
        revision: a commit, branch or tag on the hub.
        on_bad: ``stop`` raises if a row does not have the set's form, ``skip`` leaves the row out.

    Raises:
        InputError: the set, split or folder does not exist, a file is missing or damaged, or there
            are bad rows and ``on_bad`` is ``stop``.
        MissingExtraError: the extra ``datasets`` is not installed.
    """
    if folder is not None and revision is not None:
        raise InputError("A revision is for sets from the hub, not for a folder", fix="Give one of the two")
    checked_seed(seed)
    options: dict[str, Any] = {"limit": limit, "seed": seed, "revision": revision, "on_bad": on_bad}
    return _load(get_set(name), folder=folder, split=split, **options).rows


def resolve(
    spec: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    on_bad: OnBad = "stop",
    unlabelled: bool = False,
) -> DataSource:
    """Read the data that a ``--data`` argument names.

    Args:
        spec: ``FILE`` (guard's own JSON Lines), ``NAME@FOLDER`` (a named set in a folder) or
            ``hub:NAME`` (a named set from the Hugging Face hub). After the name, ``:SPLIT`` chooses
            another split. The name of an existing file always means that file.
        limit: draw at most this many rows.
        seed: decides which rows are drawn.
        revision: a commit, branch or tag, for sets from the hub.
        on_bad: ``stop`` raises when there is any bad row, ``skip`` reports them in the result.
        unlabelled: whether questions may come without accepted answers.

    Raises:
        InputError: as `load_set` and `guard.data.questions.read_rows`.
    """
    asked = None if Path(spec).expanduser().is_file() else _named_spec(str(spec))
    if asked is None:
        return _own_file(Path(spec).expanduser(), limit=limit, seed=seed, on_bad=on_bad, unlabelled=unlabelled)
    name, split, folder = asked
    options: dict[str, Any] = {"limit": limit, "seed": seed, "revision": revision, "on_bad": on_bad}
    options["unlabelled"] = unlabelled
    return _load(get_set(name), folder=folder, split=split, **options)


def _named_spec(spec: str) -> tuple[str, str | None, str | None] | None:
    """Return name, split and folder (None for the hub); None if the text can only be a file."""
    from_hub = spec.startswith("hub:")
    wanted, at, folder = (spec.removeprefix("hub:"), "", "") if from_hub else spec.partition("@")
    match = _NAME.fullmatch(wanted)
    if from_hub and match is None:
        raise InputError(f"'{spec}' names no data set", fix="Write hub:NAME or hub:NAME:SPLIT")
    if match and at and not folder:
        raise InputError(f"'{spec}' names no folder", fix=f"Write {spec}FOLDER, or hub:{wanted}")
    if match and match["name"] in SETS and not (from_hub or at):
        raise InputError(f"There is no file '{spec}'", fix=f"For the data set write {spec}@FOLDER, or hub:{spec}")
    return (match["name"], match["split"], folder or None) if match and (from_hub or at) else None


def _own_file(path: Path, *, limit: int | None, seed: int, on_bad: OnBad, unlabelled: bool) -> DataSource:
    result = read_rows(path, on_bad=on_bad, limit=limit, seed=seed, unlabelled=unlabelled)
    return DataSource(
        name=path.name.removesuffix(".gz").removesuffix(".jsonl"),
        rows=result.rows,
        bad=tuple((path, row) for row in result.bad),
        sha256=_sha256([path]),
    )


def _load(
    named: NamedSet,
    *,
    folder: str | Path | None,
    split: str | None,
    limit: int | None,
    seed: int,
    revision: str | None,
    on_bad: OnBad,
    unlabelled: bool = False,
) -> DataSource:
    if on_bad not in ("stop", "skip"):
        raise InputError(f"on_bad must be 'stop' or 'skip', got {on_bad!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    split = named.split if split is None else split
    if split not in named.splits:
        raise InputError(f"'{named.name}' has no labelled split '{split}'", fix=did_you_mean(split, named.splits))
    where = download(named, split, revision=revision) if folder is None else Path(folder).expanduser()
    files = find_files(named, split, where)
    name = named.name if split == named.split else f"{named.name}-{split}"
    if len(files) == 1 and is_own_format(files[0]):
        own = _own_file(files[0], limit=limit, seed=seed, on_bad=on_bad, unlabelled=unlabelled)
        return dataclasses.replace(own, name=name, rows=_graded(own.rows, named.grader), named=named)
    rows, bad = _convert_all(named, files, on_bad=on_bad)
    return DataSource(name, tuple(draw_rows(rows, limit=limit, seed=seed)), tuple(bad), _sha256(files), named)


def _graded(rows: Sequence[Row], grader: str | None) -> tuple[Row, ...]:
    """Return the rows with the set's grader on open questions that name none."""
    if grader is None:
        return tuple(rows)
    return tuple(
        dataclasses.replace(row, grader=grader)
        if isinstance(row, Question) and row.grader is None and row.choices is None
        else row
        for row in rows
    )


def _convert_all(
    named: NamedSet, files: Sequence[Path], *, on_bad: OnBad
) -> tuple[list[Question], list[tuple[Path, BadRow]]]:
    found: dict[str, Question] = {}
    bad: list[tuple[Path, BadRow]] = []
    unfit: list[tuple[Path, BadRow]] = []
    for path in files:
        for number, row in read_native(path, columns=named.columns, optional=named.optional):
            try:
                if isinstance(row, str):
                    raise MalformedRowError(row)
                question = named.convert(row)
                found[question.id] = _merged(found.get(question.id), question)
            except MalformedRowError as error:
                bad.append((path, BadRow(number, str(error))))
            except UnfitRowError as error:
                unfit.append((path, BadRow(number, str(error))))
    if bad and on_bad == "stop":
        raise bad_rows_error([f"{path}, row {row.line}: {row.reason}" for path, row in bad])
    if not found:
        reasons = [f"{path.name}, row {row.line}: {row.reason}" for path, row in [*bad, *unfit][:1]]
        raise InputError(f"'{files[0]}' has no usable row", why="".join(reasons))
    return list(found.values()), [*bad, *unfit]


def _merged(known: Question | None, question: Question) -> Question:
    """Merge rows that ask the same question."""
    if known is None:
        return question
    if known.choices is None:
        return dataclasses.replace(known, answers=tuple(dict.fromkeys((*known.answers, *question.answers))))
    if known.answer_index != question.answer_index:
        raise UnfitRowError("repeats a question with another answer")
    return known


def _sha256(files: Sequence[Path]) -> str:
    digests = []
    for path in files:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise InputError(f"Cannot read '{path}'", why=error.strerror or str(error)) from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
