"""Kill tests of runs on Ray: of two workers on this machine, one is ended in the middle; or the head and its program.

    python tests/support/killed_ray.py [--answers 2000] [--shards 8] [--only record|score|certify|head]

The result must be that of one process, and nothing that was in a journal may be asked for again. A made model with
random weights answers, on transformers; ``tests/data/test_on_ray.py`` runs samples where ray is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from scripted import tiny_artefact
from sums import sum_rows
from tiny_models import byte_tokenizer, tiny_model

import guard
from guard.data.answers import Answers
from guard.scoring.scorer import Scorer

OPTIONS: dict[str, Any] = {"engine_options": {"threads": 1, "deterministic": True}}

POLICY = """
version: 1
name: made
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - retry: {below: 0.99, times: 1, seed: 7}
  - abstain: {text: I do not know.}
"""

#: Ray's setting for the seconds after which workers end without their head. With 5, a busy machine's workers end while
#: their head is there.
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"

#: Bytes that a row adds to its journal, about: two pages of its log. A run keeps others from reading its journal, so
#: that rows are counted by the files' size.
_BYTES = 8192

#: Seconds after which something that does not happen is an error.
_PATIENCE = 600


@dataclass(frozen=True)
class RayRun:
    """A run, in one process and on Ray.

    Attributes:
        table: of its journal, which has its rows.
        alone: runs in this process; returns what it gives.
        on_ray: runs in shards on the cluster; returns the same.
        out: the file of the whole run, beside which the journals are.
    """

    table: str
    alone: Callable[[], Any]
    on_ray: Callable[..., Any]
    out: Path


def record_run(folder: Path, model: Path, answers: int) -> RayRun:
    questions, out = write_sums(folder, answers), folder / "all.parquet"
    options = {**OPTIONS, "model": model, "max_tokens": 2, "lens": False}
    return RayRun(
        "answers",
        partial(_recorded, partial(guard.record, questions, out=folder / "one.parquet", **options)),
        partial(_recorded, partial(guard.run_on_ray, guard.record, questions, out=out, **options)),
        out,
    )


def _recorded(run: Callable[..., Any], **options: Any) -> Answers:
    return Answers.read(run(**options).out)


def score_run(folder: Path, model: Path, answers: int) -> RayRun:
    rows = [{"prompt": f"What is {n} + 1?", "response": str(n + 1)} for n in range(answers)]
    options, journal = {**OPTIONS, "model": model, "scorer": write_scorer(folder, model)}, folder / "all.journal"

    def alone() -> list[dict[str, Any]]:
        return [*guard.score_rows(rows, journal=folder / "one.journal", **options)]

    return RayRun("scores", alone, partial(guard.score_on_ray, rows, journal=journal, **options), journal)


def certify_run(folder: Path, model: Path, answers: int) -> RayRun:
    questions, out, policy = write_sums(folder, answers), folder / "all.json", folder / "policy.yaml"
    policy.write_text(POLICY)
    options = {**OPTIONS, "model": model, "scorer": write_scorer(folder, model), "policy": policy}
    return RayRun(
        "trials",
        partial(_explained, partial(guard.certify, questions, out=folder / "one.json", **options)),
        partial(_explained, partial(guard.run_on_ray, guard.certify, questions, out=out, **options)),
        out,
    )


def _explained(run: Callable[..., Any], **options: Any) -> str:
    result: str = run(**options).explain()
    return result


RUNS = {"record": record_run, "score": score_run, "certify": certify_run}


def write_sums(folder: Path, count: int) -> Path:
    questions = folder / "questions.jsonl"
    questions.write_text(sum_rows(range(count)))
    return questions


def made_model(folder: Path) -> Path:
    """A tiny model with random weights, as a folder."""
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_scorer(folder: Path, model: Path) -> Path:
    """A scorer for the made model."""
    with guard.load_engine(model, **OPTIONS["engine_options"]) as engine:
        Scorer(tiny_artefact(engine.model)).save(folder / "scorer.json")
    return folder / "scorer.json"


# -- a worker is ended -------------------------------------------------------------------------


def run_everywhere(what: str, folder: Path, *, answers: int, shards: int) -> dict[str, Any]:
    """Run once in this process and once on a cluster that loses a worker; return what was counted.

    Raises:
        AssertionError: the results differ, or something was asked twice.
    """
    run, killed = RUNS[what](folder, made_model(folder / "model"), answers), dict[str, int]()
    alone = run.alone()
    with cluster_of_two() as (cluster, nodes):
        killing = threading.Thread(target=_kill_node, args=(cluster, nodes[0], run, answers // 3, killed))
        killing.start()
        found = run.on_ray(shards=shards)
        killing.join(60)
    assert killed["rows_before_the_kill"] < answers, "nothing was left to do"
    return {"what": what, "answers": answers, "shards": shards, **killed, **compared(run, alone, found, shards)}


@contextmanager
def cluster_of_two() -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs and two workers with one each; this program is connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def _kill_node(cluster: Any, node: Any, run: RayRun, after: int, killed: dict[str, int]) -> None:
    """End a worker's machine without a word once there are that many rows."""
    killed["rows_before_the_kill"] = _wait_for_rows(run, after)
    cluster.remove_node(node, allow_graceful=False)


