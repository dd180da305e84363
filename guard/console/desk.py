"""What all pages share: store, accounts, templates and the visitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import Depends, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

import guard
from guard.access import ANYWHERE, Access, Permission, Principal, Refused, may, reachable_routes
from guard.access.oidc import OidcClient
from guard.console import charts, foreign, layer_charts, times
from guard.console.log_checks import LogChecks
from guard.console.remembered import Remembered
from guard.console.security import TryLimiter
from guard.console.settings import ConsoleSettings
from guard.errors import AccessError
from guard.review.decision_figures import DecisionFigures
from guard.review.store import Store
from guard.review.typical_maps import TypicalMaps

HERE = Path(__file__).parent

#: Seconds for which a number of cases is shown that took long to count.
COUNTS_S = 10.0

#: Largest size of a form in bytes; its main part is an edited answer.
LARGEST_FORM = 1_000_000

#: Largest number of fields of a form; each sentence of an answer has one for its mark.
MOST_FIELDS = 2000


class PageError(Exception):
    """A request gets an error page.

    Attributes:
        status: the HTTP status.
        title: the error.
        text: whether anything was changed, and what to do.
    """

    def __init__(self, status: int, title: str, text: str) -> None:
        self.status, self.title, self.text = status, title, text
        super().__init__(title)


class SignInError(Exception):
    """The visitor has not signed in."""


@dataclass(frozen=True, slots=True)
class ReviewDesk:
    """One console.

    Attributes:
        store: the cases.
        access: users, sessions, keys.
        settings: the settings of the console.
        logins: limits login attempts per address.
        typical: what layers look like in reviewed answers, by scorer.
        decided: what guards decided of late, by range and routes.
        counts: numbers of cases that took long to count, by filter.
        log_checks: of the audit log.
        oidc: signs people in at an OpenID Connect provider; None without one.
    """

    store: Store
    access: Access
    settings: ConsoleSettings
    logins: TryLimiter = field(default_factory=TryLimiter)
    typical: Remembered[TypicalMaps] = field(default_factory=Remembered)
    decided: Remembered[DecisionFigures] = field(default_factory=Remembered)
    counts: Remembered[int] = field(default_factory=lambda: Remembered(COUNTS_S))
    log_checks: LogChecks = field(default_factory=LogChecks)
    oidc: OidcClient | None = None

    @property
    def place(self) -> str:
        """The name of the store's file or database, without its location."""
        return self.store.place.rpartition("/")[2]

    def names(self) -> dict[str, str]:
        """Return the names of users by their login names."""
        return {user.id: user.name for user in self.access.users.all()}


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of a signed-in visitor.

    Attributes:
        request: the request.
        desk: the console.
        principal: the visitor.
        now: time of the request, the same everywhere on its page.
    """

    request: Request
    desk: ReviewDesk
    principal: Principal
    now: datetime

    @property
    def who(self) -> str:
        """The visitor's name in the store."""
        return self.principal.id

    def allows(self, permission: Permission, route: str | None = ANYWHERE) -> bool:
        """Return whether the visitor has a permission."""
        return bool(may(self.principal, permission, route))

    def require(self, permission: Permission, route: str | None = ANYWHERE) -> None:
        """Refuse the request unless the visitor has a permission.

        Raises:
            PageError: the visitor lacks the permission.
        """
        decision = may(self.principal, permission, route)
        if isinstance(decision, Refused):
            raise PageError(403, "Your role does not allow this page", f"{decision.why}. Nothing was changed.")

    def routes(self, permission: Permission) -> frozenset[str] | None:
        """Return the routes on which the visitor has a permission; None for all.

        Raises:
            PageError: the visitor has it on no route.
        """
        self.require(permission)
        return reachable_routes(self.principal, permission)

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a page made from a template."""
        shared = {"visit": self, "now": self.now, "administers": self.allows(Permission.ADMINISTER)}
        shared |= {"reviews": self.allows(Permission.DECIDE), "sees": self.allows(Permission.SEE_CASES)}
        shared |= {"leads": self.allows(Permission.SEE_INSIGHTS), "audits": self.allows(Permission.READ_LOG, None)}
        return render(self.request, template, status=status, **shared, **values)

    def go(self, path: str, **query: str | None) -> Response:
        """Return a redirect (303) to another page of the console."""
        return go(self.request, path, **query)


# -- who asks ----------------------------------------------------------------------------------


def get_desk(request: Request) -> ReviewDesk:
    """Return the console of a request, unless the request may come from another site.

    Raises:
        PageError: the request may come from another site.
    """
    if (why := request.scope.get("guard.cross_site")) is not None:
        raise PageError(
            403,
            "This request did not come from the console",
            f"Nothing was changed: {why}. If you pressed a button here, reload the page and try again.",
        )
    desk: ReviewDesk = request.app.state.desk
    return desk


TheDesk = Annotated[ReviewDesk, Depends(get_desk)]


def get_visit(request: Request, desk: TheDesk) -> Visit:
    """Return the visit of a request.

    Raises:
        SignInError: the visitor has not signed in.
    """
    principal = find_principal(request, desk)
    if principal is None:
        raise SignInError
    return Visit(request, desk, principal, datetime.now(UTC))


TheVisit = Annotated[Visit, Depends(get_visit)]


def find_principal(request: Request, desk: ReviewDesk) -> Principal | None:
    """Return the visitor: by the header of a trusted proxy if there is one, else by the session cookie."""
    if desk.settings.proxy_header is not None:
        return _by_proxy(request, desk)
    secret = request.cookies.get(desk.settings.cookie)
    session = desk.access.sessions.find(secret) if secret else None
    return None if session is None else session.user.principal


def _by_proxy(request: Request, desk: ReviewDesk) -> Principal | None:
    """Return the user that the proxy names. Only the proxy's address is trusted, and only known users are accepted."""
    name = request.headers.get(desk.settings.proxy_header or "")
    if not name or client_address(request) not in desk.settings.proxy_addresses:
        return None
    try:
        user = desk.access.users.get(name)
    except AccessError:
        return None
    return user.principal if user.disabled_at is None else None


