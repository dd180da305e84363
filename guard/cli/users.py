"""``guard users``: accounts and roles of the console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import JsonOption, StoreOption, console, plain_table, print_json
from guard.cli.terminal import shown, visible

if TYPE_CHECKING:
    from guard.access.records import Grant, User
    from guard.access.store import Access

app = typer.Typer(
    help="Accounts of the console: add, list, change roles, disable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

LoginArgument = Annotated[str, typer.Argument(metavar="LOGIN", help="Login name.")]
RolesArgument = Annotated[
    list[str],
    typer.Argument(metavar="ROLE...", help="Role: viewer, reviewer, lead, auditor or admin; ROLE:ROUTE for one route."),
]
UrlOption = Annotated[str, typer.Option("--url", metavar="URL", help="Address of the console, for the link.")]

#: Where `guard console` listens unless it is given other addresses.
CONSOLE_URL = "http://127.0.0.1:8766/console"


@app.command()
def add(
    login: LoginArgument,
    roles: RolesArgument,
    *,
    name: Annotated[str, typer.Option(metavar="NAME", help="Display name.")] = "",
    url: UrlOption = CONSOLE_URL,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an account and print a link for setting its password. The link works once, for three days."""
    with opened_access(store, create=True) as access:
        user = access.users.add(login, name=name, grants=parse_roles(roles))
        link = _link(access, user, url)
    if as_json:
        print_json({**user_json(user), "link": link})
        return
    _print_link(user, link)


@app.command()
def link(
    login: LoginArgument, *, url: UrlOption = CONSOLE_URL, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Print a link for setting a new password. It works once, for three days."""
    with opened_access(store) as access:
        user = access.users.get(login)
        address = _link(access, user, url)
    if as_json:
        print_json({"id": user.id, "link": address})
        return
    _print_link(user, address)


@app.command("list")
def list_users(*, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List accounts with their roles."""
    with opened_access(store) as access:
        users = access.users.all()
    if as_json:
        print_json([user_json(user) for user in users])
        return
    if not users:
        console().print("No users. Start the console: it prints a link for the first account.")
        return
    rows = [[each.id, each.name, format_roles(each.grants), _state(each), _day(each.seen_at)] for each in users]
    console().print(plain_table(("login", "name", "roles", "state", "last seen"), rows))


@app.command()
def role(login: LoginArgument, roles: RolesArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Replace the roles of a user."""
    with opened_access(store) as access:
        _report(access.users.set_grants(login, parse_roles(roles)), as_json=as_json)


@app.command()
def disable(login: LoginArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Disable an account and end its sessions. Its verdicts stay."""
    with opened_access(store) as access:
        _report(access.users.disable(login), as_json=as_json)


@app.command()
def enable(login: LoginArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Enable a disabled account."""
    with opened_access(store) as access:
        _report(access.users.enable(login), as_json=as_json)


# -- shared with ``guard keys`` ----------------------------------------------------------------


@contextmanager
def opened_access(url: str | None, *, create: bool = False) -> Iterator[Access]:
    """Open the users and keys of a store.

    Args:
        url: the store; None for the default one, which is made where it is missing.
        create: whether a named store is made, too, with a line that says so: the first account or key may come before
            the first case.
    """
    from guard.access.store import Access

    is_new = create and url is not None and "://" not in url and not Path(url).exists()
    with Access.open(url, create=create or url is None) as access:
        if is_new:
            typer.echo(visible(f"{access.place} is a new store"), err=True)
        yield access


def parse_roles(roles: list[str]) -> tuple[Grant, ...]:
    """Return the grants of arguments such as ``reviewer:medical``."""
    from guard.access.records import parse_grants

    return parse_grants(roles)


def format_roles(grants: tuple[Grant, ...]) -> str:
    """Return roles as text."""
    return ", ".join(map(str, grants))


def user_json(user: User) -> dict[str, Any]:
    """Return an account as plain data."""
    return {**asdict(user), "grants": [str(grant) for grant in user.grants]}


def _link(access: Access, user: User, url: str) -> str:
    return f"{url.rstrip('/')}/welcome/{access.links.for_password(user.id)}"


def _print_link(user: User, link: str) -> None:
    console().print(shown(f"With this link {user.name} sets a password; it works once, for three days:"))
    console().print(shown(link), soft_wrap=True)


def _report(user: User, *, as_json: bool) -> None:
    if as_json:
        print_json(user_json(user))
        return
    console().print(shown(f"{user.id}: {format_roles(user.grants)}, {_state(user)}"), soft_wrap=True)


def _state(user: User) -> str:
    if user.disabled_at is not None:
        return "disabled"
    return "active" if user.has_password else "no password yet"


def _day(time: str | None) -> str:
    return "never" if time is None else time[:10]