def _wait_for_rows(run: RayRun, after: int) -> int:
    end = time.monotonic() + _PATIENCE
    while (count := sum(map(_rows, _journals(run.out)))) < after:
        assert time.monotonic() < end, "too few rows were written"
        time.sleep(0.02)
    return count


def _journals(out: Path) -> list[Path]:
    return [*out.parent.glob(f"{out.name}.*-of-*.journal")]


def _rows(journal: Path) -> int:
    log = journal.with_name(f"{journal.name}-wal")
    return sum(file.stat().st_size for file in (journal, log) if file.exists()) // _BYTES


# -- the head is ended -------------------------------------------------------------------------


def run_after_the_head(folder: Path, *, answers: int, shards: int) -> dict[str, Any]:
    """Record on a cluster whose head and program are ended, and again on another one; return what was counted.

    Raises:
        AssertionError: the results differ, something was asked twice, or a worker outlives its head.
    """
    run = record_run(folder, made_model(folder / "model"), answers)
    alone = run.alone()
    with patch.dict(os.environ, {RECONNECT: "20"}), cluster_of_two() as (cluster, _):
        with _program(cluster.address, folder, shards):
            rows = _wait_for_rows(run, answers // 3)
            _end_head(cluster)
        _wait_until_unused(_journals(run.out))
        left = sum(_stored(journal, run.table) for journal in _journals(run.out))
    assert left < answers, "nothing was left to do"
    with cluster_of_two():
        found = run.on_ray(shards=shards)
    killed = {"rows_before_the_kill": rows, "rows_when_all_had_ended": left}
    return {"what": "head", "answers": answers, "shards": shards, **killed, **compared(run, alone, found, shards)}


@contextmanager
def _program(address: str, folder: Path, shards: int) -> Iterator[None]:
    """A program that records on the cluster; it is killed at the end."""
    command = [sys.executable, __file__, "--drive", address, str(folder), str(shards)]
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        program.kill()
        program.wait()


def drive(address: str, folder: Path, shards: int) -> None:
    """Run as the program that is killed."""
    import ray

    ray.init(address=address, log_to_driver=False)
    answers = len((folder / "questions.jsonl").read_text().splitlines())
    record_run(folder, folder / "model", answers).on_ray(shards=shards)


def _end_head(cluster: Any) -> None:
    import ray

    ray.shutdown()  # a program that is connected must not remove the head
    cluster.remove_node(cluster.head_node, allow_graceful=False)


def _wait_until_unused(journals: list[Path]) -> None:
    """Wait until the workers have noticed that their head is gone: a run refuses journals that others write."""
    end = time.monotonic() + _PATIENCE
    while any(map(_is_used, journals)):
        assert time.monotonic() < end, "workers did not end"
        time.sleep(0.5)


def _is_used(journal: Path) -> bool:
    with contextlib.closing(sqlite3.connect(journal, timeout=1.0, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


# -- what must hold ----------------------------------------------------------------------------


def compared(run: RayRun, alone: Any, found: Any, shards: int) -> dict[str, Any]:
    """Check that two runs gave the same, and that no stored row was asked for again."""
    if isinstance(alone, Answers):
        compare(alone, found)
    else:
        assert found == alone
    journals = _journals(run.out)
    assert len(journals) == shards
    asked_again = sum(_asked_again(journal, run.table) for journal in journals)
    assert asked_again == 0
    return {"asked_again": asked_again, "same": True}


def _asked_again(journal: Path, table: str) -> int:
    """How many stored rows were replaced: a replaced row gets the next number."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        last = db.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0]
    return int(last) - _stored(journal, table)


def _stored(journal: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(journal)) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def compare(first: Answers, second: Answers) -> None:
    """Check that two files are the same but for the times that answers took and the date."""
    for name in ("key", "answer", "wrong", "tokens", "maps", "norms", "activations", "prompt_tokens", "finish_reason"):
        assert (getattr(first, name) == getattr(second, name)).all(), name
    for name in ("logprobs", "entropies", "margins"):
        assert getattr(first.columns, name).tobytes() == getattr(second.columns, name).tobytes(), name
    differing = {name for name in first.metadata if first.metadata[name] != second.metadata[name]}
    assert differing <= {"date"}, differing


def main() -> None:
    if sys.argv[1:2] == ["--drive"]:
        _, _, address, folder, shards = sys.argv
        drive(address, Path(folder), int(shards))
        return
    parser = argparse.ArgumentParser(description="Run on Ray while a worker or the head is killed, and compare.")
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--only", choices=[*RUNS, "head"])
    options = parser.parse_args()
    sizes = {"answers": options.answers, "shards": options.shards}
    for what in [options.only] if options.only else [*RUNS, "head"]:
        with TemporaryDirectory() as folder:
            run = run_after_the_head if what == "head" else partial(run_everywhere, what)
            print(json.dumps(run(Path(folder), **sizes)), flush=True)


if __name__ == "__main__":
    main()
