"""`guard webhooks` against a real store and a receiver on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_cases import make_escalation
from standardwebhooks import Webhook
from typer.testing import CliRunner
from webhook_receiver import Receiver, receiving

from guard.cli import app
from guard.errors import GuardError, InputError, StoreError
from guard.review import sealing
from guard.review.store import Store

TICKETS = "def open_ticket(event):\n    assert event['type'] == 'case.created'\n"


class WebhookShell:
    """Runs commands on one store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, ["webhooks", *arguments, "--store", str(self.path)])
        if isinstance(result.exception, GuardError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def escalate(self) -> None:
        with Store.open(self.path) as store:
            store.add(make_escalation())


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebhookShell:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv(sealing.ENVIRONMENT, raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "data" / name)
    Store.open(tmp_path / "reviews.db").close()
    return WebhookShell(tmp_path / "reviews.db")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


def test_an_endpoint_is_added_and_gets_what_is_due(shell: WebhookShell, receiver: Receiver) -> None:
    secret = shell.json("add", "desk", receiver.url, "--allow-private", "--event", "case.created")["secret"]
    shell.escalate()
    assert shell.json("deliver", "--once") == {"tried": 1}
    assert shell("deliver", "--once") == "0 messages tried.\n"
    ((headers, body),) = receiver.got
    assert Webhook(secret).verify(body, headers)["type"] == "case.created"


def test_a_secret_is_shown_when_it_is_made_and_in_no_list(shell: WebhookShell) -> None:
    first = shell("add", "desk", "https://desk.example.org/hidden").split()[-1]
    second = shell("rotate", "desk").split()[-1]
    assert first != second
    assert first.startswith("whsec_")
    assert shell.json("rotate", "desk")["secret"] not in (first, second)
    for listed in (shell("list"), shell("list", "--json")):
        assert "https://desk.example.org/..." in listed
        assert "whsec_" not in listed
        assert "hidden" not in listed


def test_an_endpoint_that_is_off_waits_until_it_is_on(shell: WebhookShell, receiver: Receiver) -> None:
    shell("add", "desk", receiver.url, "--allow-private")
    shell.escalate()
    assert shell("off", "desk") == "desk is off.\n"
    assert "off since" in shell("list")
    assert shell.json("deliver", "--once") == {"tried": 0}
    assert shell.json("on", "desk") == {"name": "desk", "on": True}
    assert shell.json("deliver", "--once") == {"tried": 1}


def test_messages_are_listed_and_sent_again_with_the_same_id(shell: WebhookShell, receiver: Receiver) -> None:
    assert "No endpoints" in shell("list")
    shell("add", "desk", receiver.url, "--allow-private")
    assert "No messages" in shell("list", "--dead")
    shell.escalate()
    shell("deliver", "--once")
    (message,) = shell.json("list", "--messages")
    assert "delivered" in shell("list", "--messages")
    assert shell.json("replay") == {"messages": 0}, "only dead letters"
    assert shell("replay", message["id"], "--endpoint", "desk") == "1 to send again.\n"
    assert shell.json("deliver", "--once") == {"tried": 1}
    assert [headers["webhook-id"] for headers, _ in receiver.got] == [message["id"]] * 2


def test_a_python_endpoint_calls_the_function_that_the_worker_was_given(
    shell: WebhookShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ticket_functions.py").write_text(TICKETS)
    monkeypatch.syspath_prepend(tmp_path)
    shell("add", "ticket", "the help desk", "--kind", "python")
    shell.escalate()
    assert shell.json("deliver", "--once") == {"tried": 0}, "left to a worker that has the function"
    assert shell.json("deliver", "--once", "--function", "ticket=ticket_functions:open_ticket") == {"tried": 1}
    assert shell.json("list", "--messages")[0]["last_error"] is None
    with pytest.raises(InputError, match=r"Unknown python endpoint 'tikcet'.*Did you mean 'ticket'"):
        shell("deliver", "--once", "--function", "tikcet=ticket_functions:open_ticket")
    with pytest.raises(InputError, match=r"^--function 'ticket' cannot be read"):
        shell("deliver", "--once", "--function", "ticket")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "desk", "https://desk.example.org", "--kind", "webhok"), "Did you mean 'webhook'"),
        (("add", "desk", "https://desk.example.org", "--event", "case.decide"), "Did you mean 'case.decided'"),
        (("off", "dask"), "There is no endpoint 'dask'"),
        (("replay", "msg_1"), "There is no message 'msg_1'.*guard webhooks list --messages"),
        (("replay", "--endpoint", "dask"), "There is no endpoint 'dask'"),
    ],
)
def test_what_is_not_there_is_refused(shell: WebhookShell, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        shell(*arguments)


def test_a_store_that_is_named_and_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no review store"):
        WebhookShell(tmp_path / "typo.db")("list")
    assert not (tmp_path / "typo.db").exists()
