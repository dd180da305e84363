"""Callers: API keys, or anyone who reaches a server without keys, which listens on loopback only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from guard.access import Grant, KeyLimits, Permission, Principal, Role, may
from guard.serve.request_errors import RequestError

if TYPE_CHECKING:
    from guard.access import Access


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request.

    Attributes:
        id: id of the key; decisions, reviews and cached prompts belong to it.
        name: name of the key.
        principal: for `guard.access.may`.
        limits: limits of the key.
        used_tokens: tokens of this month, before the request.
    """

    id: str
    principal: Principal
    name: str = "local"
    limits: KeyLimits = field(default_factory=KeyLimits)
    used_tokens: int = 0

    def check_may_ask(self, route: str | None) -> None:
        """Refuse a route for which the key has no role.

        Raises:
            RequestError: with status 403.
        """
        allowed = may(self.principal, Permission.ASK, route)
        if not allowed:
            where = "without a route" if route is None else f"on the route '{route}'"
            raise RequestError(
                f"This API key may not ask {where}", status=403, kind="permission_error", code="route_not_allowed"
            )


#: The caller at a server without keys.
LOCAL: Final = Caller("local", Principal("local", "local", "local", (Grant(Role.CALLER, None),)))


async def find_caller(request: Request, access: Access | None) -> Caller:
    """Return the caller of a request.

    Args:
        request: a request with one ``Authorization: Bearer`` header.
        access: the keys; None if the server has none, so that everybody may ask.

    Raises:
        RequestError: with status 401, if there is no key, an invalid one, or several.
    """
    if access is None:
        return LOCAL
    given = request.headers.getlist("authorization")
    scheme, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    key = None
    if scheme.lower() == "bearer" and secret.strip():
        key = await asyncio.to_thread(access.keys.find, secret.strip())
    if key is None:
        raise RequestError(
            "There is no valid API key" if given else "The request has no API key",
            fix="Send it as the header Authorization: Bearer KEY",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return Caller(key.prefix, key.principal, key.name, key.limits, key.used_tokens)
