"""``guard keys``: API keys of programs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import JsonOption, StoreOption, console, plain_table, print_json
from guard.cli.terminal import shown
from guard.cli.users import format_roles, opened_access, parse_roles
from guard.errors import InputError

if TYPE_CHECKING:
    from guard.access.records import ApiKey

app = typer.Typer(
    help="API keys of programs: add, list, revoke.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key: what it is for.")]
KeyLimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="No limit by default.")]


@app.command()
def add(
    name: NameArgument,
    *,
    roles: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="Role of the key, ROLE or ROLE:ROUTE; repeatable. [caller]"),
    ] = None,
    requests_per_minute: KeyLimitOption = None,
    tokens_per_minute: KeyLimitOption = None,
    tokens_per_month: KeyLimitOption = None,
    ends: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day of validity, such as 2027-03-01 (UTC).")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print its secret, which is not shown again."""
    from guard.access.records import KeyLimits

    limits = KeyLimits(requests_per_minute, tokens_per_minute, tokens_per_month)
    with opened_access(store, create=True) as access:
        key, secret = access.keys.add(name, grants=parse_roles(roles or ["caller"]), limits=limits, ends_at=_end(ends))
    if as_json:
        print_json({**key_json(key), "secret": secret})
        return
    console().print(shown(f"{key.name}: {format_roles(key.grants)}. Copy the key now, it is not shown again:"))
    console().print(shown(secret), soft_wrap=True)


@app.command("list")
def list_keys(*, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List keys, without their secrets."""
    with opened_access(store) as access:
        keys = access.keys.all()
    if as_json:
        print_json([key_json(key) for key in keys])
        return
    if not keys:
        console().print("No keys. Make one: guard keys add NAME")
        return
    rows = [
        [each.name, each.prefix, format_roles(each.grants), _limits(each), (each.seen_at or "never")[:10], _state(each)]
        for each in keys
    ]
    console().print(plain_table(("name", "begins with", "roles", "limits", "last used", "state"), rows))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, or the prefix of its secret.")],
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key, with immediate effect."""
    with opened_access(store) as access:
        key = access.keys.revoke(name)
    if as_json:
        print_json(key_json(key))
        return
    console().print(shown(f"{key.name} ({key.prefix}) is revoked"), soft_wrap=True)


def key_json(key: ApiKey) -> dict[str, Any]:
    """Return a key as plain data."""
    return {**asdict(key), "grants": [str(grant) for grant in key.grants]}


def _end(date: str | None) -> datetime | None:
    """Return the end of a day."""
    if date is None:
        return None
    try:
        return datetime.strptime(date, "%Y-%m-%d").replace(hour=23, minute=59, second=59, tzinfo=UTC)
    except ValueError:
        raise InputError(f"'{date[:40]}' is not a date", fix="Write --ends 2027-03-01") from None


def _limits(key: ApiKey) -> str:
    each = {
        "requests/min": key.limits.requests_per_minute,
        "tokens/min": key.limits.tokens_per_minute,
        "tokens/month": key.limits.tokens_per_month,
    }
    return ", ".join(f"{value:,} {unit}" for unit, value in each.items() if value is not None) or "none"


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at[:10]}"
    return "works" if key.ends_at is None else f"ends {key.ends_at[:10]}"
