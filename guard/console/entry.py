"""First-run link, login, password change and logout."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.console.desk import PageError, ReviewDesk, TheDesk, TheForm, find_principal, go, render, visitor_address
from guard.errors import AccessError, InputError

router = APIRouter()


@router.get("/login")
def show_login(request: Request, desk: TheDesk, then: str = "") -> Response:
    """Return the page to sign in on."""
    if find_principal(request, desk) is not None:
        return go(request, own_path(then))
    return login_page(request, desk, then=own_path(then))


@router.post("/login")
def sign_in(request: Request, desk: TheDesk, form: TheForm) -> Response:
    """Start a session with a new cookie; the browser's old cookie is never reused."""
    then, login = own_path(form.get("then", "")), form.get("login", "")
    if desk.settings.proxy_header is not None:
        raise PageError(403, "Users sign in at the proxy", "This console accepts no passwords.")
    if not desk.logins.allows(visitor_address(request, desk)):
        return login_page(
            request, desk, then=then, login=login, error="Too many attempts from this address. Wait five minutes.",
            status=429,
        )  # fmt: skip
    try:
        user = desk.access.users.check_login(login, form.get("password", ""))
    except AccessError as error:
        return login_page(request, desk, then=then, login=login, error=str(error), status=401)
    return signed_in(request, desk, user.id, then)


@router.post("/logout")
def sign_out(request: Request, desk: TheDesk) -> Response:
    """End the session."""
    if (secret := request.cookies.get(desk.settings.cookie)) is not None:
        desk.access.sessions.end(secret)
    response = go(request, "/login")
    response.delete_cookie(desk.settings.cookie, path="/", secure=desk.settings.secure_cookie, httponly=True)
    return response


@router.get("/welcome/{secret}")
def show_welcome(request: Request, desk: TheDesk, secret: str) -> Response:
    """Return the page of a one-time link. Opening it does not use the link."""
    return _welcome_page(request, _owner(desk, secret))


@router.post("/welcome/{secret}")
def use_welcome(request: Request, desk: TheDesk, secret: str, form: TheForm) -> Response:
    """Use a link: make the first account, or set a password; then sign in."""
    login, password, name = form.get("login", ""), form.get("password", ""), form.get("name", "")
    owner = _owner(desk, secret)
    try:
        if owner is None:
            user = desk.access.links.make_first_user(secret, login, name=name, password=password)
        else:
            user = desk.access.links.set_password(secret, password)
    except AccessError as error:
        raise _no_link(error) from None
    except InputError as error:
        return _welcome_page(request, owner, login=login, name=name, error=str(error), status=422)
    return signed_in(request, desk, user.id, "/queue")


def own_path(path: str) -> str:
    """Return a path within the console; the queue for anything else, such as another site.

    Examples:
        >>> own_path("/case/k2m9xt?edit=1"), own_path("//evil.example/"), own_path("https://evil.example")
        ('/case/k2m9xt?edit=1', '/queue', '/queue')
    """
    parts = urlsplit(path)
    plain = path.isascii() and path.isprintable() and "\\" not in path
    if not plain or parts.scheme or parts.netloc or not path.startswith("/") or path.startswith("//"):
        return "/queue"
    return path


def _owner(desk: ReviewDesk, secret: str) -> str | None:
    try:
        return desk.access.links.check(secret)
    except AccessError as error:
        raise _no_link(error) from None


def _no_link(error: AccessError) -> PageError:
    return PageError(404, "This link does not work", f"{error.why or error.what}. Ask an admin for a new one.")


def signed_in(request: Request, desk: ReviewDesk, login: str, then: str) -> Response:
    """Begin a session of a user, in place of the one that the browser brought, and lead on."""
    secret = desk.access.sessions.begin(login, instead_of=request.cookies.get(desk.settings.cookie))
    response = go(request, then)
    response.set_cookie(
        desk.settings.cookie, secret, path="/", httponly=True, samesite="lax", secure=desk.settings.secure_cookie
    )
    return response


def login_page(
    request: Request, desk: ReviewDesk, *, then: str, login: str = "", error: str = "", status: int = 200
) -> Response:
    """Return the page to sign in on."""
    proxy, nobody = desk.settings.proxy_header is not None, not desk.access.users.exist()
    shown = {"then": then, "login": login, "error": error, "by_proxy": proxy, "nobody": nobody}
    return render(request, "login.html.j2", status=status, oidc=desk.oidc is not None, **shown)


def _welcome_page(
    request: Request, owner: str | None, *, login: str = "", name: str = "", error: str = "", status: int = 200
) -> Response:
    return render(request, "welcome.html.j2", status=status, owner=owner, login=login, name=name, error=error)
