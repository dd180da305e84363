"""What commands that ask labelled questions share: options, reading data, the progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from guard.cli.output import template_options
from guard.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from guard.data.questions import BadRow, Row
    from guard.data.recording import Run
    from guard.data.sets import DataSource
    from guard.engines.base import BaseEngine
    from guard.records import CapturePoint

DataSpecs = Annotated[
    list[str],
    typer.Option(
        "--data",
        "-d",
        metavar="SPEC",
        help="JSON Lines file (.gz too), or a named set: NAME@FOLDER or hub:NAME. Give it once a data set.",
    ),
]
GraderName = Annotated[
    str | None, typer.Option("--grader", help="text, number, choice, regex or module:function; by default by the row.")
]
OnBad = Annotated[str, typer.Option("--on-bad", help="What bad rows do: stop or skip.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many rows of each set, drawn by seed.")]
System = Annotated[
    str | None, typer.Option("--system", help="System message of every question; empty for none. By default the set's.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Token limit of an answer. By default the set's, mostly 32.")
]
Tau = Annotated[
    list[float] | None,
    typer.Option("--tau", help="Temperature of the signature's softmax, by default 1; repeatable."),
]

_ValueT = TypeVar("_ValueT", str, int)

#: What files of the user's own are asked with, and most named sets.
_MAX_TOKENS = 32


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Raise where an option's value is not one of those that there are."""
    if value not in known:
        raise InputError(f"There is no {option} {value}", fix=did_you_mean(value, known))


def check_writable(out: Path, what: str) -> None:
    """Better said now than after an hour of questions."""
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"Cannot write the {what} to '{out}'", fix="Give a file in a folder that exists")


def read_data(specs: Sequence[str], *, on_bad: str, limit: int | None, seed: int) -> list[DataSource]:
    """What is meant by each ``--data``.

    Raises:
        InputError: a set cannot be read, has bad rows that are not to be skipped, or the name of another.
    """
    from guard.data.sets import resolve

    check_choice("--on-bad", on_bad, ("stop", "skip"))
    sources: list[DataSource] = []
    for spec in specs:
        source = resolve(spec, on_bad=on_bad, limit=limit, seed=seed)  # type: ignore[arg-type]
        if source.name in [other.name for other in sources]:
            raise InputError(
                f"Two data sets are called '{source.name}'", fix="Rename a file: answers are kept by the set's name"
            )
        sources.append(source)
    return sources


def rows_of(sources: Sequence[DataSource]) -> list[tuple[str, Row]]:
    """The rows of all sets, each with the name of its set."""
    return [(source.name, row) for source in sources for row in source.rows]


def rows_in_turn(sources: Sequence[DataSource]) -> list[tuple[str, Row]]:
    """The same rows: the first of each set, the second of each, and so on."""
    turns = zip_longest(*([(source.name, row) for row in source.rows] for source in sources))
    return [pair for turn in turns for pair in turn if pair is not None]


def bad_rows_of(sources: Sequence[DataSource]) -> list[tuple[Path, BadRow]]:
    """The rows that cannot be used, of all sets."""
    return [problem for source in sources for problem in source.bad]


def how_to_ask(sources: Sequence[DataSource], *, system: str | None, max_tokens: int | None) -> tuple[str, int]:
    """System message and token limit: those given, or else those that the data sets agree on.

    Raises:
        InputError: the sets want to be asked differently, and nothing was given.
    """
    from guard.engines.system_messages import SHORT_ANSWER_SYSTEM

    systems = {each.name: each.named.system if each.named else SHORT_ANSWER_SYSTEM for each in sources}
    limits = {each.name: each.named.max_tokens if each.named else _MAX_TOKENS for each in sources}
    if system is None:
        system = _agreed("--system", systems)
    return system, _agreed("--max-tokens", limits) if max_tokens is None else max_tokens


def _agreed(option: str, wanted: dict[str, _ValueT]) -> _ValueT:
    distinct = {value: name for name, value in reversed(wanted.items())}
    if len(distinct) > 1:
        raise InputError(
            "These data sets are asked differently",
            why="; ".join(f"{name} with {option} {value!r}" for value, name in reversed(distinct.items())),
            fix=f"Give {option} for all of them, or take them one by one",
        )
    return next(iter(distinct))


def run_of(
    engine: BaseEngine,
    sources: Sequence[DataSource],
    system: str | None,
    max_tokens: int | None,
    tau: list[float] | None,
    completion: bool | None,
    template_option: list[str] | None,
    *,
    capture_point: CapturePoint,
) -> Run:
    """How a run asks its questions: as chat messages, or a model without a chat template by a text to continue.

    Raises:
        InputError: options that do not go together, or given responses to chat messages for a base model.
    """
    from hashlib import sha256

    from guard.data.questions import LabelledResponse
    from guard.data.recording import Run
    from guard.runtime.base_models import COMPLETION_STOP

    if completion is None:
        completion = engine.model.chat_template_sha256 == sha256(b"").hexdigest()
    if completion and system:
        raise InputError(
            "A text to continue has no system message",
            why=f"{engine.model.name} is asked by a text, since it has no chat template or --completion was given",
            fix="Leave --system out",
        )
    options = template_options(template_option) or {}
    if completion and options:
        raise InputError("A text to continue goes through no chat template", fix="Leave --template-option out")
    if completion and any(isinstance(row, LabelledResponse) for source in sources for row in source.rows):
        raise InputError(
            "Responses to chat messages cannot be put to a model that is asked by a text to continue",
            fix="Give questions with accepted answers",
        )
    engine.check_template_options(options)
    system, tokens = how_to_ask(sources, system="" if completion else system, max_tokens=max_tokens)
    return Run(
        model=engine.model,
        # Where the residual stream is read too, the signature is still of the MLPs alone.
        capture_point=capture_point,
        system=system,
        max_tokens=tokens,
        temperatures=tuple(tau or (1.0,)),
        stop=COMPLETION_STOP if completion else (),
        completion=completion,
        template_options=options,
    )