def client_address(request: Request) -> str:
    """Return the address of the request's socket, which is the proxy's behind a proxy."""
    return request.client.host if request.client is not None else ""


def visitor_address(request: Request, desk: ReviewDesk) -> str:
    """Return the visitor's address; a trusted proxy states it."""
    address = client_address(request)
    if address not in desk.settings.proxy_addresses:
        return address
    return request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()[:60] or address


async def read_form(request: Request, desk: TheDesk) -> dict[str, str]:
    """Return the fields of a form; the last value of a repeated field counts.

    The cross-site check runs first, so the body of a cross-site request is never read.

    Raises:
        PageError: the body is not a form, or too large.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            raise PageError(413, "The form is too large", "Nothing was changed. Shorten the text.")
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    if body and kind != "application/x-www-form-urlencoded":
        raise PageError(415, "This is not a form", "Nothing was changed.")
    try:
        text = body.decode("utf-8", "replace")
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="replace")
    except ValueError:
        raise PageError(400, "The form cannot be read", "Nothing was changed.") from None
    # Browsers send line breaks as CRLF; databases do not accept NUL.
    return {name: values[-1].replace("\r\n", "\n").replace("\0", "\ufffd") for name, values in fields.items()}


TheForm = Annotated[dict[str, str], Depends(read_form)]


# -- answers -----------------------------------------------------------------------------------


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Render a template as a page; a missing value is an error."""
    root = request.scope.get("root_path", "")
    text = templates().get_template(template).render(root=root, **values)
    return HTMLResponse(text, status)


def go(request: Request, path: str, **query: str | None) -> Response:
    """Return a redirect (303) within the console."""
    return RedirectResponse(request.scope.get("root_path", "") + path + query_text(query), 303)


def query_text(query: Mapping[str, str | None]) -> str:
    """Return the query string of an address, without empty values.

    Examples:
        >>> query_text({"route": "a b", "q": None})
        '?route=a+b'
    """
    given = {name: value for name, value in query.items() if value}
    return f"?{urlencode(given)}" if given else ""


@cache
def templates() -> Environment:
    """Return the templates: values are escaped, and a missing value is an error."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(version=guard.__version__, bar=charts.bar, ramp=layer_charts.ramp, query_text=query_text)
    for function in (foreign.foreign, times.ago, times.moment, times.duration, times.initials, times.due):
        environment.filters[function.__name__] = function
    environment.filters["lookup"] = lambda name, names: names.get(name, name)
    return environment
