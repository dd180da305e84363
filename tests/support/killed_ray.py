"""Kill tests of runs on Ray: of two workers on this machine, one is ended in the middle.

    python tests/support/killed_ray.py [--answers 2000] [--shards 8] [--only record|score|certify]

The result must be that of one process, and nothing that was in a journal may be asked for again. A made model with
random weights answers, on transformers; ``tests/data/test_on_ray.py`` runs samples where ray is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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

#: Bytes that a row adds to its journal, about: two pages of its log. A run keeps others from reading its journal, so
#: that rows are counted by the files' size.
_BYTES = 8192


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
    while (count := sum(map(_rows, _journals(run.out)))) < after:
        time.sleep(0.02)
    return count


def _journals(out: Path) -> list[Path]:
    return [*out.parent.glob(f"{out.name}.*-of-*.journal")]


def _rows(journal: Path) -> int:
    log = journal.with_name(f"{journal.name}-wal")
    return sum(file.stat().st_size for file in (journal, log) if file.exists()) // _BYTES


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
    parser = argparse.ArgumentParser(description="Run on Ray while a worker is killed, and compare.")
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--only", choices=[*RUNS])
    options = parser.parse_args()
    sizes = {"answers": options.answers, "shards": options.shards}
    for what in [options.only] if options.only else [*RUNS]:
        with TemporaryDirectory() as folder:
            print(json.dumps(run_everywhere(what, Path(folder), **sizes)), flush=True)


if __name__ == "__main__":
    main()
