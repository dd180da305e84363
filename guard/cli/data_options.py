"""Options of the commands that read labelled questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DATA = typer.Option(
    "--data",
    "-d",
    metavar="SPEC",
    help="JSON Lines file (.gz too), or a named set: NAME@FOLDER or hub:NAME; repeatable.",
)
DataOption = Annotated[list[str], _DATA]
OptionalDataOption = Annotated[list[str] | None, _DATA]
GraderOption = Annotated[
    str | None,
    typer.Option(
        "--grader", help="Grader: text, number, choice, regex, math or module:function; by default chosen per row."
    ),
]
OnBadOption = Annotated[str, typer.Option("--on-bad", help="What to do with bad rows: stop or skip.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Largest number of rows of each set, sampled with the seed.")
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system", help="System message of every question; empty for none; by default that of the set."),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Token limit of an answer; by default that of the set, mostly 32."),
]
TauOption = Annotated[
    list[float] | None,
    typer.Option("--tau", help="Temperature of the signature's softmax, by default 1; repeatable."),
]
JournalOption = Annotated[
    Path | None, typer.Option("--journal", help="Journal to keep answers in; by default OUT.journal.")
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="NUMBER/COUNT",
        help="Part of the rows to work on, such as 3/8, with a separate journal; guard merge joins the journals.",
    ),
]
RayOption = Annotated[
    int | None,
    typer.Option("--ray", metavar="SHARDS", min=1, help="Number of shards to run on the Ray cluster at RAY_ADDRESS."),
]
RayCpusOption = Annotated[float, typer.Option("--ray-cpus", min=0, help="CPUs per shard on Ray.")]
RayGpusOption = Annotated[
    float, typer.Option("--ray-gpus", min=0, help="GPUs per shard on Ray; fractions such as 0.5 are allowed.")
]
