"""``guard console``: the web pages of the review queue."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import StoreOption
from guard.cli.output import console as screen
from guard.cli.terminal import shown
from guard.errors import InputError, missing_extra

if TYPE_CHECKING:
    from guard.access.oidc import OidcSettings
    from guard.access.store import Access
    from guard.audit.notes import SigningKey
    from guard.console.settings import ConsoleSettings


#: Environment variable that has the client's secret at an OpenID Connect provider.
CLIENT_SECRET = "GUARD_OIDC_CLIENT_SECRET"

#: Seconds that the console waits at its end for messages that are being sent.
DELIVER_END_S = 20.0


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the console listens, and how browsers reach it.

    Attributes:
        host, port: of the socket.
        https: whether a proxy in front speaks HTTPS.
    """

    host: str
    port: int
    https: bool

    def address(self, names: frozenset[str]) -> str:
        """Return the URL of the pages."""
        scheme = "https" if self.https else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        named = f"{scheme}://{min(names)}" if self.https and names else f"{scheme}://{host}:{self.port}"
        return f"{named}/console"


def console(
    *,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on; 127.0.0.1 accepts only this machine.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8766,
    https: Annotated[
        bool, typer.Option("--https", help="Served behind an HTTPS proxy; required unless HOST is loopback.")
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name that browsers use; others are refused; repeatable."),
    ] = None,
    proxy_address: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="IP address of the proxy whose headers are trusted; repeatable."),
    ] = None,
    proxy_header: Annotated[
        str | None,
        typer.Option(metavar="HEADER", help="Header in which the proxy names the user, such as X-Forwarded-User."),
    ] = None,
    oidc_issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenID Connect provider for signing in.")
    ] = None,
    oidc_client: Annotated[
        str, typer.Option(metavar="ID", help="Client id at the provider; GUARD_OIDC_CLIENT_SECRET has its secret.")
    ] = "guard",
    oidc_role: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUE=ROLE", help="Role that a value of the claim gives; repeatable."),
    ] = None,
    oidc_claim: Annotated[str, typer.Option(metavar="NAME", help="Claim whose values give roles.")] = "groups",
    signing_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="Key file from guard audit key, to sign checkpoints with.")
    ] = None,
    deliver: Annotated[
        bool,
        typer.Option("--deliver", help="Also send notifications and mark late cases, like guard webhooks deliver."),
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Show the cases of guard demo, in a separate store.")] = False,
    store: StoreOption = None,
) -> None:
    """Open the review console in a browser.

    The first run prints a link that makes the first account. By default the console accepts only this machine (see
    --host). To send notifications and mark late cases, use --deliver, or also run guard webhooks deliver.
    """
    settings = _settings(https, name, proxy_address, proxy_header, host)
    settings = replace(
        settings,
        oidc=_provider(oidc_issuer, oidc_client, oidc_role or [], oidc_claim),
        signing_key=_signing_key(signing_key),
    )
    listening = Listening(host, port, https)
    if demo and store is not None:
        raise InputError("--demo has a store of its own", fix="Leave --store or --demo out")
    place = _demo_store() if demo else store
    with ExitStack() as stack:
        # First: a link is not printed for a console that cannot start.
        open_socket = stack.enter_context(_socket(listening))
        site = _site(stack, place, settings, listening, create=store is None)
        if deliver:
            stack.enter_context(_delivering(place))
        _serve(site, open_socket)


def _provider(issuer: str | None, client: str, roles: list[str], claim: str) -> OidcSettings | None:
    """Return the OpenID Connect provider, or None where none is given.

    Raises:
        InputError: roles without a provider, or one that names no role.
    """
    from guard.access.oidc import OidcSettings
    from guard.access.records import Grant

    if issuer is None:
        if roles:
            raise InputError("--oidc-role needs a provider", fix="Give --oidc-issuer")
        return None
    grants: dict[str, tuple[Grant, ...]] = {}
    for text in roles:
        value, equals, role = text.rpartition("=")
        if not equals or not value:
            raise InputError(f"'{text[:80]}' gives no value a role", fix="Write --oidc-role VALUE=ROLE[:ROUTE]")
        grants[value] = (*grants.get(value, ()), Grant.parse(role))
    return OidcSettings(issuer, client, os.environ.get(CLIENT_SECRET) or None, grants, claim)


