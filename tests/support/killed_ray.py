"""A kill test of a recording on Ray: of two workers on this machine, one is ended in the middle.

    python tests/support/killed_ray.py [--answers 2000] [--shards 8]

The file must be that of one process, and no answer that was in a journal may be asked for again. A made model with
random weights answers, on transformers; ``tests/data/test_on_ray.py`` runs a sample where ray is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tiny_models import byte_tokenizer, tiny_model

import guard
from guard.data.answers import Answers


def record_everywhere(folder: Path, *, answers: int, shards: int) -> dict[str, Any]:
    """Record once in this process and once on a cluster that loses a worker; return what was counted.

    Raises:
        AssertionError: the files differ, or something was asked twice.
    """
    from ray.cluster_utils import Cluster

    questions = folder / "questions.jsonl"
    rows = ({"id": f"q{n}", "question": f"What is {n} + 1?", "answers": [str(n + 1)]} for n in range(answers))
    questions.write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {
        "model": made_model(folder / "model"),
        "max_tokens": 2,
        "lens": False,
        "engine_options": {"threads": 1, "deterministic": True},
    }
    guard.record(questions, out=folder / "one.parquet", **options)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    out, killed = folder / "all.parquet", dict[str, int]()
    try:
        _connect(cluster.address)
        killer = threading.Thread(target=_kill, args=(cluster, nodes[0], out, answers // 3, killed))
        killer.start()
        guard.run_on_ray(guard.record, questions, out=out, shards=shards, **options)
        killer.join(60)
    finally:
        _end(cluster)
    compare(folder / "one.parquet", out)
    asked_again = sum(_asked_again(journal) for journal in out.parent.glob(f"{out.name}.*-of-{shards}.journal"))
    assert asked_again == 0
    assert killed["answers_before_the_kill"] < answers, "nothing was left to do"
    return {"answers": answers, "shards": shards, **killed, "asked_again": asked_again, "same_file": True}


def made_model(folder: Path) -> Path:
    """A tiny model with random weights, as a folder."""
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _connect(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False)


def _end(cluster: Any) -> None:
    import ray

    ray.shutdown()
    cluster.shutdown()


def _kill(cluster: Any, node: Any, out: Path, after: int, killed: dict[str, int]) -> None:
    """End a worker's machine without a word once there are that many answers."""
    while (count := sum(map(_rows, out.parent.glob(f"{out.name}.*.journal")))) < after:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    killed["answers_before_the_kill"] = count


def _rows(journal: Path) -> int:
    """The number of answers, by the files' size: a run keeps others from reading its journal."""
    log = journal.with_name(f"{journal.name}-wal")
    return sum(file.stat().st_size for file in (journal, log) if file.exists()) // _BYTES


#: Bytes of an answer of the made model, about.
_BYTES = 8192


def _asked_again(journal: Path) -> int:
    """How many stored answers were replaced: a replaced row gets the next number."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        count, last = db.execute("SELECT count(*), max(rowid) FROM answers").fetchone()
    return int(last) - int(count)


def compare(one: Path, other: Path) -> None:
    """Check that two files are the same but for the times that answers took and the date."""
    first, second = Answers.read(one), Answers.read(other)
    for name in ("key", "answer", "wrong", "tokens", "maps", "norms", "activations", "prompt_tokens", "finish_reason"):
        assert (getattr(first, name) == getattr(second, name)).all(), name
    for name in ("logprobs", "entropies", "margins"):
        assert getattr(first.columns, name).tobytes() == getattr(second.columns, name).tobytes(), name
    differing = {name for name in first.metadata if first.metadata[name] != second.metadata[name]}
    assert differing <= {"date"}, differing


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Record on Ray while a worker is killed, and compare with one process."
    )
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(json.dumps(record_everywhere(Path(folder), answers=options.answers, shards=options.shards)))


if __name__ == "__main__":
    main()
