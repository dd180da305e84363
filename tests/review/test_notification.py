"""Notifications: in the event's own transaction, signed by the standard, tried for three days, and never too early."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiosmtpd.controller import Controller
from made_cases import make_escalation
from moved_clock import MovedClock
from standardwebhooks import Webhook, WebhookVerificationError
from webhook_receiver import Receiver, receiving

from guard.audit.notes import SigningKey
from guard.errors import InputError, StoreError
from guard.review import delivery, outbox, sealing, sending
from guard.review.delivery import Deliverer
from guard.review.endpoints import Endpoints
from guard.review.outbox import BACKOFF_S, EVENTS_OF_TRAIL
from guard.review.queries import record
from guard.review.records import UNDO_S
from guard.review.sending import SendError, checked_address
from guard.review.store import ReviewStatus, Store
from guard.review_terms import ReviewTerms

SECRET = "the patient's name"


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sealing.ENVIRONMENT, raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "data" / name)


@pytest.fixture
def endpoints(store: Store, clock: MovedClock) -> Endpoints:
    return Endpoints(store)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


def types(receiver: Receiver) -> list[str]:
    return [json.loads(body)["type"] for _, body in receiver.got]


def hook(endpoints: Endpoints, receiver: Receiver, **options: Any) -> str:
    return str(endpoints.add("desk", receiver.url, allow_private=True, **options))


# -- what is sent, and when --------------------------------------------------------------------


def test_events_are_signed_by_standard_webhooks(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    secret = hook(endpoints, receiver, events=["case.created"])
    case = store.add(make_escalation(question=SECRET, answer=SECRET))
    assert Deliverer(store).deliver() == 1
    ((headers, body),) = receiver.got
    event = Webhook(secret).verify(body, headers)
    assert event == {
        "type": "case.created",
        "timestamp": event["timestamp"],
        "data": {
            "case": case.id,
            "decision_ids": ["decision-0"],
            "route": "medical",
            "policy": "balanced",
            "due": None,
        },
    }
    assert SECRET.encode() not in body
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.replace(b"medical", b"lawless"), headers)


def test_texts_are_sent_to_those_who_may_have_them(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    hook(endpoints, receiver, with_text=True)
    store.add(make_escalation(question=SECRET))
    Deliverer(store).deliver()
    assert json.loads(receiver.got[0][1])["data"]["question"] == SECRET


def test_a_rotated_secret_and_the_last_one_both_verify(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    first = hook(endpoints, receiver)
    second = endpoints.rotate("desk")
    store.add(make_escalation())
    Deliverer(store).deliver()
    ((headers, body),) = receiver.got
    for secret in (first, second):
        assert Webhook(secret).verify(body, headers)
    third = endpoints.rotate("desk")
    store.add(make_escalation(1))
    Deliverer(store).deliver()
    headers, body = receiver.got[1]
    assert Webhook(third).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(first).verify(body, headers)


def test_every_step_of_a_case_is_an_event(
    store: Store, clock: MovedClock, endpoints: Endpoints, receiver: Receiver
) -> None:
    hook(endpoints, receiver)
    late = store.add(make_escalation(1, terms=ReviewTerms(within_s=86_400 + 60))).id
    name = store.add(make_escalation()).id
    store.claim(name, reviewer="ann")
    store.release(name, reviewer="ann")
    store.skip(name, reviewer="ann")
    store.assign(name, to="bob", by="lea")
    store.approve(name, reviewer="bob")
    clock.move(61)
    Deliverer(store).deliver()
    got = [json.loads(body) for _, body in receiver.got]
    assert {event["type"] for event in got if event["data"]["case"] == name} == set(EVENTS_OF_TRAIL.values()) - {
        "case.late",
        "case.undone",
    }
    assert {event["type"] for event in got if event["data"]["case"] == late} == {"case.created", "case.late"}
    (decided,) = [event for event in got if event["type"] == "case.decided"]
    assert decided["data"]["verdict"] == "approved"


def test_a_verdict_is_not_sent_before_it_is_final_and_never_if_it_is_undone(
    store: Store, clock: MovedClock, endpoints: Endpoints, receiver: Receiver
) -> None:
    hook(endpoints, receiver, events=["case.decided", "case.undone"])
    name = store.add(make_escalation()).id
    store.approve(name, reviewer="ann")
    clock.move(UNDO_S - 1)
    assert Deliverer(store).deliver() == 0
    store.undo(name, reviewer="ann")
    clock.move(UNDO_S)
    Deliverer(store).deliver()
    assert types(receiver) == ["case.undone"]
    store.reject(name, reviewer="ann")
    clock.move(UNDO_S)
    Deliverer(store).deliver()
    assert [json.loads(body)["data"].get("verdict") for _, body in receiver.got] == [None, "rejected"]
    cancelled = [message for message in endpoints.messages() if message.cancelled_at]
    assert [message.event for message in cancelled] == ["case.decided"]


@pytest.mark.parametrize("signed", [True, False])
def test_a_checkpoint_of_the_log_is_sent_to_be_kept_elsewhere(
    store: Store, endpoints: Endpoints, receiver: Receiver, signed: bool
) -> None:
    hook(endpoints, receiver, events=["log.checkpoint"])
    key = SigningKey.generate("example.org/guard") if signed else None
    store.add(make_escalation())
    note = store.audit_log().checkpoint(key)
    Deliverer(store).deliver()
    ((_, body),) = receiver.got
    event = json.loads(body)
    assert (event["type"], event["data"]["note"], event["data"]["signed"]) == ("log.checkpoint", note, signed)
    assert event["data"]["size"] == len(store.audit_log())
    assert event["data"]["root"] in sending.sentence(body)
    if key is not None:
        assert store.audit_log().verify(key=key.public, copies=(event["data"]["note"],)).ok


def test_what_fails_in_the_transaction_notifies_nobody(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    hook(endpoints, receiver)
    name = store.add(make_escalation()).id
    before = endpoints.messages()

    def claim_and_fail() -> None:
        with store._database.write() as connection:
            record(connection, name, at="2026-01-02", who="ann", what="claimed")
            connection.exec_driver_sql("SELECT * FROM no_such_table")

    with pytest.raises(StoreError, match="no_such_table"):
        claim_and_fail()
    assert endpoints.messages() == before


# -- failures ----------------------------------------------------------------------------------


def test_what_fails_is_tried_again_with_the_same_id_for_three_days_and_is_then_a_dead_letter(
    store: Store, clock: MovedClock, endpoints: Endpoints
) -> None:
    with receiving(*[500] * 10) as receiver:
        hook(endpoints, receiver)
        store.add(make_escalation())
        worker = Deliverer(store)
        for pause in BACKOFF_S:
            assert worker.deliver() == 1
            clock.move(pause - 1)
            assert worker.deliver() == 0
            clock.move(1 + pause * outbox.JITTER)
        assert worker.deliver() == 1
        assert {headers["webhook-id"] for headers, _ in receiver.got} == {endpoints.messages()[0].id}
        clock.move(10**7)
        assert worker.deliver() == 0
        (dead,) = endpoints.messages(dead=True)
        assert (dead.attempts, dead.last_error, dead.next_at) == (10, "HTTP 500", None)
        assert endpoints.replay() == 1
        assert worker.deliver() == 1
        assert endpoints.messages(dead=True) == []
    assert sum(BACKOFF_S) > 3 * 86_400 * 0.9


def test_a_receiver_that_is_gone_is_switched_off(store: Store, endpoints: Endpoints) -> None:
    with receiving(410) as receiver:
        hook(endpoints, receiver)
        store.add(make_escalation())
        store.add(make_escalation(1))
        Deliverer(store).deliver()
        (endpoint,) = endpoints.all()
        assert endpoint.off_reason == "HTTP 410"
        store.add(make_escalation(2))
        assert Deliverer(store).deliver() == 0
        endpoints.switch("desk", on=True)
        endpoints.replay(endpoints.messages(dead=True)[0].id)
        Deliverer(store).deliver()
        assert len(receiver.got) == 3


def test_a_receiver_that_hangs_keeps_nobody(
    store: Store, clock: MovedClock, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TIMEOUT_S", 0.5)
    with receiving(None) as receiver, receiving() as other:
        hook(endpoints, receiver)
        endpoints.add("other", other.url, allow_private=True)
        store.add(make_escalation())
        Deliverer(store).deliver()
        assert len(other.got) == 1
        (failed,) = [message for message in endpoints.messages() if message.last_error]
        assert failed.last_error == "no answer within 0.5 s"


def test_a_function_that_hangs_keeps_nobody(
    store: Store, clock: MovedClock, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.2)
    gate, got = threading.Event(), []
    endpoints.add("hanging", "x", kind="python")
    endpoints.add("other", "x", kind="python")
    store.add(make_escalation())
    try:
        Deliverer(store, {"hanging": lambda event: gate.wait(), "other": got.append}).deliver()
    finally:
        gate.set()
    assert len(got) == 1
    (failed,) = [message for message in endpoints.messages() if message.last_error]
    assert (failed.endpoint, failed.last_error) == ("hanging", "not done within 0.2 s")


def test_an_object_with_an_async_call_is_awaited(store: Store, clock: MovedClock, endpoints: Endpoints) -> None:
    got = []

    class Desk:
        async def __call__(self, event: dict[str, Any]) -> None:
            got.append(event["type"])

    endpoints.add("desk", "x", kind="python")
    store.add(make_escalation())
    Deliverer(store, {"desk": Desk()}).deliver()
    assert got == ["case.created"]


def test_a_receiver_that_is_not_there_or_redirects(store: Store, clock: MovedClock, endpoints: Endpoints) -> None:
    with receiving(302, 204) as receiver:
        hook(endpoints, receiver)
        store.add(make_escalation())
        Deliverer(store).deliver()
        assert len(receiver.got) == 1
        assert endpoints.messages()[0].last_error == "HTTP 302"
    clock.move(10)
    Deliverer(store).deliver()
    assert "ConnectError" in str(endpoints.messages()[0].last_error)


_DELIVER = """
import sys
from guard.review.delivery import Deliverer
from guard.review.store import Store
Deliverer(Store.open(sys.argv[1])).deliver()
"""


def test_a_worker_that_dies_while_it_sends_leaves_the_message_to_another(
    url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.fernet import Fernet

    monkeypatch.setenv(sealing.ENVIRONMENT, Fernet.generate_key().decode())
    endpoints = Endpoints(store)
    with receiving(None) as receiver:
        hook(endpoints, receiver)
        store.add(make_escalation())
        process = subprocess.Popen([sys.executable, "-c", _DELIVER, url])
        deadline = time.monotonic() + 60
        while not receiver.got:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert Deliverer(store).deliver() == 0  # the lease holds
        clock = store._database.clock
        monkeypatch.setattr(
            store._database, "clock", lambda connection: clock(connection) + timedelta(seconds=outbox.LEASE_S + 1)
        )
        assert Deliverer(store).deliver() == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert endpoints.messages()[0].delivered_at is not None


def test_many_workers_send_each_message_once(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    hook(endpoints, receiver, events=["case.created"])
    for number in range(40):
        store.add(make_escalation(number))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Deliverer(store).deliver(), range(4)))
    assert {message.last_error for message in endpoints.messages()} == {None}
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert len(ids) == len(set(ids)) == 40


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.0.0.5", "192.168.1.1", "169.254.169.254", "[::1]", "[fd00::1]", "[::ffff:10.0.0.5]", "0.0.0.0",
     "100.64.0.1", "224.0.0.1", "localhost"],
)  # fmt: skip
def test_private_addresses_are_refused_unless_allowed(host: str) -> None:
    parts = urlsplit(f"http://{host}:80/x")
    with pytest.raises(SendError, match="not a public address"):
        checked_address(parts, allow_private=False)
    assert checked_address(parts, allow_private=True)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", (address, 443)) for address in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(SendError, match=r"127\.0\.0\.1"):
        checked_address(urlsplit("https://hooks.example.org/x"), allow_private=False)


def test_the_address_that_was_checked_is_the_one_that_is_used(
    store: Store, endpoints: Endpoints, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers otherwise the second time changes nothing."""
    port = urlsplit(receiver.url).port
    answers = iter([[(2, 1, 6, "", ("127.0.0.1", port))]])
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        return next(answers) if host == "hooks.example.org" else real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    endpoints.add("desk", f"http://hooks.example.org:{port}/hook", allow_private=True)
    store.add(make_escalation())
    Deliverer(store).deliver()
    assert receiver.got[0][0]["host"] == f"hooks.example.org:{port}"


