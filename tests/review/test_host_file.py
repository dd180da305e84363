"""An SQLite store has one host: a second one is refused while the first lives, and gets the store when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_cases import make_escalation

from guard.errors import StoreError
from guard.review import host_file
from guard.review.host_file import HostFile, this_host
from guard.review.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_file, "BEAT_S", 0.02)
    monkeypatch.setattr(host_file, "WATCH_S", 0.6)
    # The thread of other tests' stores pauses for longer.
    monkeypatch.setattr(host_file, "_HEARTS", host_file._Hearts())


def on_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this process is on that host, as stores that are opened now see it."""
    monkeypatch.setattr(host_file, "this_host", lambda: name)


def test_a_second_host_is_refused_while_the_first_has_the_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reviews.db"
    on_host("one", monkeypatch)
    with Store.open(path) as first:
        on_host("two", monkeypatch)
        before = path.read_bytes()
        with pytest.raises(StoreError, match=r"used by another host.*cannot keep two hosts apart.*Use PostgreSQL"):
            Store.open(path)
        assert path.read_bytes() == before
        first.add(make_escalation(1))


def test_another_host_gets_the_store_when_the_first_has_ended_or_this_one_has_booted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reviews.db"
    on_host("before the boot", monkeypatch)
    with Store.open(path) as first:
        first.add(make_escalation(1))
    on_host("after the boot", monkeypatch)
    with Store.open(path) as second:
        assert second.review("decision-1").question


def test_a_host_that_was_stopped_for_long_does_not_go_on_where_another_has_taken_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written by the first host after the second one has begun."""
    path = tmp_path / "reviews.db"
    on_host("one", monkeypatch)
    with Store.open(path) as first:
        file = first._database._host_file
        assert file is not None
        file.end()  # as if the process were stopped: it writes no more
        on_host("two", monkeypatch)
        with Store.open(path) as second:
            file._written -= 60
            with pytest.raises(StoreError, match="it has taken the store"):
                first.add(make_escalation(1))
            with pytest.raises(StoreError, match="it has taken the store"):
                first.reviews()
            second.add(make_escalation(2))
            assert [review.decision_id for review in second.reviews()] == ["decision-2"]


def test_processes_and_containers_of_one_kernel_are_one_host() -> None:
    code = "from guard.review.host_file import this_host; print(this_host())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert there.stdout.strip() == this_host()


def test_without_the_id_of_a_boot_the_hosts_name_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_file, "_BOOT", tmp_path / "none")
    monkeypatch.setattr("platform.node", lambda: "a-name")
    assert this_host.__wrapped__() == "a-name"


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 256, b"not JSON", b'{"host": 1}', b'["host"]', b"\xff\xfe"])
def test_a_damaged_file_that_nobody_writes_is_taken_over(content: bytes, tmp_path: Path) -> None:
    """By whoever watched it: a host that lives would have written it again."""
    (tmp_path / "r.db-host").write_bytes(content)
    file = HostFile(tmp_path / "r.db", "one")
    file.refuse_others()
    file.take()
    file.beat()
    assert HostFile(tmp_path / "r.db", "one")._read()["host"] == "one"


def test_a_file_that_is_removed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host("one", monkeypatch)
    with Store.open(tmp_path / "r.db") as store:
        (tmp_path / "r.db-host").unlink()
        file = store._database._host_file
        assert file is not None
        file.beat()
        assert (tmp_path / "r.db-host").stat().st_mode & 0o077 == 0


def test_a_forked_child_keeps_writing_when_its_parent_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the store would be given away under the child."""
    path = tmp_path / "r.db"
    on_host("one", monkeypatch)
    with Store.open(path) as store:
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            try:
                store.reviews()
                mark = host_file._HEARTS._thread
                os._exit(0 if mark is not None and mark.is_alive() and host_file._HEARTS._files else 1)
            except BaseException:  # noqa: BLE001 - the child must not go on with the tests
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


def test_a_closed_store_is_written_for_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host("one", monkeypatch)
    store = Store.open(tmp_path / "r.db")
    file = store._database._host_file
    assert file in host_file._HEARTS._files
    store.close()
    assert file not in host_file._HEARTS._files