def _signing_key(path: str | None) -> SigningKey | None:
    from guard.audit.notes import SigningKey

    return None if path is None else SigningKey.load(path)


@contextmanager
def _delivering(place: str | None) -> Iterator[None]:
    """Send notifications from a thread, which ends with the block; the store is its own."""
    from guard.review.delivery import Deliverer
    from guard.review.store import Store

    for package in ("httpx", "cryptography"):
        if find_spec(package) is None:
            raise missing_extra(package, "webhooks")
    stop = threading.Event()
    with Store.open(place) as store:
        worker = threading.Thread(target=Deliverer(store).run, args=(stop,), name="guard-deliver", daemon=True)
        worker.start()
        try:
            yield
        finally:
            stop.set()
            worker.join(DELIVER_END_S)


def _settings(
    https: bool, names: list[str] | None, addresses: list[str] | None, header: str | None, host: str
) -> ConsoleSettings:
    try:
        from guard.console.settings import LOOPBACK_NAMES, ConsoleSettings, is_loopback
    except ImportError:
        raise missing_extra("fastapi", "console") from None
    known = frozenset(names or ())
    if is_loopback(host):
        known |= LOOPBACK_NAMES
    elif not https:
        raise InputError(
            f"The console does not listen on {host} by plain HTTP",
            why="passwords and cases would cross the network in the clear",
            fix="Put an HTTPS proxy in front, and use --https; see docs/how-to/console.md",
        )
    return ConsoleSettings(https, known, header, frozenset(addresses or ()))


def _site(stack: ExitStack, place: str | None, settings: ConsoleSettings, listening: Listening, *, create: bool) -> Any:
    """Return the console below /console, over stores that are closed with the stack."""
    from guard.access.store import Access
    from guard.console.settings import is_loopback
    from guard.review.store import Store

    access = stack.enter_context(Access.open(place, create=create))
    if not is_loopback(listening.host) and not access.users.exist():
        raise InputError(
            f"The console does not listen on {listening.host} without accounts",
            fix="Start it once without --host and make the first account, or run: guard users add",
        )
    try:
        from starlette.applications import Starlette
        from starlette.responses import RedirectResponse
        from starlette.routing import Mount, Route

        from guard.console.app import create_app
    except ImportError:
        raise missing_extra("fastapi", "console") from None
    app = create_app(stack.enter_context(Store.open(place)), access, settings)
    _greet(access, settings, listening)
    home = Route("/", lambda _: RedirectResponse("/console/"))
    return Starlette(routes=[home, Mount("/console", app)])


def _greet(access: Access, settings: ConsoleSettings, listening: Listening) -> None:
    address = listening.address(settings.names)
    out = screen()
    out.print(shown(f"Reviews of {access.place}"), soft_wrap=True)
    if access.users.exist() or settings.proxy_header is not None:
        out.print(shown(f"Open {address}/   (Ctrl-C ends it)"), soft_wrap=True)
        return
    link = access.links.for_first_user()
    out.print("There is no account yet. This link makes the first one; it works once, for 30 minutes:", soft_wrap=True)
    out.print(shown(f"{address}/welcome/{link}"), soft_wrap=True)
    out.print("Ctrl-C ends the console.")


def _socket(listening: Listening) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in listening.host else socket.AF_INET)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((listening.host, listening.port))
    except OSError as error:
        opened.close()
        raise InputError(
            f"The console cannot listen on {listening.host}, port {listening.port}",
            why=error.strerror or str(error),
            fix="Give another --host or --port",
        ) from error
    return opened


def _serve(site: Any, open_socket: socket.socket) -> None:
    try:
        import uvicorn
    except ImportError:
        raise missing_extra("uvicorn", "console") from None
    # No access log: links that work once are in addresses. Headers of proxies are read by the console alone.
    config = uvicorn.Config(site, log_level="warning", access_log=False, proxy_headers=False, server_header=False)
    uvicorn.Server(config).run(sockets=[open_socket])


def _demo_store() -> str:
    """Return the store of the demo's cases; the embedded model is asked where there is none yet."""
    from guard.cli.demo_questions import run, store_path

    place = store_path()
    if not place.exists():
        from guard.runtime.guard import Guard

        screen().print("Asking the embedded model the demo's questions ...")
        with Guard.load(policy="balanced", store=str(place)) as guard:
            for _ in run(guard):
                pass
    return str(place)
