"""A long run on a Ray cluster: each shard is a task with its own engine and journal.

If a worker or its machine fails, Ray restarts the task elsewhere, and it continues from the shard's journal. If the
head fails, repeat the call: finished shards are not started again. Journals must therefore be visible to all machines,
such as on a shared file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from guard.checked import real_number, whole_number
from guard.data.merging import is_finished, merge_shards
from guard.data.progress import Progress, ProgressCallback, ignore_progress
from guard.data.question_sets import DataSpecs
from guard.data.scored_rows import score_rows
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
    _refuse(options, "shard", "journal", "partial")
    out = Path(out).absolute()
    call = partial(run, _where_it_is(data), out=out, **{name: _absolute(value) for name, value in options.items()})
    work = _Work(call, out, choose_journal(out, None))
    result: _Result = _run_whole(work, shards, cpus, gpus, progress)
    return result


def score_on_ray(
    rows: Iterable[Mapping[str, Any]],
    *,
    shards: int,
    journal: str | Path | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    progress: ProgressCallback = ignore_progress,
    **options: Any,
) -> list[dict[str, Any]]:
    """Score answers in shards on a Ray cluster; the results are those of `guard.score_rows`.

    Args:
        rows: as for `guard.score_rows`.
        shards: number of parts.
        journal: the journal of the whole run, which must be given; those of the shards are beside it, where all
            machines see them.
        cpus: CPUs of each shard.
        gpus: GPUs of each shard.
        progress: called with the number of finished shards.
        options: of `guard.score_rows`, without ``shard``.

    Returns:
        a result for each row, in order.

    Raises:
        MissingExtraError: ray is not installed.
        InputError: an option cannot be used.
        EngineError: workers failed repeatedly.
        GuardError: as for `guard.score_rows`.

    Examples:
        >>> import guard
        >>> rows = [{"prompt": "What is the capital of France?", "response": "Paris"}] * 8
        >>> guard.score_on_ray(rows, journal="scores.journal", shards=2, gpus=1)  # doctest: +SKIP
        >>> guard.score_on_ray(rows, journal="scores.journal", shards=2, shard="1/2")
        Traceback (most recent call last):
        guard.errors.InputError: A run on Ray takes no 'shard': it has journals and shards of its own
    """
    _refuse(options, "shard")
    if journal is None:
        raise InputError(
            "A run on Ray needs a journal", fix="Give --journal (journal=), a file in a folder that all machines see"
        )
    whole = Path(journal).absolute()
    call = partial(_scores, **{name: _absolute(value) for name, value in options.items()})
    results: list[dict[str, Any]] = _run_whole(_Work(call, whole, whole, ([*rows],)), shards, cpus, gpus, progress)
    return results


def _scores(rows: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
    return [*score_rows(rows, **options)]


def _refuse(options: dict[str, Any], *names: str) -> None:
    """Take out options that a run on Ray decides itself.

    Raises:
        InputError: one of them is given.
    """
    for name in names:
        if options.pop(name, None):
            raise InputError(f"A run on Ray takes no '{name}'", why="it has journals and shards of its own")


@dataclass(frozen=True, slots=True)
class _Work:
    """What a run does.

    Attributes:
        call: the run; takes the inputs, ``journal`` and, for a part, ``shard``.
        out: beside which the shards' journals are.
        journal: of the whole run.
        inputs: sent to the cluster once.
    """

    call: Callable[..., Any]
    out: Path
    journal: Path
    inputs: tuple[Any, ...] = ()

    def parts(self, count: int) -> dict[Path, Callable[..., Any]]:
        """Return the calls that run the shards, by their journals."""
        shards = {Shard(number, count).journal(self.out, None): f"{number}/{count}" for number in range(1, count + 1)}
        return {
            journal: partial(_without_result, partial(self.call, journal=journal, shard=shard))
            for journal, shard in shards.items()
        }


def _run_whole(work: _Work, shards: int, cpus: float, gpus: float, progress: ProgressCallback) -> Any:
    """Run the shards that are not finished, merge their journals, and return what the run makes of the whole."""
    count = whole_number("shards", shards, least=1, most=MOST_SHARDS)
    needs = {"num_cpus": _not_negative("cpus", cpus), "num_gpus": _not_negative("gpus", gpus)}
    parts = work.parts(count)
    ray = _connected()
    inputs = [ray.put(each) for each in work.inputs]
    if not work.journal.exists():
        waiting = [call for journal, call in parts.items() if not is_finished(journal)]
        running = [_task(ray, needs).remote(call, *inputs) for call in waiting]
        _wait(ray, running, count, progress)
        merge_shards([*parts], out=work.journal)
    return _got(ray, _task(ray, needs).remote(partial(work.call, journal=work.journal), *inputs))


def _wait(ray: Any, running: list[Any], count: int, progress: ProgressCallback) -> None:
    """Wait for all shards that run."""
    progress(Progress("shards", count - len(running), count))
    while running:
        done, running = ray.wait(running)
        _got(ray, done[0])
        progress(Progress("shards", count - len(running), count))


def _task(ray: Any, needs: Mapping[str, float]) -> Any:
    return ray.remote(max_retries=_RETRIES, **needs)(_call)


def _call(work: Callable[..., Any], *inputs: Any) -> Any:
    """Run a function of the driver in a worker."""
    return work(*inputs)


def _without_result(work: Callable[..., Any], *inputs: Any) -> None:
    """Do some work whose result is in its journal: a shard's table of answers is not sent to the driver."""
    work(*inputs)


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
