"""Settings: users and their roles, API keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from guard.access import KeyLimits, Permission, Role
from guard.access.authorisation import PERMISSIONS
from guard.access.records import parse_grants
from guard.console.desk import TheForm, TheVisit, Visit
from guard.errors import AccessError, InputError

router = APIRouter()

#: Largest number of digits of a limit in the database.
_DIGITS = 18


@router.get("/settings")
def show_settings(visit: TheVisit) -> Response:
    """Return the first page of the settings."""
    return visit.go("/settings/users")


@router.get("/settings/users")
def show_users(visit: TheVisit) -> Response:
    """Return the page of users and roles."""
    return _users_page(visit)


@router.post("/settings/users")
def add_user(visit: TheVisit, form: TheForm) -> Response:
    """Make an account, and show once the link with which its user sets a password."""
    visit.require(Permission.ADMINISTER)
    access = visit.desk.access

    def make() -> Response:
        user = access.users.add(form.get("login", ""), name=form.get("name", ""), grants=_grants(form))
        return _users_page(visit, link=_link(visit, access.links.for_password(user.id)), link_for=user.name)

    return _tried(make, lambda error: _users_page(visit, error=error, typed=form, status=422))


@router.post("/settings/users/{login}/{change}")
def change_user(visit: TheVisit, form: TheForm, login: str, change: str) -> Response:
    """Change a user's roles, disable or enable the account, or make a link for a new password."""
    visit.require(Permission.ADMINISTER)
    access = visit.desk.access

    def make() -> Response:
        match change:
            case "roles":
                access.users.set_grants(login, _grants(form))
            case "disable":
                access.users.disable(login)
            case "enable":
                access.users.enable(login)
            case "link":
                user = access.users.get(login)
                return _users_page(visit, link=_link(visit, access.links.for_password(user.id)), link_for=user.name)
            case _:
                raise InputError(f"A user cannot be changed by '{change[:40]}'")
        return visit.go("/settings/users")

    return _tried(make, lambda error: _users_page(visit, error=error, status=422))


@router.get("/settings/keys")
def show_keys(visit: TheVisit) -> Response:
    """Return the page of API keys."""
    return _keys_page(visit)


@router.post("/settings/keys")
def add_key(visit: TheVisit, form: TheForm) -> Response:
    """Make a key, and show its secret once."""
    visit.require(Permission.ADMINISTER)

    def make() -> Response:
        _, secret = visit.desk.access.keys.add(form.get("name", ""), grants=_grants(form), limits=_key_limits(form))
        return _keys_page(visit, secret=secret)

    return _tried(make, lambda error: _keys_page(visit, error=error, typed=form, status=422))


@router.post("/settings/keys/{prefix}/revoke")
def revoke_key(visit: TheVisit, prefix: str) -> Response:
    """Revoke a key."""
    visit.require(Permission.ADMINISTER)

    def make() -> Response:
        visit.desk.access.keys.revoke(prefix)
        return visit.go("/settings/keys")

    return _tried(make, lambda error: _keys_page(visit, error=error, status=422))


def _tried(make: Callable[[], Response], failed: Callable[[str], Response]) -> Response:
    try:
        return make()
    except (AccessError, InputError) as error:
        return failed(str(error))


def _grants(form: dict[str, str]) -> Any:
    return parse_grants(re.split(r"[,;\s]+", form.get("roles", "").strip(" ,;\n")) if form.get("roles") else ())


def _key_limits(form: dict[str, str]) -> KeyLimits:
    limits = {}
    for name in KeyLimits.__dataclass_fields__:
        text = form.get(name, "").strip().replace(",", "")
        if text and not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
            what = f"{name.replace('_', ' ').capitalize()} must be a whole number of at most {_DIGITS} digits"
            raise InputError(what, why=f"got '{text[:40]}'")
        limits[name] = int(text) if text else None
    return KeyLimits(**limits)


def _link(visit: Visit, secret: str) -> str:
    request = visit.request
    scheme = "https" if visit.desk.settings.secure_cookie else "http"
    return f"{scheme}://{request.headers.get('host', '')}{request.scope.get('root_path', '')}/welcome/{secret}"


def _users_page(
    visit: Visit,
    *,
    link: str = "",
    link_for: str = "",
    error: str = "",
    typed: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    visit.require(Permission.ADMINISTER)
    shown: dict[str, Any] = {"users": visit.desk.access.users.all(), "link": link, "link_for": link_for}
    shown |= {"error": error, "typed": typed or {}}
    roles = [role for role in Role if role is not Role.CALLER]
    table = {permission.value: [permission in PERMISSIONS[role] for role in roles] for permission in Permission}
    del table[Permission.ASK.value]
    return visit.page(
        "users.html.j2", status=status, here="settings", tab="users", roles=roles, permissions=table, **shown
    )


def _keys_page(
    visit: Visit, *, secret: str = "", error: str = "", typed: dict[str, str] | None = None, status: int = 200
) -> Response:
    visit.require(Permission.ADMINISTER)
    keys = sorted(visit.desk.access.keys.all(), key=lambda key: key.revoked_at is not None)
    shown = {"keys": keys, "secret": secret, "error": error, "typed": typed or {}}
    return visit.page("keys.html.j2", status=status, here="settings", tab="keys", **shown)
