"""The audit log's page: what it says of the log, who may read it, and that what it says is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console_pages import MadeConsole
from made_cases import make_escalation
from starlette.testclient import TestClient

from guard.audit.notes import SigningKey
from guard.console import ConsoleSettings
from guard.console.log_checks import LogChecks


@pytest.fixture
def auditor(console: MadeConsole) -> TestClient:
    return console.signed_in("otto", ("auditor",))


def fill(console: MadeConsole, cases: int = 3) -> list[str]:
    ids = [console.store.add(make_escalation(number)).id for number in range(cases)]
    console.store.approve(ids[0], reviewer="mira")
    return ids


def tamper(console: MadeConsole) -> None:
    with console.store._database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_entries_no_update")
        connection.exec_driver_sql("UPDATE audit_entries SET leaf = lower('AB') || leaf WHERE number = 1")


def test_the_log_lists_what_happened_and_opens_an_entry(console: MadeConsole, auditor: TestClient) -> None:
    ids = fill(console)
    page = auditor.get("/audit").text
    assert f"review: added {ids[2]}" in page
    assert f"review: approved {ids[0]}" in page
    assert page.index(f"approved {ids[0]}") < page.index(f"added {ids[0]}")
    entry = auditor.get("/audit/3").text
    assert "decision-0" in entry
    assert "No checkpoint covers this entry yet" in entry
    for number in ("4", "-1", "x", "9" * 30):
        assert auditor.get(f"/audit/{number}").status_code == 404


def test_entries_are_found_by_number_case_decision_and_policy(console: MadeConsole, auditor: TestClient) -> None:
    ids = fill(console)
    console.store.audit_log().append("policy", "policy balanced", {"mode": "enforce"}, texts={})

    def found(q: str) -> int:
        return auditor.get("/audit", params={"q": q}).text.count('<th scope="row"')

    assert [found(q) for q in ("1", ids[0], "decision-0", "policy balanced", "99", "nothing", "<b>")] == [
        *(1, 2, 2, 1, 0, 0, 0)
    ]


def test_a_long_log_is_paged_without_gap(console: MadeConsole, auditor: TestClient) -> None:
    log = console.store.audit_log()
    for number in range(120):
        log.append("policy", f"policy {number}", {"mode": "shadow"}, texts={})
    pages = [auditor.get(f"/audit?before={before}").text for before in ("", 70, 20)]
    shown = [number for page in pages for number in range(119, -1, -1) if f'href="/audit/{number}"' in page]
    assert shown == list(range(119, -1, -1))
    assert 'href="/audit?before=70"' in pages[0]
    assert "Earlier" not in pages[2]


def test_a_sound_log_verifies_and_the_page_says_what_that_does_not_show(
    console: MadeConsole, auditor: TestClient
) -> None:
    fill(console)
    assert "Not checked since this console was started" in auditor.get("/audit").text
    page = auditor.post("/audit/verify", data={}).text
    assert "4 entries, none changed" in page
    assert "only a checkpoint that was kept elsewhere shows that" in page


def test_a_changed_entry_is_found(console: MadeConsole, auditor: TestClient) -> None:
    fill(console)
    tamper(console)
    page = auditor.post("/audit/verify", data={}).text
    assert "The log does not verify" in page
    assert "Entry 1 was changed" in page


@pytest.fixture
def signing(tmp_path: Path) -> MadeConsole:
    key = SigningKey.generate("guard.example")
    return MadeConsole.at(tmp_path / "signed.db", ConsoleSettings(signing_key=key))


def test_a_signed_checkpoint_kept_elsewhere_shows_that_the_end_was_cut_off(signing: MadeConsole) -> None:
    auditor = signing.signed_in("otto", ("auditor",))
    ids = fill(signing)
    made = auditor.post("/audit/checkpoint", data={})
    note = made.text[made.text.index("guard.example\n4\n") : made.text.index("</pre>")]
    assert "In the tree of the checkpoint" in auditor.get("/audit/3").text
    proof = auditor.get("/audit/3/proof")
    assert "attachment" in proof.headers["content-disposition"]
    assert json.loads(proof.text)["entry"]["number"] == 3
    form = {"note": note.replace("\n", "\r\n"), "key": ""}
    assert "up to it nothing was cut off" in auditor.post("/audit/verify", data=form).text

    with signing.store._database.write() as connection:
        for table in ("audit_texts", "audit_entries", "audit_checkpoints"):
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_no_delete")
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE number >= {3 if 'check' not in table else 0}")
    assert "its end was cut off" in auditor.post("/audit/verify", data=form).text
    assert ids
    signing.close()


def test_a_checkpoint_that_cannot_be_read_is_refused_and_stays(console: MadeConsole, auditor: TestClient) -> None:
    page = auditor.post("/audit/verify", data={"note": "guard\n1\nxx", "key": ""})
    assert page.status_code == 422
    assert "needs the key" in page.text
    assert "guard\n1\nxx" in page.text
    assert auditor.post("/audit/verify", data={"note": "x", "key": "nonsense"}).status_code == 422


def test_a_proof_needs_a_checkpoint(console: MadeConsole, auditor: TestClient) -> None:
    fill(console)
    assert auditor.get("/audit/0/proof").status_code == 409


def test_only_an_auditor_of_all_routes_reads_the_log(console: MadeConsole) -> None:
    fill(console)
    roles = ("reviewer", "lead", "viewer", "admin", "auditor:medical")
    for number, role in enumerate(roles):
        visitor = console.signed_in(f"person{number}", (role,))
        assert [visitor.get(path).status_code for path in ("/audit", "/audit/0", "/audit/0/proof")] == [403] * 3
        assert [visitor.post(f"/audit/{deed}", data={}).status_code for deed in ("verify", "checkpoint")] == [403] * 2
        assert 'href="/audit"' not in visitor.get("/settings/users" if role == "admin" else "/queue").text
    assert 'href="/audit"' in console.signed_in("otto", ("auditor",)).get("/queue").text
    crossed = console.signed_in("otto").post("/audit/checkpoint", data={}, headers={"sec-fetch-site": "cross-site"})
    assert crossed.status_code == 403


def test_one_check_runs_at_a_time_and_the_page_says_that_it_runs(console: MadeConsole, auditor: TestClient) -> None:
    import threading

    class SlowLog:
        def __init__(self) -> None:
            self.go = threading.Event()

        def verify(self, **_: object) -> object:
            self.go.wait(20)
            raise RuntimeError("secret")

    slow, checks = SlowLog(), console.app.state.desk.log_checks
    assert checks.begin(slow, key=None, copies=(), wait_s=0.01)
    assert not checks.begin(slow, key=None, copies=())
    assert "Being checked since" in auditor.get("/audit").text
    slow.go.set()
    for thread in threading.enumerate():
        if thread.name == "guard-log-check":
            thread.join(20)
    page = auditor.get("/audit").text
    assert "could not be carried out" in page
    assert "secret" not in page
    assert isinstance(checks, LogChecks)
