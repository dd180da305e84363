"""Runs on Ray: the file of one process, also where a worker ends; what cannot work is refused before it begins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import guard
from guard.data import on_ray
from guard.errors import InputError, MissingExtraError


@pytest.mark.parametrize("name", ["shard", "journal", "partial"])
def test_what_a_run_on_ray_decides_itself_is_not_given(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {name: "1/2"}
    with pytest.raises(InputError, match=f"takes no '{name}'"):
        guard.run_on_ray(guard.record, "a.jsonl", out=tmp_path / "a", shards=2, **given)


@pytest.mark.parametrize("wrong", [{"shards": 0}, {"shards": 2, "cpus": -1}, {"shards": 2, "gpus": float("nan")}])
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        guard.run_on_ray(guard.record, "a.jsonl", out=tmp_path / "a", **wrong)


def test_without_ray_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ilis-guard\[ray\]'"):
        guard.run_on_ray(guard.record, "a.jsonl", out=tmp_path / "a", shards=2)


def test_workers_get_paths_that_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "sets").mkdir()
    (tmp_path / "strict").touch()
    found = on_ray._where_it_is(["rows.jsonl", "gsm8k@sets", "hub:gsm8k", Path("rows.jsonl"), "none.jsonl", "strict"])
    absolute = tmp_path / "rows.jsonl"
    assert found == [str(absolute), f"gsm8k@{tmp_path / 'sets'}", "hub:gsm8k", absolute, "none.jsonl", "strict"]


def test_scores_on_ray_need_a_journal_and_decide_the_shards(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response": "Ho"}]
    with pytest.raises(InputError, match="A run on Ray needs a journal"):
        guard.score_on_ray(rows, shards=1)
    with pytest.raises(InputError, match="takes no 'shard'"):
        guard.score_on_ray(rows, shards=1, journal=tmp_path / "j", shard="1/2")


@pytest.mark.parametrize("what", ["record", "score", "certify"])
def test_a_run_on_ray_that_loses_a_worker_is_that_of_one_process(what: str, tmp_path: Path) -> None:
    """A sample of ``nox -s killed_ray``."""
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("transformers")
    from killed_ray import run_everywhere

    found = run_everywhere(what, tmp_path, answers=120, shards=4)
    assert (found["asked_again"], found["same"]) == (0, True)


def test_a_recording_whose_head_and_program_ended_continues_on_another_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("transformers")
    from killed_ray import run_after_the_head

    found = run_after_the_head(tmp_path, answers=120, shards=4)
    assert (found["asked_again"], found["same"]) == (0, True)
