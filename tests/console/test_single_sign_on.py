"""Signing in at an OpenID Connect provider, which runs as a process of its own, and what is not believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import oidc_provider
import pytest
from console_pages import MadeConsole
from oidc_provider import CLIENT, SECRET, Provider
from starlette.testclient import TestClient

from guard.access import Grant
from guard.access.oidc import OidcSettings, PendingLogin
from guard.access.records import parse_grants
from guard.console import ConsoleSettings
from guard.errors import InputError

ROLES = {
    "reviewers": parse_grants(["reviewer:medical"]),
    "leads": parse_grants(["lead"]),
    "admins": parse_grants(["admin"]),
}

#: Making one costs more than a login: it reads certificates.
BROWSER = httpx.Client(verify=False)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with oidc_provider.running() as started:
        yield started


@pytest.fixture
def console(tmp_path: Path, provider: Provider) -> Iterator[MadeConsole]:
    made = MadeConsole.at(tmp_path / "reviews.db", ConsoleSettings(oidc=settings(provider)))
    provider.says(sub="77", preferred_username="Mira", name="Mira Patel", groups=["reviewers", "unknown"])
    yield made
    made.close()


def settings(provider: Provider, **changes: object) -> OidcSettings:
    values = {"issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET, "roles": ROLES, **changes}
    return OidcSettings(**values)  # type: ignore[arg-type]


def to_the_provider(visitor: TestClient, then: str = "") -> str:
    """Press the button; the address at the provider."""
    answer = visitor.get("/login/oidc", params={"then": then}, follow_redirects=False)
    assert answer.status_code == 303
    return answer.headers["location"]


def back(location: str) -> str:
    """Let the provider sign in; the address that it sends the browser back to, without the host."""
    answer = BROWSER.get(location)
    assert answer.status_code == 302, answer.text
    parts = urlsplit(answer.headers["location"])
    assert parts.netloc == "testserver"
    return f"{parts.path}?{parts.query}"


def sign_in(visitor: TestClient, then: str = "") -> httpx.Response:
    headers = {"sec-fetch-site": "cross-site"}  # as the browser says of a redirect from elsewhere
    return visitor.get(back(to_the_provider(visitor, then)), follow_redirects=False, headers=headers)  # type: ignore[return-value]


def test_a_person_signs_in_with_the_roles_of_the_claim(console: MadeConsole) -> None:
    visitor = console.visitor()
    assert "Sign in with your organisation" in visitor.get("/queue").text
    answer = sign_in(visitor, "/insights?days=7")
    assert answer.headers["location"] == "/insights?days=7"
    assert "Mira Patel" in visitor.get("/queue").text
    (user,) = console.access.users.all()
    assert (user.id, user.name, user.has_password) == ("mira", "Mira Patel", False)
    assert user.grants == (Grant.parse("reviewer:medical"),)


def test_roles_follow_the_provider_at_each_login(console: MadeConsole, provider: Provider) -> None:
    sign_in(console.visitor())
    provider.says(sub="77", preferred_username="renamed", groups="leads")
    sign_in(console.visitor())
    (user,) = console.access.users.all()
    assert (user.id, user.grants) == ("mira", (Grant.parse("lead"),))


@pytest.mark.parametrize("groups", [[], ["unknown"], None, [["reviewers"]], {"reviewers": True}, 7])
def test_who_has_no_known_role_does_not_come_in(console: MadeConsole, provider: Provider, groups: object) -> None:
    provider.says(sub="1", preferred_username="eve", groups=groups)
    visitor = console.visitor()
    answer = sign_in(visitor)
    assert answer.status_code == 401
    assert "You have no role here" in answer.text
    assert visitor.get("/queue").url.path == "/login"
    assert console.access.users.all() == []


def test_the_claim_may_be_in_the_user_info_alone(console: MadeConsole, provider: Provider) -> None:
    provider.says(sub="8", email="jonas@example.org", only_in_user_info={"groups": ["leads"]})
    assert sign_in(console.visitor()).status_code == 303
    assert [(user.id, user.grants) for user in console.access.users.all()] == [("jonas@example.org", ROLES["leads"])]


def test_a_login_name_that_another_account_has_is_not_taken_over(console: MadeConsole, provider: Provider) -> None:
    console.add("ana", "admin")
    for name in ("ana", "ANA "):
        provider.says(sub="9", preferred_username=name, groups=["reviewers"])
        answer = sign_in(console.visitor())
        assert answer.status_code == 401
        assert "There is a user 'ana' already" in answer.text.replace("&#39;", "'")
    assert [str(grant) for grant in console.access.users.get("ana").grants] == ["admin"]


def test_somebody_else_with_the_same_name_at_the_provider_is_somebody_else(
    console: MadeConsole, provider: Provider
) -> None:
    sign_in(console.visitor())
    provider.says(sub="78", preferred_username="mira", groups=["admins"])
    assert sign_in(console.visitor()).status_code == 401
    assert console.access.users.get("mira").grants == ROLES["reviewers"]


def test_a_disabled_account_stays_out(console: MadeConsole) -> None:
    sign_in(console.visitor())
    console.access.users.disable("mira")
    answer = sign_in(console.visitor())
    assert answer.status_code == 401
    assert "disabled" in answer.text


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nonce", "token is not valid"),
        ("audience", "token is not valid"),
        ("issuer", "token is not valid"),
        ("expired", "token is not valid"),
        ("key", "token is not valid"),
        ("none", "token is not valid"),
        ("secret", "token is not valid"),
        ("state", "was not begun here"),
        ("denied", "did not sign you in"),
    ],
)
def test_an_answer_with_a_fault_lets_nobody_in(console: MadeConsole, provider: Provider, fault: str, said: str) -> None:
    provider.says(fault, sub="77", preferred_username="mira", groups=["reviewers"])
    visitor = console.visitor()
    answer = sign_in(visitor)
    assert answer.status_code == 401
    assert said in answer.text
    assert visitor.get("/queue").url.path == "/login"
    assert console.access.users.all() == []


def test_an_answer_counts_once_and_for_the_browser_that_asked(console: MadeConsole) -> None:
    mira, eve = console.visitor(), console.visitor()
    callback = back(to_the_provider(mira))
    stolen = eve.get(callback, follow_redirects=False)  # another browser, without the cookie
    assert stolen.status_code == 401
    to_the_provider(eve)
    assert eve.get(callback, follow_redirects=False).status_code == 401  # with a cookie of its own login
    callback = back(to_the_provider(mira))
    assert mira.get(callback, follow_redirects=False).status_code == 303
    assert mira.get(callback, follow_redirects=False).status_code == 401


def test_the_code_is_of_no_use_without_the_verifier(console: MadeConsole) -> None:
    visitor = console.visitor()
    asked = parse_qs(urlsplit(to_the_provider(visitor)).query)
    assert asked["code_challenge_method"] == ["S256"]
    pending = PendingLogin.from_cookie(visitor.cookies["guard-login"])
    assert pending is not None
    assert pending.verifier not in str(asked)
    visitor.cookies.clear()
    visitor.cookies.set("guard-login", PendingLogin(pending.state, pending.nonce, "x" * 64, "/queue").to_cookie())
    location = console.app.state.desk.oidc.begin(pending, "http://testserver/login/oidc/callback")
    answer = visitor.get(back(location), follow_redirects=False)
    assert answer.status_code == 401
    assert "did not redeem" in answer.text


@pytest.mark.parametrize("then", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"])
def test_a_login_at_the_provider_leads_nowhere_else(console: MadeConsole, then: str) -> None:
    visitor = console.visitor()
    assert sign_in(visitor, then).headers["location"] == "/queue"
    location = to_the_provider(visitor)
    pending = PendingLogin.from_cookie(visitor.cookies["guard-login"])
    assert pending is not None
    planted = PendingLogin(pending.state, pending.nonce, pending.verifier, then)
    visitor.cookies.clear()
    visitor.cookies.set("guard-login", planted.to_cookie())
    assert visitor.get(back(location), follow_redirects=False).headers["location"] == "/queue"


def test_a_planted_session_ends_and_the_login_cookie_goes(console: MadeConsole) -> None:
    console.add("eve", "reviewer")
    planted, visitor = console.access.sessions.begin("eve"), console.visitor()
    visitor.cookies.set("guard", planted)
    answer = sign_in(visitor)
    assert console.access.sessions.find(planted) is None
    assert 'guard-login=""' in str(answer.headers.get_list("set-cookie"))


def test_over_https_the_login_cookie_is_bound_to_the_host(tmp_path: Path, provider: Provider) -> None:
    secure = MadeConsole.at(tmp_path / "s.db", ConsoleSettings(secure_cookie=True, oidc=settings(provider)))
    answer = secure.visitor().get("/login/oidc", follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-guard-login=")
    for part in ("HttpOnly", "Path=/", "SameSite=lax", "Secure", "Max-Age=600"):
        assert part in cookie
    assert "redirect_uri=https%3A%2F%2Ftestserver%2Flogin%2Foidc%2Fcallback" in answer.headers["location"]
    secure.close()


def test_an_address_has_so_many_answers(console: MadeConsole) -> None:
    visitor = console.visitor()
    codes = [visitor.get("/login/oidc/callback?state=x&code=y").status_code for _ in range(22)]
    assert codes == [401] * 20 + [429] * 2


def test_a_provider_that_is_not_there_is_said_so(tmp_path: Path, provider: Provider) -> None:
    for issuer in ("http://127.0.0.1:9", f"{provider.issuer}/"):
        lost = MadeConsole.at(tmp_path / "l.db", ConsoleSettings(oidc=settings(provider, issuer=issuer)))
        answer = lost.visitor().get("/login/oidc", follow_redirects=False)
        assert answer.status_code == 503
        assert ("cannot be reached" in answer.text) is issuer.endswith(":9")
        lost.close()


def test_without_a_provider_there_is_no_such_page(tmp_path: Path) -> None:
    plain = MadeConsole.at(tmp_path / "p.db")
    assert "organisation" not in plain.visitor().get("/login").text
    assert [plain.visitor().get(f"/login/oidc{rest}").status_code for rest in ("", "/callback")] == [404, 404]
    plain.close()


@pytest.mark.parametrize(
    "issuer", ["http://id.example.org", "id.example.org", "https://", "https://id.example.org?x=1"]
)
def test_an_issuer_without_https_is_refused(provider: Provider, issuer: str) -> None:
    with pytest.raises(InputError, match="cannot be an OpenID Connect issuer"):
        settings(provider, issuer=issuer)
    with pytest.raises(InputError, match="needs a client and roles"):
        settings(provider, roles={})


def test_the_clients_secret_is_in_no_text(provider: Provider) -> None:
    assert SECRET not in repr(settings(provider))
