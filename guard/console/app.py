"""The application: routes, static files and error pages."""

from __future__ import annotations

import logging
import traceback

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from guard.access import Access
from guard.access.oidc import OidcClient
from guard.console import (
    administration,
    audit,
    cases,
    certificates,
    decisions,
    entry,
    insights,
    queue,
    replaying,
    single_sign_on,
    webhooks,
)
from guard.console.desk import HERE, PageError, ReviewDesk, SignInError, go, render
from guard.console.security import HEADERS, Shield
from guard.console.settings import ConsoleSettings
from guard.errors import GuardError
from guard.review.store import Store

_log = logging.getLogger("guard.console")

#: Modules with pages; an address belongs to the first that has it.
_PARTS = (
    *(entry, single_sign_on, queue, cases, decisions),
    *(insights, certificates, replaying, audit, administration, webhooks),
)

_GONE = "There is no such page"


def create_app(store: Store, access: Access, settings: ConsoleSettings | None = None) -> FastAPI:
    """Return the console as an application, to serve or to mount.

    All its addresses are relative to where it is mounted. Its own middleware protects it, so it needs none around it.
    It sends no notifications and marks no late cases; `guard.review.delivery.Deliverer` does.

    Args:
        store: the cases; it stays the caller's to close.
        access: users and sessions; the same.
        settings: how it is reached; by default on plain HTTP, under any name.

    Examples:
        >>> from fastapi import FastAPI
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, Store.open(f"{folder}/reviews.db") as store:
        ...     with Access.open(f"{folder}/reviews.db") as access:
        ...         site = FastAPI()
        ...         site.mount("/console", create_app(store, access))
    """
    settings = settings or ConsoleSettings()
    app = FastAPI(title="guard console", docs_url=None, redoc_url=None, openapi_url=None)
    oidc = None if settings.oidc is None else OidcClient(settings.oidc)
    app.state.desk = ReviewDesk(store, access, settings, oidc=oidc)
    for part in _PARTS:
        app.include_router(part.router)
    app.mount("/static", _Static(directory=HERE / "static"))
    app.add_middleware(Shield, settings=settings)
    app.add_exception_handler(SignInError, _ask_to_sign_in)
    app.add_exception_handler(PageError, _show_refusal)
    app.add_exception_handler(GuardError, _show_guard_error)
    app.add_exception_handler(HTTPException, _show_http_error)
    app.add_exception_handler(Exception, _show_failure)
    return app


class _Static(StaticFiles):
    """The static files; browsers may cache them and revalidate."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"
        return response


# -- errors ------------------------------------------------------------------------------------


def _ask_to_sign_in(request: Request, error: Exception) -> Response:
    """Redirect to the login. A form is not submitted again, and the page says so."""
    if request.method in ("GET", "HEAD"):
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        query = f"?{request.url.query}" if request.url.query else ""
        return go(request, "/login", then=path + query)
    return _error(request, 401, "You are not signed in", "Nothing was changed. Sign in, then try again.")


def _show_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)
    return _error(request, error.status, error.title, error.text)


def _show_guard_error(request: Request, error: Exception) -> Response:
    """Show guard's own error, such as a failed store or a missing case."""
    assert isinstance(error, GuardError)
    mistaken = error.exit_code == 2
    if not mistaken:
        _log.error("console: %s failed: %s", request.method, type(error).__name__)
    text = " ".join(part for part in (error.why and f"{error.why}.", error.fix) if part)
    return _error(request, 404 if mistaken else 503, error.what, text or "Nothing was changed.")


def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = _GONE if error.status_code in (404, 405) else "This cannot be done"
    return _error(request, error.status_code, title, "Nothing was changed.")


def _show_failure(request: Request, error: Exception) -> Response:
    # Without the error's message, which may quote a prompt or an answer.
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("console: %s failed: %s\n%s", request.method, type(error).__name__, frames)
    page = _error(request, 500, "guard failed", "It is unknown whether anything was changed. See the log.")
    page.headers.update(HEADERS)  # this handler is outside the middleware that sets them
    return page


def _error(request: Request, status: int, title: str, text: str) -> Response:
    return render(request, "error.html.j2", status=status, code=status, title=title, text=text)
