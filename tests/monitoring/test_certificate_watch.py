"""Watched certificates in the store: the evidence follows the verdicts, a suspension stays, and processes share it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from made_cases import make_escalation
from moved_clock import MovedClock

from guard.data.question_sets import list_rows, read_sets
from guard.data.questions import LabelledResponse
from guard.errors import InputError, StoreError
from guard.monitoring import acceptance, certificate_watch
from guard.monitoring.acceptance import AcceptanceMonitor
from guard.monitoring.certificate_watch import CertificateWatch
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds
from guard.policy.policy import Policy, parse_policy
from guard.review import migrations, sealing
from guard.review.delivery import Deliverer
from guard.review.endpoints import Endpoints
from guard.review.outbox import notify_of_certificate
from guard.review.store import Store
from guard.review_terms import AuditDraw, ReviewTerms

TEXT = """
version: 1
name: guaranteeing
audit: {rate: 0.5, false_alarms: 0.05}
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - abstain
"""
ID = "c" * 64
HOUR = 3600.0


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def clock(store: Store) -> MovedClock:
    return MovedClock(store)


def policy(text: str = TEXT, digest: str = ID) -> Policy:
    return apply_thresholds(parse_policy(text), {None: CertifiedThreshold(0.3, "f" * 64, digest)})


@pytest.fixture
def watch(store: Store, clock: MovedClock) -> CertificateWatch:
    watching = CertificateWatch(store)
    assert watching.begin(policy()) == (ID,)
    return watching


def add(store: Store, clock: MovedClock, number: int, *, digest: str = ID) -> str:
    terms = ReviewTerms(within_s=HOUR, audit=AuditDraw(0.5, digest))
    return store.add(make_escalation(number, terms=terms, created_at=str(clock))).id


def events(store: Store) -> list[str]:
    found = [json.loads(entry.event) for entry in store.audit_log().entries()]
    return [event["what"] for event in found if event["kind"] == "certificate"]


def test_what_is_not_decided_counts_as_right_and_what_is_late_as_wrong(
    store: Store, clock: MovedClock, watch: CertificateWatch
) -> None:
    names = [add(store, clock, number) for number in range(4)]
    store.approve(names[0], reviewer="ann")
    store.reject(names[1], reviewer="ann")
    (found,) = watch.refresh()
    assert (found.waiting, found.right, found.wrong, found.overdue) == (4, 0, 0, 0)
    clock.move(11)
    (found,) = watch.refresh()
    assert (found.waiting, found.right, found.wrong, found.overdue) == (2, 1, 1, 0)
    assert (found.evidence.labels, found.evidence.wrong) == (4, 1)
    assert found.error_rate is not None
    assert found.error_rate[0] == 0.5
    clock.move(HOUR)
    (found,) = watch.read()
    assert (found.overdue, found.overdue_share) == (2, 0.5)
    assert (found.evidence.labels, found.evidence.wrong) == (4, 3)
    store.approve(names[2], reviewer="ann")
    assert watch.read()[0].overdue == 1, "a verdict that can still be undone is neither right nor late"
    clock.move(11)
    assert (watch.read()[0].right, watch.read()[0].evidence.wrong) == (2, 2)


def test_a_broken_guarantee_is_suspended_once_and_for_good(
    store: Store, clock: MovedClock, watch: CertificateWatch
) -> None:
    names = [add(store, clock, number) for number in range(6)]
    for name in names:
        store.reject(name, reviewer="ann")
    assert watch.refresh()[0].suspended_at is None
    clock.move(11)
    with ThreadPoolExecutor(4) as pool:
        found = [each for (each,) in pool.map(lambda _: watch.refresh(), range(8))]
    assert len({each.suspended_at for each in found}) == 1
    assert found[0].suspended_at is not None
    assert "6 of 6 audited answers are wrong or overdue" in str(found[0].suspended_why)
    assert watch.suspended([ID, "d" * 64]) == {ID}
    assert events(store) == ["watched", "suspended"]
    for number in range(10, 60):
        store.approve(add(store, clock, number), reviewer="ann")
    clock.move(11)
    assert watch.begin(policy()) == (ID,)
    assert watch.refresh()[0].suspended_at == found[0].suspended_at


def test_a_certificate_that_many_begin_to_watch_at_once_has_one_entry(store: Store) -> None:
    digests, together = [f"{number:064x}" for number in range(8)], threading.Barrier(4)

    def begin(_: int) -> None:
        for digest in digests:
            together.wait(20)
            CertificateWatch(store).begin(policy(digest=digest))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))
    assert events(store) == ["watched"] * len(digests)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE watched_certificates SET suspended_at = NULL",
        "UPDATE watched_certificates SET id = 'other'",
        "DELETE FROM watched_certificates",
        "UPDATE reviews SET kind = 'escalation'",
        "UPDATE reviews SET certificate = NULL",
        "UPDATE reviews SET audit_rate = 1",
        "DELETE FROM sampling_keys",
    ],
)
def test_the_database_refuses_to_forget(
    store: Store, clock: MovedClock, watch: CertificateWatch, statement: str
) -> None:
    watch.sampling_key()
    for number in range(3):
        store.reject(add(store, clock, number), reviewer="ann")
    clock.move(11)
    assert watch.refresh()[0].suspended_at
    with pytest.raises(StoreError), store._database.write() as connection:
        connection.exec_driver_sql(statement)


def test_a_certificate_that_is_replaced_in_sqlite_stays(path: Path) -> None:
    columns = "id, policy, risk, confidence, threshold, rate, false_alarms, since, shift"
    values = f"'{ID}', 'forged', 0.9, 0.5, 1, 1, 0.05, 'x', '{{}}'"
    with Store.open(path) as store:
        watch = CertificateWatch(store)
        watch.begin(policy())
        with store._database.write() as connection:
            connection.exec_driver_sql(f"INSERT OR REPLACE INTO watched_certificates ({columns}) VALUES ({values})")
        assert watch.read()[0].policy == "guaranteeing"


def test_another_process_sees_the_suspension(
    store: Store, clock: MovedClock, url: str, watch: CertificateWatch
) -> None:
    for number in range(4):
        store.reject(add(store, clock, number), reviewer="ann")
    clock.move(11)
    watch.refresh()
    code = (
        "import sys; from guard.review.store import Store; from guard.monitoring import CertificateWatch\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    print(CertificateWatch(store).suspended([sys.argv[2]]) == {sys.argv[2]})"
    )
    done = subprocess.run([sys.executable, "-c", code, url, ID], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_each_certificate_has_its_own_evidence(store: Store, clock: MovedClock, watch: CertificateWatch) -> None:
    watch.begin(policy(digest="e" * 64))
    for number in range(5):
        store.reject(add(store, clock, number, digest="e" * 64), reviewer="ann")
    add(store, clock, 9)
    clock.move(11)
    watch.refresh()
    assert watch.suspended([ID, "e" * 64]) == {"e" * 64}
    assert watch.find("cc").evidence.labels == 1
    assert [each.id for each in watch.read([ID])] == [ID]


def test_escalated_cases_say_nothing_about_the_guarantee(
    store: Store, clock: MovedClock, watch: CertificateWatch
) -> None:
    for number in range(5):
        store.reject(store.add(make_escalation(number)).id, reviewer="ann")
    clock.move(11)
    assert watch.refresh()[0].evidence.labels == 0


def test_a_certificate_is_found_by_the_beginning_of_its_digest(watch: CertificateWatch) -> None:
    watch.begin(policy(digest="cd" + "0" * 62))
    assert watch.find("ccc").id == ID
    with pytest.raises(InputError, match="more than one certificate 'c'"):
        watch.find("c")
    with pytest.raises(InputError, match="no certificate 'x'"):
        watch.find("x")


def test_a_changed_rate_is_kept_and_logged_and_the_evidence_stays(
    store: Store, clock: MovedClock, watch: CertificateWatch
) -> None:
    add(store, clock, 1)
    watch.begin(policy(TEXT.replace("rate: 0.5", "rate: 0.1")))
    assert (watch.read()[0].rate, watch.read()[0].evidence.labels) == (0.1, 1)
    watch.begin(policy(TEXT.replace("rate: 0.5", "rate: 0.1")))
    assert events(store) == ["watched", "changed"]


def test_a_policy_without_audit_or_certificate_watches_nothing(store: Store) -> None:
    watching = CertificateWatch(store)
    assert watching.begin(policy(TEXT.replace("audit: {rate: 0.5, false_alarms: 0.05}", ""))) == ()
    assert watching.begin(parse_policy("{version: 1, name: x, audit: {rate: 1}, rules: [accept]}")) == ()
    assert watching.refresh() == []


# -- the label-free alarm ----------------------------------------------------------------------


def test_less_usual_inputs_give_an_alarm_that_is_shared_and_kept(
    store: Store, url: str, watch: CertificateWatch
) -> None:
    rng = random.Random(0)
    usual = [(0.9 * rng.random(), rng.random()) for _ in range(300)]
    assert not watch.note_inputs(ID, usual)
    with Store.open(url) as other:
        assert CertificateWatch(other).note_inputs(ID, [(0.99, 0.5)] * 40)
    (found,) = watch.read()
    assert (found.inputs, found.suspended_at) == (340, None)
    assert found.shifted_at is not None
    assert watch.note_inputs(ID, usual), "it stays"
    assert events(store) == ["watched", "shifted"]


def test_inputs_are_handed_over_in_batches_and_at_the_end(
    store: Store, watch: CertificateWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "_BATCH", 3)
    chosen = policy()
    monitor = AcceptanceMonitor(store, chosen)
    due = [monitor.note_input(chosen.plan(), f"decision {number}", 0.5) for number in range(3)]
    assert due == [False, False, True]
    monitor.write_inputs()
    assert watch.read()[0].inputs == 3
    assert not monitor.note_input(chosen.plan(), "unscored", None)
    monitor.note_input(chosen.plan(), "last", 0.5)
    monitor.close()
    assert watch.read()[0].inputs == 4


# -- people ------------------------------------------------------------------------------------


def test_a_skipped_audit_case_comes_back_last(store: Store, clock: MovedClock) -> None:
    audit, escalated = add(store, clock, 1), store.add(make_escalation(2)).id
    for name in (audit, escalated):
        store.skip(name, reviewer="ann")
    other = store.add(make_escalation(3)).id

    def taken() -> str | None:
        case = store.claim_next(reviewer="ann")
        return case and case.id

    assert taken() == other
    store.approve(other, reviewer="ann")
    assert taken() == audit
    store.release(audit, reviewer="ann")
    store.skip(audit, reviewer="ann")
    assert taken() == audit, "an audit case cannot be skipped for good"
    store.approve(audit, reviewer="ann")
    assert taken() is None, "an escalated one can"


def test_audit_cases_are_counted_apart(store: Store, clock: MovedClock) -> None:
    names = [add(store, clock, number) for number in range(4)]
    store.add(make_escalation(9))
    store.approve(names[0], reviewer="ann")
    store.reject(names[1], reviewer="ann")
    assert store.stats().audits == {"waiting": 2, "overdue": 0, "right": 1, "wrong": 1}
    clock.move(HOUR + 1)
    assert store.stats().audits == {"waiting": 0, "overdue": 2, "right": 1, "wrong": 1}
    assert len(store.reviews(kind="audit")) == 4
    assert [case.kind for case in store.reviews(kind="escalation")] == ["escalation"]
    with pytest.raises(InputError, match="There are no cases 'audits'"):
        store.reviews(kind="audits")  # type: ignore[arg-type]


def test_labels_say_how_many_answers_they_stand_for(store: Store, clock: MovedClock, tmp_path: Path) -> None:
    """Weighted, the labels of a few audits count as much as those of the answers that they were drawn from."""
    audit, escalated = add(store, clock, 1), store.add(make_escalation(2)).id
    store.approve(audit, reviewer="ann")
    store.reject(escalated, reviewer="ann")
    clock.move(11)
    rows = {row["id"]: row for row in store.labelled()}
    assert [(rows[name]["kind"], rows[name]["weight"], rows[name]["label"]) for name in (audit, escalated)] == [
        ("audit", 2.0, 0),
        ("escalation", 1.0, 1),
    ]
    assert [row["id"] for row in store.labelled(kind="audit")] == [audit]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in store.labelled()))
    read = [row for _, row in list_rows(read_sets(str(file)))]
    assert [row.wrong for row in read if isinstance(row, LabelledResponse)] == [False, True]


def test_a_filled_store_goes_back_to_0009_and_forwards_again(
    store: Store, clock: MovedClock, watch: CertificateWatch
) -> None:
    watch.sampling_key()
    name = add(store, clock, 1)
    with store._database.write() as connection:
        migrations.downgrade(connection, to="0009")
        tables = sa.inspect(connection).get_table_names()
        assert "watched_certificates" not in tables
        assert connection.exec_driver_sql("SELECT id FROM reviews").scalars().all() == [name]
    with store._database.write() as connection:
        migrations.upgrade(connection)
    assert (store.review(name).kind, watch.read()) == ("escalation", [])
    store.approve(name, reviewer="ann")


# -- who is notified -----------------------------------------------------------------------------


@pytest.fixture
def endpoints(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Endpoints:
    monkeypatch.delenv(sealing.ENVIRONMENT, raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "data" / name)
    return Endpoints(store)


def test_endpoints_are_notified_of_a_suspension_and_of_the_alarm_without_labels(
    store: Store, clock: MovedClock, watch: CertificateWatch, endpoints: Endpoints
) -> None:
    endpoints.add("oncall", "oncall", kind="python", events=["certificate.suspended", "certificate.shifted"])
    got: list[dict[str, Any]] = []
    for number in range(8):
        store.reject(add(store, clock, number), reviewer="ann")
    clock.move(60)
    for _ in range(2):  # the second finds it suspended
        watch.refresh()
    assert watch.note_inputs(ID, [(0.1, 0.5)] * 300 + [(0.99, 0.5)] * 100)
    assert watch.note_inputs(ID, [(0.99, 0.5)])
    assert Deliverer(store, {"oncall": got.append}).deliver() == 2
    assert [each["type"] for each in got] == ["certificate.suspended", "certificate.shifted"]
    assert [each["data"]["certificate"] for each in got] == [ID, ID]
    assert "audited answers are wrong" in got[0]["data"]["why"]
    assert {each["data"]["policy"] for each in got} == {policy().name}
    assert [message.review_id for message in endpoints.messages()] == [None, None]


def test_a_suspension_that_cannot_be_written_notifies_nobody(
    store: Store, clock: MovedClock, watch: CertificateWatch, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are one transaction: a message without a suspension would be as false as a suspension without one."""
    endpoints.add("oncall", "oncall", kind="python")
    for number in range(8):
        store.reject(add(store, clock, number), reviewer="ann")
    clock.move(60)
    sent_before = len(endpoints.messages())

    def dies(*_: object) -> None:
        notify_of_certificate(*_)  # type: ignore[arg-type]
        raise RuntimeError("killed")

    monkeypatch.setattr(certificate_watch, "notify_of_certificate", dies)
    with pytest.raises(RuntimeError, match="killed"):
        watch.refresh()
    assert len(endpoints.messages()) == sent_before
    assert watch.read()[0].suspended_at is None
    monkeypatch.undo()
    assert watch.refresh()[0].suspended_at is not None
    assert next(each.event for each in endpoints.messages()) == "certificate.suspended"


def test_a_store_with_messages_about_certificates_goes_back_to_0012_and_forwards_again(
    store: Store, clock: MovedClock, watch: CertificateWatch, endpoints: Endpoints
) -> None:
    endpoints.add("oncall", "oncall", kind="python")
    for number in range(8):
        store.reject(add(store, clock, number), reviewer="ann")
    clock.move(60)
    watch.refresh()
    about_cases = {each.id for each in endpoints.messages(limit=100) if each.review_id is not None}
    assert about_cases
    with store._database.write() as connection:
        migrations.downgrade(connection, to="0012")
        assert set(connection.exec_driver_sql("SELECT id FROM outbox").scalars()) == about_cases
        migrations.upgrade(connection)
    assert {each.id for each in endpoints.messages(limit=100)} == about_cases
    assert watch.read()[0].suspended_at is not None
