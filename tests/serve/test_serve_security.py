"""Hostile requests over real sockets: large, slow and deep bodies, paths, and anything that the description allows."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from served import POLICY, Served, running, said, serving
from starlette.responses import Response
from waiting_engine import until, waiting_engine

from guard.access import Access, Grant, Role
from guard.review.store import Store
from guard.serve import ServeSettings, create_application
from guard.serve.event_stream import EventStream
from guard.serve.running import http_server

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}
SMALL = ServeSettings(body_bytes=20_000, body_seconds=0.4)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(said("Paris"), settings=SMALL) as running:
        yield running


def raw(served: Served, data: bytes, *, more: bytes | None = None) -> bytes:
    """Send bytes, and read to the end of the connection, which a server that refuses may reset."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        answer = b""
        with suppress(ConnectionError):
            connection.sendall(data + (more or b""))
            while not answer.endswith(b"}") and (piece := connection.recv(65536)):
                answer += piece
        return answer


def head(length: int | str, *headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: a", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def test_a_body_that_is_too_large_is_refused_by_its_length_and_by_its_bytes(served: Served) -> None:
    assert b"413" in raw(served, head(10**9)).split(b"\r\n")[0]
    with served.client() as client:
        big = json.dumps({**ASK, "user": "a" * 30_000}).encode()
        chunked = client.post("/v1/chat/completions", content=iter([big[:10_000], big[10_000:]]))
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")


def test_an_idle_connection_is_kept_for_longer_than_clients_use_it() -> None:
    """If both give it up after the same time, a request may meet the end of its connection. Proxies keep it 60 s."""
    assert http_server(object(), ServeSettings()).config.timeout_keep_alive > 60


def test_a_connection_may_be_idle_for_longer_than_a_head_may_take(served: Served) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=10)
    for pause in (0.0, 3 * SMALL.body_seconds):
        time.sleep(pause)
        connection.request("GET", "/health")
        with connection.getresponse() as response:
            assert response.read() == b'{"status":"ok"}'
    connection.close()


def test_a_body_that_does_not_come_is_given_up(served: Served) -> None:
    answer = raw(served, head(100), more=b'{"model"')
    assert b"408" in answer.split(b"\r\n")[0]
    assert b"request_timeout" in answer


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"])
def test_a_head_that_does_not_come_is_given_up(served: Served, before: bytes) -> None:
    """Behind another request, too; a header a moment, so that the connection is never idle."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(before + b"POST /v1/chat/completions HTTP/1.1\r\n")
        if before:
            assert b"200" in connection.recv(65536)
        connection.settimeout(0.05)
        for number in range(200):
            with suppress(TimeoutError):
                if connection.recv(65536) == b"":
                    break
            connection.sendall(f"x-{number}: slow\r\n".encode())
        else:
            pytest.fail("the server waits forever")


def connected(url: str, buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended an idle connection."""
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_client_that_does_not_read_is_given_up() -> None:
    """A live stream holds one of the server's requests, and its text would wait for as long as the client likes."""
    left = threading.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                yield f": {'x' * 60_000}\n\n"
        finally:
            left.set()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await EventStream(endless())(scope, receive, send)

    with running(application, SMALL) as url, connected(url, 4096) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        assert left.wait(10)


def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    text = b"x" * 3_000_000

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response(text)(scope, receive, send)

    with running(application, SMALL) as url, connected(url, 4096) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        got = b""
        while piece := connection.recv(65_536):
            got += piece
            if len(got) % 8 == 0:
                time.sleep(0.001)
    assert got.endswith(text)