# -- people and functions ----------------------------------------------------------------------


def test_a_chat_gets_a_sentence(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    assert endpoints.add("chat", receiver.url, kind="slack", allow_private=True) is None
    case = store.add(make_escalation(terms=ReviewTerms(within_s=90_000)))
    Deliverer(store).deliver()
    text = json.loads(receiver.got[0][1])["text"]
    assert text == f"guard: case {case.id} waits for a person (medical), due 2026-01-02 01:00 UTC"


class _Mails:
    def __init__(self) -> None:
        self.letters: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append(envelope)
        return "250 OK"


def test_a_mail_is_sent_by_smtp(store: Store, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints.add("oncall", "oncall@example.org", kind="email")
    case = store.add(make_escalation(question=SECRET))
    monkeypatch.delenv(sending.SMTP, raising=False)
    Deliverer(store).deliver()
    assert "does not name a mail server" in str(endpoints.messages()[0].last_error)
    mails = _Mails()
    controller = Controller(mails, hostname="127.0.0.1", port=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        controller.port = free.getsockname()[1]
    controller.start()
    try:
        monkeypatch.setenv(sending.SMTP, f"smtp://127.0.0.1:{controller.port}?from=guard@example.org")
        store._database.clock = lambda _: datetime.now(UTC)
        Deliverer(store).deliver()
    finally:
        controller.stop()
    (letter,) = mails.letters
    assert (letter.mail_from, letter.rcpt_tos) == ("guard@example.org", ["oncall@example.org"])
    assert f"Subject: guard: case {case.id} waits for a person" in letter.content.decode()
    assert SECRET not in letter.content.decode()


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_functions_are_called_by_the_workers_that_have_them(store: Store, endpoints: Endpoints, kind: str) -> None:
    got: list[dict[str, Any]] = []

    async def later(event: dict[str, Any]) -> None:
        got.append(event)

    endpoints.add("desk", "our ticket system", kind="python")
    case = store.add(make_escalation())
    assert Deliverer(store).deliver() == 0
    assert Deliverer(store, {"desk": got.append if kind == "plain" else later}).deliver() == 1
    assert (got[0]["type"], got[0]["data"]["case"], got[0]["id"][:4]) == ("case.created", case.id, "msg_")


def test_a_function_that_fails_is_called_again(store: Store, clock: MovedClock, endpoints: Endpoints) -> None:
    calls: list[int] = []

    def fails_once(event: dict[str, Any]) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no network")

    endpoints.add("desk", "x", kind="python")
    store.add(make_escalation())
    worker = Deliverer(store, {"desk": fails_once})
    worker.deliver()
    assert endpoints.messages()[0].last_error == "ConnectionError: no network"
    clock.move(6)
    worker.deliver()
    assert endpoints.messages()[0].delivered_at is not None


# -- endpoints and their secrets ---------------------------------------------------------------


def test_secrets_are_not_in_the_database(store: Store, endpoints: Endpoints, receiver: Receiver) -> None:
    secret = hook(endpoints, receiver)
    with store._database.read() as connection:
        everything = str(connection.exec_driver_sql("SELECT * FROM endpoints").all())
    assert secret.removeprefix("whsec_") not in everything
    assert "hidden" not in everything  # the token in the URL
    assert endpoints.all()[0].address.endswith("/...")
    file = next(Path(sealing.platformdirs.user_data_path("guard")).glob("secrets.key"))
    assert file.stat().st_mode & 0o077 == 0


def test_another_key_reads_nothing_and_says_so(
    store: Store, endpoints: Endpoints, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.fernet import Fernet

    hook(endpoints, receiver)
    old = next(Path(sealing.platformdirs.user_data_path("guard")).glob("secrets.key")).read_text()
    monkeypatch.setenv(sealing.ENVIRONMENT, Fernet.generate_key().decode())
    with pytest.raises(StoreError, match="encrypted with another key"):
        endpoints.secrets("desk")
    monkeypatch.setenv(sealing.ENVIRONMENT, f"{Fernet.generate_key().decode()}, {old}")
    assert endpoints.secrets("desk")["target"] == receiver.url
    monkeypatch.setenv(sealing.ENVIRONMENT, "short")
    with pytest.raises(StoreError, match="not valid"):
        endpoints.secrets("desk")


@pytest.mark.parametrize(
    ("name", "target", "options"),
    [
        ("", "https://example.org", {}),
        ("a", "ftp://example.org", {}),
        ("a", "https://", {}),
        ("a", "https://example.org:port", {}),
        ("a", "https://example.org", {"kind": "webhok"}),
        ("a", "https://example.org", {"events": ["case.decide"]}),
        ("a", "nobody", {"kind": "email"}),
        ("a", "a@b.org\nBcc: c@d.org", {"kind": "email"}),
    ],
)
def test_endpoints_that_make_no_sense_are_refused(
    endpoints: Endpoints, name: str, target: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        endpoints.add(name, target, **options)
    assert endpoints.all() == []


def test_unknown_and_repeated_names(endpoints: Endpoints) -> None:
    endpoints.add("desk", "https://example.org")
    with pytest.raises(InputError, match="already"):
        endpoints.add("desk", "https://example.org")
    for ask in (endpoints.rotate, endpoints.secrets, lambda name: endpoints.switch(name, on=True)):
        with pytest.raises(InputError, match="Did you mean 'desk'"):
            ask("dsk")
    with pytest.raises(InputError, match="no message"):
        endpoints.replay("msg_x")


def test_the_worker_runs_until_it_is_stopped(store: Store, clock: MovedClock) -> None:
    case = store.add(make_escalation(terms=ReviewTerms(within_s=1.0)))
    stop = threading.Event()
    thread = threading.Thread(target=Deliverer(store).run, args=(stop,), kwargs={"pause_s": 0.01})
    thread.start()
    deadline = time.monotonic() + 30
    while store.review(case.id).late_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert store.review(case.id).status is ReviewStatus.PENDING
