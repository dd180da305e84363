"""Shards: parts of a run with journals of their own, which together give the file of one process."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from documented_json import differences, documented
from hypothesis import given
from hypothesis import strategies as st
from scripted import AnsweringEngine, confidence_scorer, scripted_model
from sums import half_right, sum_rows
from typer.testing import CliRunner

import guard
import guard.engines
import guard.runtime.guard
from guard.cli import app
from guard.data.questions import Question, Row
from guard.data.shards import Shard, select_part
from guard.data.sqlite_journal import row_key
from guard.errors import GuardError, InputError

MODEL = "scripted.gguf"
COUNT = 24


class StoppedDate(datetime):
    """Files hold the date at which they were written."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime(2026, 11, 25, tzinfo=tz)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[AnsweringEngine]:
    """The engines that were loaded, scripted ones."""
    loaded: list[AnsweringEngine] = []

    def load(model: str | Path, **_: Any) -> AnsweringEngine:
        loaded.append(AnsweringEngine(half_right, model=scripted_model(name=str(model))))
        return loaded[-1]

    for module in (guard.engines, guard.runtime.guard):
        monkeypatch.setattr(module, "load_engine", load)
    monkeypatch.setattr("guard.data.answers.datetime", StoppedDate)
    return loaded


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text(sum_rows(range(COUNT)))
    return file


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    confidence_scorer().save(tmp_path / "scorer.json")
    return tmp_path / "scorer.json"


def times_asked(engines: list[AnsweringEngine]) -> Counter[str]:
    return Counter(prompt.question for engine in engines for prompt in engine.asked)


