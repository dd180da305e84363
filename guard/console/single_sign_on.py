"""Sign-in at an OpenID Connect provider: the redirect to it, and the way back."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.access.oidc import LOGIN_S, OidcClient, PendingLogin
from guard.console.desk import PageError, ReviewDesk, TheDesk, visitor_address
from guard.console.entry import login_page, own_path, signed_in
from guard.errors import AccessError, InputError

router = APIRouter()


@router.get("/login/oidc")
def leave(request: Request, desk: TheDesk, then: str = "") -> Response:
    """Redirect a visitor to the provider; a cookie keeps the login in progress."""
    client, pending = _client(desk), PendingLogin.new(own_path(then))
    try:
        url = client.begin(pending, _come_back(request, desk))
    except AccessError as error:
        return login_page(request, desk, then=pending.then, error=str(error), status=503)
    response = Response(status_code=303, headers={"location": url})
    response.set_cookie(
        desk.settings.login_cookie, pending.to_cookie(), max_age=LOGIN_S, path="/", httponly=True, samesite="lax",
        secure=desk.settings.secure_cookie,
    )  # fmt: skip
    return response


@router.get("/login/oidc/callback")
def come_back(request: Request, desk: TheDesk) -> Response:
    """Begin the session of whoever the provider has signed in; their account and roles are as it says."""
    client = _client(desk)
    pending = PendingLogin.from_cookie(request.cookies.get(desk.settings.login_cookie, ""))
    response = _answered(request, desk, client, pending)
    # Whatever came back, the same answer does not count a second time.
    response.delete_cookie(desk.settings.login_cookie, path="/", secure=desk.settings.secure_cookie, httponly=True)
    return response


def _answered(request: Request, desk: ReviewDesk, client: OidcClient, pending: PendingLogin | None) -> Response:
    then = own_path(pending.then) if pending is not None else "/queue"
    if not desk.logins.allows(visitor_address(request, desk)):
        return login_page(request, desk, then=then, error="Too many tries from this address.", status=429)
    try:
        if pending is None:
            raise AccessError("This sign-in was not begun here", why="its time is over, or the cookie is gone")
        user = desk.access.users.admit(client.finish(pending, request.query_params, _come_back(request, desk)))
    except (AccessError, InputError) as error:
        return login_page(request, desk, then=then, error=str(error), status=401)
    return signed_in(request, desk, user.id, then)


def _client(desk: ReviewDesk) -> OidcClient:
    if desk.oidc is None:
        raise PageError(404, "There is no such page", "No OpenID Connect provider is configured.")
    return desk.oidc


def _come_back(request: Request, desk: ReviewDesk) -> str:
    """Return the address that the provider sends people back to; the host's name is one of the console's own."""
    scheme = "https" if desk.settings.secure_cookie else "http"
    return f"{scheme}://{request.headers.get('host', '')}{request.scope.get('root_path', '')}/login/oidc/callback"
