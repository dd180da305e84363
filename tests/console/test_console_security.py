"""What the console refuses: cross-site requests, fixed sessions, foreign names, guessed passwords, hostile text."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_pages import PASSWORD, MadeConsole
from made_cases import make_escalation

from guard.access import Grant, Role
from guard.console import ConsoleSettings
from guard.console.desk import MOST_FIELDS
from guard.console.entry import own_path
from guard.console.foreign import foreign, has_hidden, word_changes
from guard.console.security import POLICY, TryLimiter, cross_site_reason, is_known_name
from guard.errors import InputError
from guard.records import Prompt
from guard.review.records import ReviewStatus

DEEDS = ("approve", "reject", "edit", "skip", "undo", "keep", "assign", "adjudicate")


# -- where requests come from ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "anything"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://guard.test", "host": "guard.test"}, False),
        ({"origin": "http://guard.test", "host": "guard.test"}, True),
        ({"origin": "http://guard.test:8766", "host": "guard.test:8766"}, True),
        ({"origin": "http://guard.test:1", "host": "guard.test:8766"}, False),
        ({"origin": "http://evil.test", "host": "guard.test"}, False),
        ({"origin": "null", "host": "guard.test"}, False),
        ({"origin": "", "host": ""}, False),
        ({"host": "guard.test"}, False),
    ],
)
def test_only_requests_of_the_console_itself_change_something(headers: dict[str, str], passes: bool) -> None:
    assert (cross_site_reason("POST", headers) is None) is passes
    assert cross_site_reason("GET", headers) is None
    assert (cross_site_reason("DELETE", headers) is None) is passes


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}])
def test_a_cross_site_request_decides_nothing(console: MadeConsole, headers: dict[str, str]) -> None:
    review = console.store.add(make_escalation())
    mira = console.signed_in("mira", ("reviewer", "lead", "admin"))
    for deed in DEEDS:
        page = mira.post(f"/case/{review.id}/{deed}", data={"answer": "x", "draft": "wrong"}, headers=headers)
        assert page.status_code == 403
        assert "did not come from the console" in page.text
    for place in ("/login", "/logout", "/settings/users", "/settings/keys", "/welcome/x"):
        assert mira.post(place, data={"login": "eve", "roles": "admin"}, headers=headers).status_code == 403
    left = console.store.review(review.id)
    assert (left.status, left.claimed_by) == (ReviewStatus.PENDING, None)
    assert [user.id for user in console.access.users.all()] == ["mira"]
    assert mira.get("/queue").status_code == 200  # still signed in


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", ""])
def test_only_forms_are_read(console: MadeConsole, kind: str) -> None:
    review = console.store.add(make_escalation())
    mira = console.signed_in("mira")
    page = mira.post(f"/case/{review.id}/approve", content=b"note=x", headers={"content-type": kind})
    assert page.status_code == 415
    assert console.store.review(review.id).status is ReviewStatus.PENDING


def test_a_form_that_is_too_large_is_refused(console: MadeConsole) -> None:
    review = console.store.add(make_escalation())
    mira = console.signed_in("mira")
    assert mira.post(f"/case/{review.id}/approve", data={"note": "x" * 1_100_000}).status_code == 413
    assert (
        mira.post(f"/case/{review.id}/approve", data={f"f{n}": "x" for n in range(MOST_FIELDS + 1)}).status_code == 400
    )
    assert console.store.review(review.id).status is ReviewStatus.PENDING


def test_every_answer_carries_the_policy_and_no_page_needs_more(console: MadeConsole) -> None:
    review = console.store.add(make_escalation())
    mira = console.signed_in("mira", ("reviewer", "lead", "admin"))
    places = ("/queue", f"/case/{review.id}", f"/case/{review.id}?edit=1", "/insights", "/settings/users", "/nowhere")
    for place in (*places, "/settings/keys", "/static/console.css", "/static/console.js", "/login"):
        answer = mira.get(place)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        if "static" not in place:
            assert answer.headers["cache-control"] == "no-store"
            assert re.findall(r"\sstyle=|\son[a-z]+=|<style|javascript:|<script(?![^>]*src=)", answer.text) == []
            assert re.findall(r'(?:href|src|action)="(?:https?:)?//', answer.text) == []
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


def test_the_shipped_files_load_nothing_from_elsewhere_and_make_no_markup() -> None:
    import guard.console

    static = Path(guard.console.__file__).with_name("static")
    script = (static / "console.js").read_text("utf-8")
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script) == []
    for file in static.iterdir():
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|url\(", file.read_text("utf-8")) == []


def test_a_failure_shows_no_detail_and_logs_no_text(console: MadeConsole, caplog: pytest.LogCaptureFixture) -> None:
    mira = console.signed_in("mira")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret words of a prompt")

    console.store.page = fail  # type: ignore[method-assign, assignment]
    with caplog.at_level(logging.DEBUG):
        page = mira.get("/queue")
    assert page.status_code == 500
    assert page.headers["content-security-policy"] == POLICY
    assert "secret words" not in page.text
    assert "RuntimeError" in caplog.text
    assert "secret words" not in caplog.text.replace('raise RuntimeError("secret words of a prompt")', "")


def test_a_store_that_fails_is_said_so(console: MadeConsole) -> None:
    mira = console.signed_in("mira")
    with console.store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE review_repeats")
    page = mira.get("/queue")
    assert page.status_code == 503
    assert "failed" in page.text


# -- signing in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["/", "/queue", "/case/abc123", "/insights", "/settings/users", "/next", "/queue/live?since=x"]
)
def test_nothing_is_shown_to_whoever_has_not_signed_in(console: MadeConsole, place: str) -> None:
    page = console.visitor().get(place)
    assert page.url.path == "/login"
    assert console.visitor().post("/case/abc123/approve", data={}).status_code == 401


def with_password(console: MadeConsole, login: str = "mira") -> None:
    console.access.users.add(login, grants=(Grant(Role.REVIEWER),), password=PASSWORD)


def test_signing_in_makes_a_new_session_and_leads_where_one_wanted(console: MadeConsole) -> None:
    with_password(console)
    visitor = console.visitor()
    visitor.cookies.set("guard", "planted")
    form = {"login": "mira", "password": PASSWORD, "then": "/insights?days=7"}
    answer = visitor.post("/login", data=form, follow_redirects=False)
    assert answer.headers["location"] == "/insights?days=7"
    assert answer.cookies["guard"] != "planted"
    assert console.access.sessions.find(answer.cookies["guard"]) is not None
    assert console.access.sessions.find("planted") is None


def test_a_session_that_was_planted_ends_when_its_victim_signs_in(console: MadeConsole) -> None:
    console.add("eve", "reviewer")
    with_password(console)
    planted = console.access.sessions.begin("eve")
    visitor = console.visitor()
    visitor.cookies.set("guard", planted)
    visitor.post("/login", data={"login": "mira", "password": PASSWORD})
    assert console.access.sessions.find(planted) is None


def test_signing_out_ends_the_session_on_the_server(console: MadeConsole) -> None:
    mira = console.signed_in("mira")
    secret = mira.cookies["guard"]
    assert mira.post("/logout", data={}).url.path == "/login"
    assert console.access.sessions.find(secret) is None


@pytest.mark.parametrize(
    "then",
    ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "\r\nx: y", "evil", "/é"],
)
def test_a_login_leads_nowhere_else(console: MadeConsole, then: str) -> None:
    assert own_path(then) == "/queue"
    with_password(console)
    answer = console.visitor().post(
        "/login", data={"login": "mira", "password": PASSWORD, "then": then}, follow_redirects=False
    )
    assert answer.headers["location"] == "/queue"


def test_guessing_ends_with_a_locked_name(console: MadeConsole) -> None:
    with_password(console)
    visitor = console.visitor()
    for _ in range(5):
        page = visitor.post("/login", data={"login": "mira", "password": "wrong"})
        assert page.status_code == 401
        assert "wrong" not in re.findall(r'value="([^"]*)"', page.text)
    assert "locked" in visitor.post("/login", data={"login": "mira", "password": PASSWORD}).text
    assert visitor.get("/queue").url.path == "/login"


def test_an_address_has_so_many_tries() -> None:
    limiter = TryLimiter(most=3, window_s=60)
    assert [limiter.allows("10.0.0.1") for _ in range(5)] == [True, True, True, False, False]
    assert limiter.allows("10.0.0.2")


def test_one_address_cannot_try_many_names(console: MadeConsole) -> None:
    visitor = console.visitor()
    codes = [visitor.post("/login", data={"login": f"n{n}", "password": "x"}).status_code for n in range(22)]
    assert codes == [401] * 20 + [429] * 2


def test_the_first_account_is_made_once_by_its_link(console: MadeConsole) -> None:
    secret = console.access.links.for_first_user()
    visitor = console.visitor()
    assert "There is no account yet" in visitor.get("/login").text
    assert "Make the first account" in visitor.get(f"/welcome/{secret}").text
    weak = visitor.post(f"/welcome/{secret}", data={"login": "ana", "password": "short"})
    assert weak.status_code == 422
    assert "At least 12 are needed" in weak.text
    assert "short" not in re.findall(r'value="([^"]*)"', weak.text)
    made = visitor.post(f"/welcome/{secret}", data={"login": "ana", "name": "Ana", "password": PASSWORD})
    assert made.url.path == "/queue"
    assert visitor.get("/settings/users").status_code == 200
    for use in (visitor.get(f"/welcome/{secret}"), console.visitor().post(f"/welcome/{secret}", data={"login": "eve"})):
        assert use.status_code == 404
    assert [user.id for user in console.access.users.all()] == ["ana"]


@pytest.mark.parametrize("name", ["", " ", "https://guard.example", "guard.example:443", "guard.example/console"])
def test_a_name_that_no_browser_could_ask_for_is_refused(name: str) -> None:
    """An empty one would leave no names, which means any."""
    with pytest.raises(InputError, match="is not a host name"):
        ConsoleSettings(names=frozenset({name}))


# -- cookies, names, proxies -------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[MadeConsole]:
    made = MadeConsole.at(tmp_path / "secure.db", ConsoleSettings(secure_cookie=True, names=frozenset({"testserver"})))
    yield made
    made.close()


def test_the_cookie_is_bound_to_the_host_by_its_name_over_https(secure: MadeConsole) -> None:
    with_password(secure)
    answer = secure.visitor().post("/login", data={"login": "mira", "password": PASSWORD}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-guard=")
    for part in ("HttpOnly", "Path=/", "SameSite=lax", "Secure"):
        assert part in cookie
    assert "Domain" not in cookie


def test_a_foreign_host_name_gets_no_page(secure: MadeConsole) -> None:
    for name in ("evil.example", "evil.example:8766", "testserver.evil.example", ""):
        answer = secure.visitor().get("/login", headers={"host": name})
        assert answer.status_code == 421
        assert "Sign in" not in answer.text
    assert is_known_name("[::1]:8766", ConsoleSettings(names=frozenset({"[::1]"})).names)
    assert is_known_name("guard.example", ConsoleSettings(names=frozenset({" Guard.Example "})).names)
    assert is_known_name("LOCALHOST:8766", frozenset({"localhost"}))


def proxied(tmp_path: Path, address: str) -> MadeConsole:
    settings = ConsoleSettings(proxy_header="X-Forwarded-User", proxy_addresses=frozenset({address}))
    return MadeConsole.at(tmp_path / "proxied.db", settings)


def visiting(console: MadeConsole, address: str) -> Any:
    from starlette.testclient import TestClient

    return TestClient(console.app, headers={"sec-fetch-site": "same-origin"}, client=(address, 50000))


def test_a_trusted_proxy_names_the_user_and_nobody_else_can(tmp_path: Path) -> None:
    console = proxied(tmp_path, "10.0.0.2")
    console.add("mira", "reviewer")
    named = {"X-Forwarded-User": "mira"}
    assert visiting(console, "10.0.0.2").get("/queue", headers=named).url.path == "/queue"
    assert visiting(console, "10.0.0.3").get("/queue", headers=named).url.path == "/login"
    for name in ("nobody", "", "mira\u00e9"):
        answer = visiting(console, "10.0.0.2").get("/queue", headers={"X-Forwarded-User": name.encode()})
        assert answer.url.path == "/login"
    console.access.users.disable("mira")
    assert visiting(console, "10.0.0.2").get("/queue", headers=named).url.path == "/login"
    assert visiting(console, "10.0.0.2").post("/login", data={"login": "mira", "password": "x"}).status_code == 403
    console.close()


def test_a_session_does_not_count_where_a_proxy_signs_in(tmp_path: Path) -> None:
    console = proxied(tmp_path, "10.0.0.2")
    visitor = console.signed_in("mira")
    assert visitor.get("/queue").url.path == "/login"
    console.close()


@pytest.mark.parametrize("addresses", [(), ("not an address",), ("10.0.0.0/8",)])
def test_a_proxys_header_needs_its_address(addresses: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        ConsoleSettings(proxy_header="X-Forwarded-User", proxy_addresses=frozenset(addresses))


# -- hostile text ------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'></textarea></title>{{ 7*7 }}{% raw %}"
    "\u202eevorppa\u202c\u200b\u0000\x1b[31m\ufffd\U000e0041 [x](javascript:alert(1)) " + "a" * 5000
)


def test_hostile_text_is_text_everywhere(console: MadeConsole) -> None:
    review = console.store.add(
        make_escalation(
            question=HOSTILE, answer=HOSTILE, reason=HOSTILE, route=HOSTILE, model=HOSTILE, policy=HOSTILE,
            prompt=Prompt.chat(HOSTILE, system=HOSTILE), metadata={HOSTILE: HOSTILE},
        )
    )  # fmt: skip
    mira = console.signed_in("mira", ("reviewer", "lead"), name="<b>Mira</b>")
    places = ("/queue", f"/case/{review.id}", f"/case/{review.id}?edit=1", "/insights")
    pages = [mira.get(place).text for place in places]
    pages.append(mira.post(f"/case/{review.id}/edit", data={"answer": HOSTILE + "!", "note": HOSTILE}).text)
    mira.post(f"/case/{review.id}/edit", data={"answer": HOSTILE + "!", "draft": "wrong", "note": HOSTILE})
    pages += [mira.get(place).text for place in (*places, "/queue?view=decided", f"/queue?q={HOSTILE[:40]}")]
    for page in pages:
        assert re.findall(r"<script(?! src=)|<img|<b>Mira|\x00|</textarea>[\"']", page) == []
        assert re.findall("[\x1b\u202a-\u202e\u2066-\u2069\u200b\U000e0041]", without_forms(page)) == []
    assert "U+202E" in pages[1]
    assert "not UTF-8" in pages[1]
    assert "characters that would not be seen" in pages[1]


def without_forms(page: str) -> str:
    """A page without what a person edits or searches for, which has the true text."""
    return re.sub(
        r"<textarea.*?</textarea>|<option.*?</option>|value=\"[^\"]*\"|href=\"[^\"]*\"", "", page, flags=re.DOTALL
    )


def test_a_very_long_answer_is_folded(console: MadeConsole) -> None:
    review = console.store.add(make_escalation(answer="word " * 10_000))
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    assert "Show the rest, 30,000 more characters" in page


def test_foreign_text_keeps_emoji_and_letters_of_all_languages() -> None:
    plain = "Grüße, 東京, مرحبا, ❤️ and 👩‍⚕"
    assert str(foreign("Grüße, 東京, مرحبا, ❤️")) == "Grüße, 東京, مرحبا, ❤️"
    assert has_hidden(plain)  # the joiner between two emoji is shown, as every character without width
    assert not has_hidden("Grüße\n\tand tabs", None, "")


def test_changes_name_every_word_and_nothing_twice() -> None:
    before, after = "If you weigh less, the same applies.", "If you weigh more, ask first."
    pieces = word_changes(before, after)
    assert "".join(text for kind, text in pieces if kind != "+") == before
    assert "".join(text for kind, text in pieces if kind != "-") == after
