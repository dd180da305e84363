"""``guard merge``: the journals of all shards in, the journal of one process out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from guard.cli.output import JsonOption, console, print_json

_Result = TypeVar("_Result")


def merge(
    journals: Annotated[list[Path], typer.Argument(help="Journals of all shards, in any order.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Journal to write; must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Join the journals of all shards into the journal that one process would have written.

    Then run the command of the shards once more, without --shard and with this journal: it asks nothing and writes its
    output.
    """
    from guard.data.merging import merge_shards

    result = merge_shards(journals, out=out)
    if as_json:
        found = {"out": str(result.out), "shards": result.shards, "rows": result.rows, "command": result.command}
        print_json(found)
        return
    screen = console()
    screen.print(f"{result.rows} rows of {result.shards} shards written to {result.out}", markup=False)
    screen.print(f"Next: {result.command} with --journal {result.out} and without --shard", markup=False)


def shard_sentence(shard: str, journal: Path) -> str:
    """Return what is said at the end of a shard's run."""
    return f"Shard {shard} written to {journal}; guard merge joins it with the others"


def on_ray(run: Callable[..., _Result], *, shards: int | None, cpus: float, gpus: float) -> Callable[..., _Result]:
    """Return a run in shards on Ray; the run itself where no shards are wanted."""
    if shards is None:
        return run
    from guard.data.on_ray import run_on_ray

    return partial(run_on_ray, run, shards=shards, cpus=cpus, gpus=gpus)


def scoring(*, shards: int | None, cpus: float, gpus: float) -> Callable[..., Iterable[dict[str, Any]]]:
    """Return what scores rows: in this process, or in shards on Ray."""
    if shards is None:
        from guard.data.scored_rows import score_rows

        return score_rows
    from guard.data.on_ray import score_on_ray

    return partial(score_on_ray, shards=shards, cpus=cpus, gpus=gpus)
