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
    typer.Option("--grader", help="text, number, choice, regex or module:function; by default each row's own."),
]
OnBadOption = Annotated[str, typer.Option("--on-bad", help="What to do with bad rows: stop or skip.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Largest number of rows of each set, sampled by seed.")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System message of every question; empty for none. By default the set's.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Token limit of an answer. By default the set's, mostly 32.")
]
TauOption = Annotated[
    list[float] | None,
    typer.Option("--tau", help="Temperature of the signature's softmax, by default 1; repeatable."),
]
JournalOption = Annotated[
    Path | None, typer.Option("--journal", help="Where answers are kept; by default OUT.journal.")
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="NUMBER/COUNT",
        help="Work on this part of the rows only, such as 3/8, with a journal of its own; guard merge joins them.",
    ),
]
RayOption = Annotated[
    int | None,
    typer.Option(
        "--ray", metavar="SHARDS", min=1, help="Run in this number of shards on the Ray cluster of RAY_ADDRESS."
    ),
]
RayCpusOption = Annotated[float, typer.Option("--ray-cpus", min=0, help="CPUs of each shard on Ray.")]
RayGpusOption = Annotated[
    float, typer.Option("--ray-gpus", min=0, help="GPUs of each shard on Ray; a share such as 0.5 will do.")
]