def content(journal: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All tables of a journal, in order, without the time that each answer took."""
    with closing(sqlite3.connect(journal)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        if "answers" in names:
            db.execute("UPDATE answers SET seconds = 1.0")
            db.commit()
        return {name: db.execute(f"SELECT * FROM {name} ORDER BY rowid").fetchall() for name in names}


def command(*arguments: str | Path, expected: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(done.exception, GuardError):
        raise done.exception
    assert done.exit_code == expected, done.output
    return done.stdout


def stop_after(count: int) -> Callable[[guard.Progress], None]:
    def stop(progress: guard.Progress) -> None:
        if progress.done == count:
            raise KeyboardInterrupt

    return stop


# -- what is in a shard ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 8))
def test_every_row_is_in_one_shard_and_shards_are_of_equal_size(ids: list[int], count: int) -> None:
    """Also where rows are given twice: whoever asked one of a pair in each shard would ask it twice."""
    rows: list[tuple[str, Row]] = [("set", Question(str(each), f"What is {each}?", ("a",))) for each in ids]
    if len({*ids}) < count:
        with pytest.raises(InputError, match="Use fewer shards"):
            select_part(rows, Shard(1, count))
        return
    parts = [select_part(rows, Shard(number, count)) for number in range(1, count + 1)]
    keys = [key for part in parts for key in part.keys]
    assert sorted(keys) == sorted({row_key(*pair) for pair in rows})
    sizes = [len(part.rows) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [part.header.rows for part in parts if part.header] == sizes
    assert len({part.header.whole for part in parts if part.header}) == 1


@pytest.mark.parametrize("written", ["0/3", "4/3", "1/0", "1", "", "a/b", "1/3/5", "-1/3", "1/999999", " 1/3"])
def test_what_is_no_shard_is_refused_with_the_form_of_one(written: str) -> None:
    with pytest.raises(InputError, match=r"is not a shard.*Write --shard 3/8"):
        Shard.parse(written)


# -- record ------------------------------------------------------------------------------------


def record_shards(sums: Path, out: Path, count: int, **options: Any) -> list[Path]:
    results = [
        guard.record(sums, out=out, model=MODEL, lens=False, shard=f"{number}/{count}", **options)
        for number in range(1, count + 1)
    ]
    return [result.out for result in results]


def test_merged_shards_give_the_journal_and_the_file_of_one_process(
    engines: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    """Samples go to the first questions of the whole set, whichever shard they are in."""
    options: dict[str, Any] = {"model": MODEL, "lens": False, "samples": 2, "sampled_rows": 4, "limit": 22, "seed": 3}
    guard.record(sums, out=tmp_path / "one.parquet", **options)
    whole = [*engines]
    engines.clear()
    journals = []
    for number in (3, 1, 2):
        shard = f"{number}/3"
        with pytest.raises(KeyboardInterrupt):
            guard.record(sums, out=tmp_path / "all.parquet", **options, shard=shard, progress=stop_after(number))
        done = guard.record(sums, out=tmp_path / "all.parquet", **options, shard=shard)
        assert done.out == tmp_path / f"all.parquet.{number}-of-3.journal"
        assert len(done.answers) == 22 // 3 + (number == 1)
        journals.append(done.out)
    assert not (tmp_path / "all.parquet").exists(), "a part is no recording"
    assert times_asked(engines) == times_asked(whole), "nothing is asked twice"
    said = command("merge", *journals, "--out", tmp_path / "all.parquet.journal", "--json")
    assert json.loads(said) == {
        "out": str(tmp_path / "all.parquet.journal"),
        "shards": 3,
        "rows": 22,
        "command": "guard record",
    }
    assert not differences(json.loads(said), documented("guard merge --json"))
    assert content(tmp_path / "all.parquet.journal") == content(tmp_path / "one.parquet.journal")
    engines.clear()
    for name in ("one", "all"):
        guard.record(sums, out=tmp_path / f"{name}.parquet", **options)
    assert not times_asked(engines), "everything is answered"
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "all.parquet").read_bytes()


def test_the_command_records_a_shard_and_says_what_comes_next(
    engines: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.parquet"
    for number in (1, 2):
        shown = command("record", "-d", sums, "-o", out, "-m", MODEL, "--no-lens", "--shard", f"{number}/2")
        assert "guard merge" in shown
    shown = command("merge", *sorted(tmp_path.glob("*-of-2.journal")), "-o", f"{out}.journal")
    assert "guard record with --journal" in " ".join(shown.split())
    command("record", "-d", sums, "-o", out, "-m", MODEL, "--no-lens")
    assert times_asked(engines).total() == COUNT


def test_a_shards_journal_is_of_that_shard_of_those_rows_only(
    engines: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "a", {"model": MODEL, "lens": False, "journal": tmp_path / "j"}
    guard.record(sums, out=out, **options, shard="1/3")
    asked = times_asked(engines)
    for wrong, why in (
        ({"shard": "2/3"}, "shard: 1/3 there, 2/3 now"),
        ({}, "belongs to the shard 1/3"),
        ({"shard": "1/3", "limit": 20}, "other rows"),
        ({"shard": "1/4"}, "shard: 1/3 there, 1/4 now"),
    ):
        with pytest.raises(InputError, match=f"not the journal of this part.*{why}"):
            guard.record(sums, out=out, **options, **wrong)
    with pytest.raises(InputError, match="no file to write in part"):
        guard.record(sums, out=out, **options, shard="1/3", partial=True)
    assert times_asked(engines) == asked
    guard.record(sums, out=out, model=MODEL, lens=False, journal=tmp_path / "whole")
    with pytest.raises(InputError, match="belongs to a whole run"):
        guard.record(sums, out=out, model=MODEL, lens=False, journal=tmp_path / "whole", shard="1/3")


# -- what is not merged ------------------------------------------------------------------------


def test_missing_double_foreign_and_unfinished_shards_are_refused(
    engines: list[AnsweringEngine], sums: Path, scorer: Path, tmp_path: Path
) -> None:
    first, second, third = record_shards(sums, tmp_path / "a", 3)
    other_rows = record_shards(sums, tmp_path / "b", 3, limit=20)
    other_run = record_shards(sums, tmp_path / "c", 3, max_tokens=7)
    other_count = record_shards(sums, tmp_path / "d", 2)
    guard.record(sums, out=tmp_path / "whole", model=MODEL, lens=False)
    with pytest.raises(KeyboardInterrupt):
        guard.record(sums, out=tmp_path / "e", model=MODEL, lens=False, shard="3/3", progress=stop_after(2))
    scored = tmp_path / "scored"
    rows = [json.loads(line) | {"prompt": "What is 1 + 1?"} for line in sums.read_text().splitlines()]
    list(guard.score_rows(rows, model=MODEL, scorer=scorer, journal=scored, shard="3/3"))
    copied = tmp_path / "copied"
    copied.write_bytes(second.read_bytes())
    for journals, words in (
        ([first, third], "Shards are missing: 2/3"),
        ([first, second, third, copied], "The shard 2/3 is given twice"),
        ([first, second, third, second], "The journal '.*' is given twice"),
        ([first, second, other_rows[2]], "different runs.*data, limit or seed differ"),
        ([first, second, other_run[2]], "different runs.*settings differ: max_tokens"),
        ([first, second, other_count[0]], "one is of .* shards, the other of"),
        ([first, second, tmp_path / "e.3-of-3.journal"], r"3/3 is not finished.*has 2 of its 8 rows.*--shard 3/3"),
        ([first, second, scored], "different runs.*guard record.*guard score"),
        ([first, second, tmp_path / "whole.journal"], "is not the journal of a shard"),
        ([first, second, sums], "Cannot use the journal"),
        ([first, second, tmp_path / "none"], "There is no journal"),
        ([], "There is no journal to merge"),
    ):
        with pytest.raises(InputError, match=words):
            guard.merge_shards(journals, out=tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
    guard.merge_shards([third, first, second], out=tmp_path / "merged")
    with pytest.raises(InputError, match="already a file"):
        guard.merge_shards([third, first, second], out=tmp_path / "merged")


def test_a_shard_that_is_being_recorded_is_not_merged(
    engines: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    first, second = record_shards(sums, tmp_path / "a", 2)
    with closing(sqlite3.connect(second, isolation_level=None)) as running:
        running.execute("PRAGMA locking_mode=EXCLUSIVE")
        running.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match=r"locked.*Wait for the run that uses it"):
            guard.merge_shards([first, second], out=tmp_path / "merged")


def test_a_damaged_shard_is_refused_or_merged_as_it_was(
    engines: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    """What a shard says of itself is believed only where it is whole."""
    first, second = record_shards(sums, tmp_path / "a", 2)
    with closing(sqlite3.connect(second)) as db:
        db.execute("UPDATE shard SET rows = 'twelve'")
        db.commit()
    with pytest.raises(InputError, match="says of its shard is damaged"):
        guard.merge_shards([first, second], out=tmp_path / "merged")
    with pytest.raises(InputError, match="says of its shard is damaged"):
        guard.record(sums, out=tmp_path / "a", model=MODEL, lens=False, shard="2/2")


# -- certify -----------------------------------------------------------------------------------


def test_merged_trials_give_the_certificate_of_one_process(
    engines: list[AnsweringEngine], scorer: Path, tmp_path: Path
) -> None:
    sums, policy = tmp_path / "many.jsonl", tmp_path / "policy.yaml"
    sums.write_text(sum_rows(range(150)))
    rules = "[{accept: {max_error_rate: 0.2, confidence: 0.9}}, {abstain: {text: No.}}]"
    policy.write_text(f"version: 1\nname: test\nrules: {rules}\n")
    options: dict[str, Any] = {"model": MODEL, "scorer": scorer, "policy": policy}
    one = guard.certify(sums, out=tmp_path / "one.json", **options)
    assert one.certificate is not None
    engines.clear()
    with pytest.raises(KeyboardInterrupt):
        guard.certify(sums, out=tmp_path / "all.json", **options, shard="2/2", progress=stop_after(30))
    parts = [guard.certify(sums, out=tmp_path / "all.json", **options, shard=f"{number}/2") for number in (1, 2)]
    assert [(part.certificate, part.not_certifiable) for part in parts] == [(None, None)] * 2
    shown = command(
        *("certify", "-d", sums, "-o", tmp_path / "all.json", "-m", MODEL, "-s", scorer, "-p", policy),
        *("--shard", "2/2", "--json"),
    )
    assert json.loads(shown)["out"] == str(parts[1].out)
    assert not (tmp_path / "all.json").exists()
    assert {*times_asked(engines).values()} == {1}
    merged = guard.merge_shards([part.out for part in parts], out=tmp_path / "all.json.journal")
    assert (merged.rows, merged.command) == (150, "guard certify")
    assert content(tmp_path / "all.json.journal") == content(tmp_path / "one.json.journal")
    guard.certify(sums, out=tmp_path / "all.json", **options)
    assert times_asked(engines).total() == 150
    assert (tmp_path / "all.json").read_bytes() == (tmp_path / "one.json").read_bytes()


# -- score -------------------------------------------------------------------------------------


def test_merged_scores_are_the_lines_of_one_process_and_no_row_is_scored_twice(
    engines: list[AnsweringEngine], scorer: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": n, "prompt": f"What is {n} + 1?"}) for n in range(9)]
    rows.write_text("\n".join([*lines[:4], "not JSON", *lines[4:]]))
    options = ("--model", MODEL, "--scorer", scorer)
    one = command("score", rows, *options, expected=3)
    engines.clear()
    journals = [tmp_path / f"{number}.journal" for number in (1, 2)]
    for number, journal in enumerate(journals, start=1):
        shard = ("--journal", journal, "--shard", f"{number}/2")
        part = command("score", rows, *options, *shard, expected=3 if number == 1 else 0)
        assert part.splitlines() == one.splitlines()[number - 1 :: 2]
    command("merge", *journals, "--out", tmp_path / "merged")
    assert command("score", rows, *options, "--journal", tmp_path / "merged", expected=3) == one
    assert times_asked(engines) == Counter({f"What is {n} + 1?": 1 for n in range(9)})
    rows.write_text("\n".join(reversed(lines)))
    with pytest.raises(InputError, match=r"scores of other rows.*the row 1 differs"):
        command("score", rows, *options, "--journal", tmp_path / "merged")


def test_scoring_that_was_stopped_continues_where_it_was(
    engines: list[AnsweringEngine], scorer: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"What is {n} + 1?"} for n in range(6)]
    options: dict[str, Any] = {"model": MODEL, "scorer": scorer, "journal": tmp_path / "j"}
    begun = guard.score_rows(rows, **options)
    first = [next(begun), next(begun)]
    begun.close()
    whole = list(guard.score_rows(rows, **options))
    assert whole[:2] == first
    assert [each["id"] for each in whole] == [f"row {number}" for number in range(1, 7)]
    assert {*times_asked(engines).values()} == {1}
    assert all(a["p_wrong"] != b["p_wrong"] for a, b in pairwise(whole))
