"""A long run on a Ray cluster: each shard is a task with its own engine and journal.

If a worker or its machine fails, Ray restarts the task elsewhere, and it continues from the shard's journal. If the
head fails, repeat the call: finished shards are not started again. Journals must therefore be visible to all machines,
such as on a shared file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from guard.checked import real_number, whole_number
from guard.data.merging import is_finished, merge_shards
from guard.data.progress import Progress, ProgressCallback, ignore_progress
from guard.data.question_sets import DataSpecs
from guard.data.shards import MOST_SHARDS, Shard
from guard.errors import EngineError, InputError, missing_extra
from guard.files.output_file import choose_journal

_Result = TypeVar("_Result")

#: How often a shard is started again whose worker has ended.
_RETRIES = 10


def run_on_ray(
    run: Callable[..., _Result],
    data: DataSpecs,
    *,
    out: str | Path,
    shards: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    progress: ProgressCallback = ignore_progress,
    **options: Any,
) -> _Result:
    """Run `guard.record` or `guard.certify` in shards on a Ray cluster; the result is that of one process.

    The cluster is the one that the program is connected to, or that ``RAY_ADDRESS`` names; without any, one begins on
    this machine. Each shard loads the model once, so a shard should take long against that.

    Args:
        run: `guard.record` or `guard.certify`.
        data: one or several JSON Lines files or named sets, which all machines see.
        out: the file of the whole run; journals are beside it, where all machines see them.
        shards: number of parts.
        cpus: CPUs of each shard.
        gpus: GPUs of each shard; a share of one, such as 0.5, lets two shards use it.
        progress: called with the number of finished shards.
        options: of the run, without ``shard``, ``journal`` and ``partial``.

    Returns:
        what the run returns.

    Raises:
        MissingExtraError: ray is not installed.
        InputError: an option cannot be used.
        EngineError: workers failed repeatedly.
        GuardError: as for the run.

    Examples:
        >>> import guard
        >>> guard.run_on_ray(guard.record, "trivia.jsonl", out="answers.parquet", shards=8, gpus=1)  # doctest: +SKIP
        >>> guard.run_on_ray(guard.record, "trivia.jsonl", out="a.parquet", shards=8, partial=True)
        Traceback (most recent call last):
        guard.errors.InputError: A run on Ray takes no 'partial': it has journals and shards of its own
    """
    for name in ("shard", "journal", "partial"):
        if options.pop(name, None):
            raise InputError(f"A run on Ray takes no '{name}'", why="it has journals and shards of its own")
    count = whole_number("shards", shards, least=1, most=MOST_SHARDS)
    needs = {"num_cpus": _not_negative("cpus", cpus), "num_gpus": _not_negative("gpus", gpus)}
    out = Path(out).absolute()
    call = partial(run, _where_it_is(data), out=out, **{name: _absolute(value) for name, value in options.items()})
    parts = {Shard(number, count): Shard(number, count).journal(out, None) for number in range(1, count + 1)}
    whole = choose_journal(out, None)
    ray = _connected()
    if not whole.exists():
        _run_parts(ray, call, parts, needs, progress)
        merge_shards([*parts.values()], out=whole)
    result: _Result = _got(ray, _task(ray, needs).remote(call))
    return result


def _run_parts(
    ray: Any,
    call: Callable[..., Any],
    parts: Mapping[Shard, Path],
    needs: Mapping[str, float],
    progress: ProgressCallback,
) -> None:
    """Run the shards that are not finished."""
    waiting = [partial(call, shard=str(shard)) for shard, journal in parts.items() if not is_finished(journal)]
    running = [_task(ray, needs).remote(partial(_without_result, each)) for each in waiting]
    progress(Progress("shards", len(parts) - len(running), len(parts)))
    while running:
        done, running = ray.wait(running)
        _got(ray, done[0])
        progress(Progress("shards", len(parts) - len(running), len(parts)))


def _task(ray: Any, needs: Mapping[str, float]) -> Any:
    return ray.remote(max_retries=_RETRIES, **needs)(_call)


def _call(work: Callable[[], Any]) -> Any:
    """Run a function of the driver in a worker."""
    return work()


def _without_result(work: Callable[[], Any]) -> None:
    """Do some work whose result is in its journal: a shard's table of answers is not sent to the driver."""
    work()


def _got(ray: Any, task: Any) -> Any:
    """Return a task's result.

    Raises:
        GuardError: what the task raised.
        EngineError: its workers ended.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise EngineError(
            "The workers of a shard ended again and again",
            why=type(error).__name__,
            fix="Look at their memory and logs, then run the same again: it continues where it stopped",
        ) from error


def _connected() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray


def _where_it_is(data: DataSpecs) -> Any:
    return _absolute(data) if isinstance(data, str | Path) else [_absolute(each) for each in data]


def _absolute(value: Any) -> Any:
    """Return a path that does not depend on the current folder, which workers do not share."""
    if not isinstance(value, str | Path) or "://" in str(value):
        return value
    name, at, folder = str(value).partition("@")  # NAME@FOLDER is a named set
    if at and Path(folder).exists():
        return f"{name}@{Path(folder).absolute()}"
    is_path = isinstance(value, Path) or os.sep in value or "." in value
    return type(value)(Path(value).absolute()) if is_path and Path(value).exists() else value


def _not_negative(name: str, value: float) -> float:
    number = real_number(name, value)
    if number < 0:
        raise InputError(f"{name} must be at least 0, got {number:g}")
    return number
