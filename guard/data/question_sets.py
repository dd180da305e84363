"""The labelled data sets of a procedure: read by name or file, put in order, summarised for artefacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from guard.checked import checked_choice
from guard.data.questions import BadRow, Row
from guard.data.sets import DataSource, OnBad, resolve
from guard.errors import InputError
from guard.scoring.labels import Label, label_array, number_wrong
from guard.scoring.provenance import DataSet

#: One data set, or several: JSON Lines files, or names such as ``gsm8k@FOLDER`` and ``hub:gsm8k``.
DataSpecs = str | Path | Sequence[str | Path]


def read_sets(
    data: DataSpecs,
    *,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    seed: int = 0,
    unlabelled: bool = False,
) -> tuple[DataSource, ...]:
    """Read data sets.

    Args:
        data: one or several files or named sets; see `guard.data.sets.resolve`.
        on_bad: ``stop`` raises where a row cannot be used, ``skip`` leaves the row out.
        limit: maximal number of rows of each set.
        seed: decides which rows are drawn.
        unlabelled: whether questions may come without accepted answers; their ``answers`` are empty then.

    Raises:
        InputError: there is no data set, one cannot be read, has bad rows that must not be skipped, or has the name
            of another.
    """
    checked_choice("on_bad", on_bad, ("stop", "skip"))
    sources: list[DataSource] = []
    for spec in [data] if isinstance(data, str | Path) else data:
        source = resolve(spec, on_bad=on_bad, limit=limit, seed=seed, unlabelled=unlabelled)
        if source.name in [other.name for other in sources]:
            raise InputError(
                f"Two data sets are called '{source.name}'", fix="Rename a file: answers are kept by the set's name"
            )
        sources.append(source)
    if not sources:
        raise InputError("There is no data set", fix="Give at least one file or named set")
    return tuple(sources)


def list_rows(sources: Sequence[DataSource]) -> list[tuple[str, Row]]:
    """Return the rows of all sets, each with the name of its set, set by set."""
    return [(source.name, row) for source in sources for row in source.rows]


def round_robin(sources: Sequence[DataSource]) -> list[tuple[str, Row]]:
    """Return the rows of all sets in turn: the first of each set, the second of each, and so on."""
    turns = zip_longest(*([(source.name, row) for row in source.rows] for source in sources))
    return [pair for turn in turns for pair in turn if pair is not None]


def list_bad_rows(sources: Sequence[DataSource]) -> tuple[tuple[Path, BadRow], ...]:
    """Return the rows of all sets that cannot be used, each with its file."""
    return tuple(problem for source in sources for problem in source.bad)


def data_sets(sources: Sequence[DataSource], labels: Iterable[tuple[str, Label]]) -> list[DataSet]:
    """Summarise the data of an artefact.

    Args:
        sources: the data sets.
        labels: for each answer the name of its set, and whether, or how, it is wrong.
    """
    pairs = list(labels)
    return [
        DataSet(
            name=source.name,
            sha256=source.sha256,
            rows=sum(name == source.name for name, _ in pairs),
            wrong=number_wrong(label_array([wrong for name, wrong in pairs if name == source.name])),
        )
        for source in sources
    ]