def test_connections_that_wait_for_their_clients_are_so_many_at_most() -> None:
    """Each is one of the files that a process may open. A request that is being answered is none of them."""
    engine, release = waiting_engine("Paris", 0.1)
    with (
        serving(engine=engine) as served,
        running(create_application(served.server), most_waiting=3) as url,
        ExitStack() as opened,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=ASK, timeout=30)
        until(lambda: served.server.responder.admission.running == 1)
        silent = [opened.enter_context(connected(url)) for _ in range(3)]
        slow = [opened.enter_context(connected(url)) for _ in range(2)]
        for connection in slow:
            connection.sendall(head(100))
        until(lambda: all(map(is_closed, silent[:2])))
        assert not any(map(is_closed, (silent[2], *slow)))
        assert httpx.get(f"{url}/health").is_success
        release.set()
        assert asking.result(20).json()["choices"][0]["message"]["content"] == "Paris"


def test_nobody_says_from_where_he_connects_and_nothing_is_upgraded() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            seen.append((scope["type"], scope["client"][0], scope["scheme"]))
            await Response(b"")(scope, receive, send)

    headers = {"x-forwarded-for": "10.0.0.2", "x-forwarded-proto": "https"}
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    with running(application) as url:
        httpx.get(url, headers=headers)
        httpx.get(url, headers={**upgrade, "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert seen == [("http", "127.0.0.1", "http")] * 2


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 15_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"model": "tiny", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\xff\xfe",
        b"",
        b"null",
        b'"tiny"',
        b'{"model": "tiny", "messages": [{"role": "user", "content": ' + b"9" * 5000 + b"}]}",
    ],
)
def test_json_that_is_deep_or_broken_is_a_bad_request(served: Served, content: bytes) -> None:
    with served.client(headers={"content-type": "application/json"}) as client:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/score"):
            response = client.post(path, content=content)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["type"] == "invalid_request_error"


def test_two_lengths_and_both_kinds_of_length_are_no_request(served: Served) -> None:
    body = json.dumps(ASK).encode()
    two = raw(served, head(len(body), f"content-length: {len(body) - 1}"))
    assert b" 400 " in two.split(b"\r\n")[0]
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"
    both = raw(served, head(len(smuggled), "transfer-encoding: chunked"), more=smuggled)
    assert b" 400 " in both.split(b"\r\n")[0]
    assert b"\r\nconnection: close\r\n" in both
    assert both.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1/models/../../metrics",
        "/v1/models/%2e%2e%2f%2e%2e",
        "/v1//models",
        "/V1/models",
        "/v1/models/",
        "/docs",
    ],
)
def test_other_paths_lead_nowhere(served: Served, path: str) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 404 " in answer.split(b"\r\n")[0]


def test_a_rule_that_no_header_holds_is_escaped() -> None:
    policy = '{version: 1, name: ünï, rules: [{accept: {name: "Ж x"}}]}'
    with serving(said("Paris"), policies={"a": policy}) as served, served.client() as client:
        response = client.post("/v1/chat/completions", json=ASK)
    assert response.status_code == 200
    assert response.headers["x-guard-rule"] == "%D0%96 x"


#: Few examples for CI; a server error or a hang is a failure.
SAMPLE = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])


def test_no_request_that_the_description_allows_is_a_server_error(tmp_path: Path) -> None:
    """With keys, a queue, an audit log, side requests and a policy that streams live."""
    place = tmp_path / "r.db"
    options = ServeSettings(unguarded_keys=("one",), review_seconds=0.05)
    with Access.open(place) as access, Store.open(place) as store:
        key = access.keys.add("one", grants=[Grant(Role.CALLER)])[1]
        parts: dict[str, Any] = {"access": access, "store": store, "settings": options}
        policies = {"test": POLICY, "live": f"{POLICY}\nstreaming: live\n"}
        logged = {"audit_log": store.audit_log()}
        with serving(said("Lyon", 0.4), policies=policies, guard_options=logged, **parts) as served:
            described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
            operations = [found.ok() for found in described.get_all_operations()]
            assert len(operations) >= 12
            for operation in operations:

                @SAMPLE
                @given(case=operation.as_strategy())
                def check(case: schemathesis.Case) -> None:
                    response = case.call(headers={"authorization": f"Bearer {key}"})
                    assert response.status_code < 500, response.text
                    assert response.status_code not in (401, 403), response.text

                check()
