"""Settings of webhooks: added, given new secrets, switched off, and sent to again; for admins alone."""

from __future__ import annotations

import html
import re

import pytest
from console_pages import MadeConsole
from httpx import Response
from made_cases import make_escalation
from starlette.testclient import TestClient

from guard.review import outbox
from guard.review.endpoints import Endpoints
from guard.review.sealing import ENVIRONMENT


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.fernet import Fernet

    monkeypatch.setenv(ENVIRONMENT, Fernet.generate_key().decode())


@pytest.fixture
def admin(console: MadeConsole) -> TestClient:
    return console.signed_in("ana", ("admin",))


FORM = {"name": "desk", "kind": "webhook", "target": "https://desk.example.org/hook/secret-path"}


def add_dead(console: MadeConsole, number: int) -> str:
    """A message to ``desk`` that nobody took, and its id."""
    console.store.add(make_escalation(number))
    database = console.store._database
    (message,) = outbox.lease(database, (), 10)
    outbox.finish(database, message, "410 <b>Gone</b>", gone=False)
    with database.write() as connection:
        connection.exec_driver_sql(
            f"UPDATE outbox SET dead_at = '2026-01-01', next_at = NULL WHERE id = '{message.id}'"
        )
    return message.id


def test_an_endpoint_is_added_and_its_secret_shown_once(console: MadeConsole, admin: TestClient) -> None:
    page = admin.post("/settings/webhooks", data={**FORM, "event.case.decided": "on", "with_text": "on"})
    assert page.status_code == 200
    assert len(re.findall(r"whsec_[A-Za-z0-9+/=]{32}", page.text)) == 1
    (endpoint,) = Endpoints(console.store).all()
    assert (endpoint.name, endpoint.events, endpoint.with_text) == ("desk", ("case.decided",), True)
    again = admin.get("/settings/webhooks").text
    assert "whsec_" not in again
    assert "secret-path" not in again
    assert "https://desk.example.org/..." in again
    assert "nothing sent" in again


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "python"}, "are not added here"),
        ({"kind": "smoke"}, "are not added here"),
        ({"target": "ftp://x"}, "cannot be read"),
        ({"name": " "}, "needs a name"),
        ({"kind": "email", "target": "nobody"}, "is not a mail address"),
    ],
)
def test_what_cannot_be_added_is_said_and_what_was_typed_stays(
    console: MadeConsole, admin: TestClient, change: dict[str, str], said: str
) -> None:
    page = admin.post("/settings/webhooks", data={**FORM, **change, "event.case.late": "on"})
    assert page.status_code == 422
    assert said in html.unescape(page.text)
    assert 'name="event.case.late" checked' in page.text
    assert Endpoints(console.store).all() == []


def test_a_secret_is_rotated_and_an_endpoint_switched_off_and_on(console: MadeConsole, admin: TestClient) -> None:
    endpoints = Endpoints(console.store)
    first = endpoints.add("a b/c?", "https://desk.example.org")
    page = admin.get("/settings/webhooks").text
    assert re.findall(r'action="/settings/webhooks/(\w+)"><input type="hidden" name="name" value="a b/c\?"', page) == [
        *("rotate", "off")
    ]

    def change(which: str, name: str = "a b/c?") -> Response:
        return admin.post(f"/settings/webhooks/{which}", data={"name": name})

    rotated = change("rotate")
    secrets = endpoints.secrets("a b/c?")["secrets"]
    assert secrets[1] == first
    assert secrets[0] in html.unescape(rotated.text)
    assert change("off").status_code == 200
    assert endpoints.all()[0].off_reason == "switched off by hand"
    assert "Switch on" in admin.get("/settings/webhooks").text
    change("on")
    assert endpoints.all()[0].off_at is None
    assert [change("off", "nobody").status_code, change("explode").status_code] == [422, 422]


def test_dead_letters_are_sent_again_one_or_all(console: MadeConsole, admin: TestClient) -> None:
    Endpoints(console.store).add("desk", "https://desk.example.org")
    dead = [add_dead(console, number) for number in range(3)]
    page = admin.get("/settings/webhooks").text
    assert all(name in page for name in dead)
    assert "dead letters" in page
    assert "410 &lt;b&gt;Gone&lt;/b&gt;" in page
    assert "1 message to send again" in admin.post("/settings/messages/replay", data={"message": dead[0]}).text
    assert "2 messages to send again" in admin.post("/settings/messages/replay", data={}).text
    assert Endpoints(console.store).messages(dead=True) == []
    assert admin.post("/settings/messages/replay", data={"message": "msg_unknown"}).status_code == 422


def test_only_admins_see_and_change_webhooks(console: MadeConsole) -> None:
    Endpoints(console.store).add("desk", "https://desk.example.org")
    for login, role in (("mira", "reviewer"), ("lea", "lead"), ("otto", "auditor"), ("vera", "viewer")):
        visitor = console.signed_in(login, (role,))
        assert visitor.get("/settings/webhooks").status_code == 403
        for path in ("", "/off", "/rotate", "/replay"):
            assert visitor.post(f"/settings/webhooks{path}", data={**FORM, "name": "desk"}).status_code == 403
        assert visitor.post("/settings/messages/replay", data={}).status_code == 403
    assert [each.off_at for each in Endpoints(console.store).all()] == [None]


def test_another_site_changes_no_webhook(console: MadeConsole, admin: TestClient) -> None:
    Endpoints(console.store).add("desk", "https://desk.example.org")
    for path in ("/settings/webhooks", "/settings/webhooks/off", "/settings/messages/replay"):
        assert admin.post(path, data=FORM, headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_name_of_markup_stays_text(console: MadeConsole, admin: TestClient) -> None:
    Endpoints(console.store).add("<img src=x>\u202e", "https://desk.example.org")
    page = admin.get("/settings/webhooks").text
    assert "<img" not in page
    assert "U+202E" in page
