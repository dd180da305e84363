"""`guard users` and `guard keys` against a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from program import run_guard
from typer.testing import CliRunner

from guard.access import Access, passwords
from guard.cli import app
from guard.errors import AccessError, GuardError, InputError, StoreError


class AccessShell:
    """Runs commands on one store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--store", str(self.path)])
        if isinstance(result.exception, GuardError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccessShell:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(passwords, "_hasher", lambda: PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    Access.open(tmp_path / "reviews.db").close()
    return AccessShell(tmp_path / "reviews.db")


def test_a_user_is_added_with_a_link_that_sets_the_password(shell: AccessShell) -> None:
    made = shell.json("users", "add", "Mira", "reviewer:medical", "viewer", "--name", "Mira Patel")
    assert (made["id"], made["name"], made["grants"]) == ("mira", "Mira Patel", ["reviewer:medical", "viewer"])
    assert made["link"].startswith("http://127.0.0.1:8766/console/welcome/")
    with Access.open(shell.path) as access:
        access.links.set_password(made["link"].rpartition("/")[2], "three plain words")
        assert access.users.check_login("mira", "three plain words").name == "Mira Patel"


def test_a_forgotten_password_gets_a_new_link(shell: AccessShell) -> None:
    shell("users", "add", "mira", "lead")
    text = shell("users", "link", "mira", "--url", "https://guard.example.org/console/")
    link = text.split()[-1]
    assert link.startswith("https://guard.example.org/console/welcome/")
    with Access.open(shell.path) as access:
        assert access.links.check(link.rpartition("/")[2]) == "mira"


def test_users_are_listed_changed_and_disabled(shell: AccessShell) -> None:
    assert "No users" in shell("users", "list")
    shell("users", "add", "ana", "admin")
    shell("users", "add", "mira", "reviewer")
    assert "lead, viewer:law" in shell("users", "role", "mira", "lead", "viewer:law")
    assert "disabled" in shell("users", "disable", "mira")
    listed = shell("users", "list")
    assert "mira" in listed
    assert "disabled" in listed
    assert "no password yet" in listed
    assert "no password yet" in shell("users", "enable", "mira")
    assert [user["id"] for user in shell.json("users", "list")] == ["ana", "mira"]
    with pytest.raises(AccessError, match="last admin"):
        shell("users", "disable", "ana")


def test_a_key_is_made_listed_and_revoked(shell: AccessShell) -> None:
    assert "No keys" in shell("keys", "list")
    limits = ("--requests-per-minute", "60", "--tokens-per-month", "1000000")
    secret = shell("keys", "add", "chat", "--role", "caller:medical", *limits).split()[-1]
    with Access.open(shell.path) as access:
        found = access.keys.find(secret)
        assert found is not None
        assert found.limits.requests_per_minute == 60
    listed = shell.json("keys", "list")
    assert [(key["name"], key["grants"]) for key in listed] == [("chat", ["caller:medical"])]
    assert secret not in json.dumps(listed)
    table = shell("keys", "list")
    assert secret not in table
    assert found.prefix in table
    assert "revoked" in shell("keys", "revoke", "chat")
    with Access.open(shell.path) as access:
        assert access.keys.find(secret) is None


def test_a_key_calls_by_default_and_ends_with_its_last_day(shell: AccessShell) -> None:
    made = shell.json("keys", "add", "chat", "--ends", "2099-03-01")
    assert made["grants"] == ["caller"]
    assert made["ends_at"] == "2099-03-01T23:59:59.000000+00:00"
    for date in ("1.3.2099", "2001-01-01"):
        with pytest.raises(InputError):
            shell("keys", "add", "other", "--ends", date)


@pytest.mark.parametrize(
    "arguments", [("users", "add", "x", "boss"), ("keys", "add", "x", "--role", "boss"), ("users", "role", "x", "boss")]
)
def test_an_unknown_role_is_refused(shell: AccessShell, arguments: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="There is no role 'boss'"):
        shell(*arguments)


def test_a_store_that_is_named_and_missing_is_not_made(tmp_path: Path) -> None:
    missing = AccessShell(tmp_path / "typo.db")
    for arguments in (("users", "list"), ("keys", "list"), ("users", "disable", "x"), ("keys", "revoke", "x")):
        with pytest.raises(StoreError, match="There is no review store"):
            missing(*arguments)
    assert not (tmp_path / "typo.db").exists()


@pytest.mark.parametrize("arguments", [("users", "add", "x", "lead"), ("keys", "add", "x")])
def test_the_first_account_or_key_makes_its_store_and_says_so(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    place = tmp_path / "reviews.db"
    first = run_guard(*arguments, "--store", str(place))
    assert first.returncode == 0
    assert f"{place} is a new store" in " ".join(first.stderr.split())
    second = run_guard("users", "list", "--store", str(place))
    assert (second.returncode, second.stderr) == (0, "")


def test_an_error_is_one_message_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "reviews.db"
    Access.open(path).close()
    run = run_guard("users", "disable", "nobody", "--store", str(path))
    assert run.returncode == 2
    assert "There is no user 'nobody'" in run.stderr
