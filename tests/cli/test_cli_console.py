"""`guard console`: where it listens, what it refuses, and its first run in a process of its own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import oidc_provider
import pytest
from cryptography.fernet import Fernet
from made_cases import make_escalation
from typer.testing import CliRunner
from webhook_receiver import receiving

from guard.access import Access
from guard.access.records import parse_grants
from guard.cli import app
from guard.cli.console import Listening
from guard.errors import GuardError, InputError, StoreError
from guard.review.endpoints import Endpoints
from guard.review.sealing import ENVIRONMENT
from guard.review.store import Store


def run(*arguments: str) -> None:
    port = () if "--port" in arguments else ("--port", str(free_port()))
    result = CliRunner().invoke(app, ["console", *arguments, *port])
    if isinstance(result.exception, GuardError):
        raise result.exception
    raise AssertionError(result.output)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "reviews.db") as store:
        store.add(make_escalation())
    return tmp_path / "reviews.db"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "guard.example"])
def test_it_listens_on_this_machine_only_without_https(place: Path, host: str) -> None:
    with pytest.raises(InputError, match="by plain HTTP"):
        run("--host", host, "--store", str(place))


def test_it_does_not_listen_elsewhere_without_accounts(place: Path) -> None:
    with pytest.raises(InputError, match="without accounts"):
        run("--host", "0.0.0.0", "--https", "--store", str(place))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--proxy-header", "X-User"), "needs the address of the proxy"),
        (("--proxy-header", "X-User", "--proxy-address", "proxy"), "is not an IP address"),
        (("--demo",), "store of its own"),
        (("--oidc-role", "staff=viewer"), "needs a provider"),
        (("--oidc-issuer", "http://id.example.org", "--oidc-role", "staff=viewer"), "must be an https"),
        (("--oidc-issuer", "https://id.example.org"), "needs a client and roles"),
        (("--oidc-issuer", "https://id.example.org", "--oidc-role", "staff"), "gives no value a role"),
        (("--oidc-issuer", "https://id.example.org", "--oidc-role", "staff=boss"), "There is no role 'boss'"),
        (("--signing-key", "nowhere.key"), "nowhere.key"),
    ],
)
def test_options_that_do_not_fit_are_refused(place: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(*arguments, "--store", str(place))


def test_a_store_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no review store"):
        run("--store", str(tmp_path / "typo.db"))
    assert list(tmp_path.iterdir()) == []


def test_the_address_is_the_one_that_browsers_use() -> None:
    assert Listening("127.0.0.1", 8766, False).address(frozenset({"localhost"})) == "http://127.0.0.1:8766/console"
    assert Listening("::1", 8766, False).address(frozenset()) == "http://[::1]:8766/console"
    names = frozenset({"guard.example"})
    assert Listening("0.0.0.0", 8766, True).address(names) == "https://guard.example/console"


@contextmanager
def running(*arguments: str) -> Iterator[IO[str]]:
    """The program; its output, which is written when the pages are there, is read as it comes."""
    code = "from guard.cli import main; main()"
    program = [sys.executable, "-u", "-c", code, "console", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_address(output: IO[str]) -> str:
    for line in output:
        if (found := re.search(r"http://\S+", line)) is not None:
            return found[0]
    raise AssertionError("it said no address")


def client() -> httpx.Client:
    """It tries to connect again for as long as the server starts."""
    transport = httpx.HTTPTransport(retries=8)
    return httpx.Client(transport=transport, follow_redirects=True, timeout=30, headers={"sec-fetch-site": "none"})


def test_the_first_run_prints_a_link_that_makes_the_first_account(place: Path) -> None:
    port = free_port()
    with running("--store", str(place), "--port", str(port)) as output, client() as browser:
        link = first_address(output)
        assert link.startswith(f"http://127.0.0.1:{port}/console/welcome/")
        assert "Make the first account" in browser.get(link).text
        form = {"login": "ana", "password": "three plain words"}
        page = browser.post(link, data=form, headers={"sec-fetch-site": "same-origin"})
        assert "Question 0?" in page.text
        assert browser.get(f"http://127.0.0.1:{port}/").url.path == "/console/queue"
        assert browser.get(f"http://127.0.0.1:{port}/", headers={"host": "evil.example"}).status_code in (307, 421)
        assert browser.get(f"http://127.0.0.1:{port}/console/queue", headers={"host": "evil"}).status_code == 421
    with Access.open(place) as access:
        assert [user.id for user in access.users.all()] == ["ana"]


def test_it_delivers_notifications_if_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, Fernet.generate_key().decode())
    with receiving() as receiver, Store.open(place) as store:
        Endpoints(store).add("desk", receiver.url, allow_private=True)
        with running("--store", str(place), "--port", str(free_port()), "--deliver") as output:
            first_address(output)
            store.add(make_escalation(1))
            while not receiver.got:
                time.sleep(0.05)
    (headers, body) = receiver.got[0]
    assert "webhook-signature" in headers
    assert b"case.created" in body


def test_people_come_in_through_a_provider(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_OIDC_CLIENT_SECRET", oidc_provider.SECRET)
    port = free_port()
    with oidc_provider.running() as provider:
        provider.says(sub="1", preferred_username="mira", groups=["staff"])
        options = (
            "--oidc-issuer",
            provider.issuer,
            "--oidc-role",
            "staff=reviewer:medical",
            "--oidc-role",
            "staff=viewer",
        )
        with running("--store", str(place), "--port", str(port), *options) as output, client() as browser:
            first_address(output)
            page = browser.get(f"http://127.0.0.1:{port}/console/login/oidc?then=/queue")
            assert page.url.path == "/console/queue"
            assert "Question 0?" in page.text
    with Access.open(place) as access:
        assert list(map(str, access.users.get("mira").grants)) == ["reviewer:medical", "viewer"]


def test_a_port_that_is_taken_is_an_error_before_a_link_is_printed(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen on"):
            run("--store", str(place), "--port", str(taken.getsockname()[1]))


def test_with_accounts_it_prints_no_link(place: Path) -> None:
    with Access.open(place) as access:
        access.users.add("ana", grants=parse_grants(["admin"]))
    with running("--store", str(place), "--port", str(free_port())) as output:
        assert first_address(output).endswith("/console/")
