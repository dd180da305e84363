"""``guard audit`` as its users run it, on a store with real cases."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from made_cases import make_escalation
from typer.testing import CliRunner

from guard.audit.log import Entry, InclusionProof
from guard.audit.notes import LogCheckpoint
from guard.cli import app
from guard.errors import GuardError
from guard.review.store import Store


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = str(tmp_path / "reviews.db")
    with Store.open(url) as opened:
        review = opened.add(make_escalation(1))
        opened.add(make_escalation(2))
        opened.approve(review.id, reviewer="ada")
    return url


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["audit", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def signed(store: str, tmp_path: Path) -> tuple[str, str]:
    """The verifier key and a copy of a signed checkpoint."""
    key = run("key", "test/guard", "--out", str(tmp_path / "key")).strip()
    copy = str(tmp_path / "checkpoint.txt")
    note = run("checkpoint", "--signing-key", str(tmp_path / "key"), "--out", copy, "--store", store)
    assert Path(copy).read_text(encoding="utf-8") == note
    return key, copy


def test_a_log_verifies_against_a_signed_copy(store: str, signed: tuple[str, str]) -> None:
    key, copy = signed
    said = " ".join(run("verify", "--key", key, "--checkpoint", copy, "--store", store).split())
    assert "The log of 3 entries is as it was written: 2 checkpoints (2 signed by the key)" in said
    assert "does not show that nothing was cut off" in " ".join(run("verify", "--store", store).split())


def test_a_tampered_log_is_named_and_exits_with_6(store: str, signed: tuple[str, str]) -> None:
    key, copy = signed
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TRIGGER audit_entries_no_update")
        connection.execute("UPDATE audit_entries SET event = replace(event, 'approved', 'rejected')")
        connection.commit()
    said = run("verify", "--key", key, "--checkpoint", copy, "--store", store, code=6)
    assert "Entry 2 was changed" in said
    found = json.loads(run("verify", "--json", "--store", store, code=6))
    assert (found["ok"], found["size"]) == (False, 3)


def test_a_row_of_a_tampered_log_cannot_pose_as_the_result(tmp_path: Path) -> None:
    url = str(tmp_path / "reviews.db")
    with Store.open(url) as opened:
        opened.audit_log(keep_text=True).append("decision", "d0", {}, texts={"answer": "yes"})
    with closing(sqlite3.connect(url)) as connection:
        connection.execute("DROP TRIGGER audit_texts_no_update")
        connection.execute("UPDATE audit_texts SET field = ?", ("x\nThe log is as it was written\x1b[8m",))
        connection.commit()
    said = run("verify", "--store", url, code=6)
    assert [line[:8] for line in said.splitlines() if "is as it was written" in line] == ["Problem:"]
    assert "\x1b" not in said


def test_every_entry_of_a_decision_is_proven(store: str, signed: tuple[str, str]) -> None:
    printed = [json.loads(line) for line in run("prove", "decision-1", "--store", store).splitlines()]
    assert [json.loads(each["entry"]["event"])["what"] for each in printed] == ["added", "approved"]
    for each in printed:
        made = each["checkpoint"]
        proof = InclusionProof(
            Entry(**each["entry"]),
            LogCheckpoint(made["origin"], made["size"], bytes.fromhex(made["root"])),
            tuple(each["path"]),
        )
        assert proof.holds()
    assert run("prove", "2", "--store", store).count("\n") == 1
    with pytest.raises(GuardError, match="no entry about"):
        run("prove", "nothing", "--store", store)


def test_the_export_holds_no_text_and_less_after_erasing(store: str) -> None:
    before = [json.loads(line) for line in run("export", "--store", store).splitlines()]
    assert [each["number"] for each in before] == [0, 1, 2]
    assert before[0]["openings"]["answer"]["content"] is None
    assert "Question 1?" not in json.dumps(before)
    assert "Erased 7 texts" in run("erase", "--before", "2100-01-01T00:00:00+00:00", "--store", store)
    after = [json.loads(line) for line in run("export", "--store", store).splitlines()]
    assert [each["event"] for each in after] == [each["event"] for each in before]
    assert not any(each["openings"] for each in after)


def test_no_log_is_made_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="no review store"):
        run("verify", "--store", str(tmp_path / "none.db"))
    with pytest.raises(GuardError, match="cannot be read"):
        run("verify", "--checkpoint", str(tmp_path / "none.txt"), "--store", _opened(tmp_path))


def _opened(folder: Path) -> str:
    url = str(folder / "empty.db")
    Store.open(url).close()
    return url
