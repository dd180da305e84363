"""What holds prompts, answers or labels is readable for its owner only, whatever the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_cases import make_escalation

from guard.calibration.kept_answers import KeptAnswers
from guard.files.write_whole import replacing, write_whole
from guard.review.store import Store


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def make_journal(folder: Path) -> None:
    with KeptAnswers(folder / "answers.journal", {"journal": "1"}) as journal:
        journal.keep("a row", "an answer")


def make_store(folder: Path) -> None:
    with Store.open(folder / "reviews.db") as store:
        store.add(make_escalation())


@pytest.mark.parametrize("make", [make_journal, make_store])
def test_files_with_prompts_are_their_owners_only(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    files = list(tmp_path.iterdir())
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_an_old_file_that_others_can_read_is_replaced_by_a_private_one(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("old")
    with replacing(path, private=True) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        part.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("old")

    def fail() -> None:
        with replacing(path, private=True) as part:
            part.write_text("half")
            tmp_path.write_text("fails")

    with pytest.raises(IsADirectoryError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, a power cut can leave an empty file under the new name."""
    path, steps = tmp_path / "scorer.json", list[str]()
    flush, replace = os.fsync, Path.replace

    def note_flush(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"file of {os.fstat(descriptor).st_size}"
        steps.append(kind)
        flush(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_whole(path, "new")
    assert steps == ["file of 3", "rename", "folder"]
    assert path.read_text() == "new"


def test_whole_files_are_private_where_asked_only(tmp_path: Path) -> None:
    write_whole(tmp_path / "open", b"1")
    write_whole(tmp_path / "private", b"1", private=True)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {
        "open": 0o666,
        "private": 0o600,
    }
