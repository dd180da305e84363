"""Grants permissions by roles and routes; pure.

A principal has exactly the permissions of its roles. The role admin includes no decisions on cases: whoever assigns
roles needs a second role or account to judge answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from guard.access.records import Permission, Principal, Role

#: Instead of a route: any route, as for a page that shows only the permitted routes.
ANYWHERE: Final = "*"

_SEES = frozenset({Permission.SEE_CASES, Permission.SEE_INSIGHTS})

#: Permissions of each role.
PERMISSIONS: Final[dict[Role, frozenset[Permission]]] = {
    Role.CALLER: frozenset({Permission.ASK}),
    Role.VIEWER: _SEES,
    Role.REVIEWER: _SEES | {Permission.DECIDE},
    Role.LEAD: _SEES | {Permission.DECIDE, Permission.REASSIGN, Permission.TRY_POLICIES, Permission.READ_TRAIL},
    Role.AUDITOR: _SEES | {Permission.READ_TRAIL, Permission.READ_LOG},
    Role.ADMIN: frozenset({Permission.ADMINISTER}),
}


@dataclass(frozen=True, slots=True)
class Allowed:
    """The permission is granted.

    Attributes:
        role: the role that grants it.
    """

    role: Role

    def __bool__(self) -> Literal[True]:
        return True


@dataclass(frozen=True, slots=True)
class Refused:
    """The permission is refused.

    Attributes:
        why: one sentence for people.
    """

    why: str

    def __bool__(self) -> Literal[False]:
        return False


def may(principal: Principal, permission: Permission, route: str | None) -> Allowed | Refused:
    """Return whether a principal has a permission on a route.

    Args:
        principal: the principal.
        permission: the permission.
        route: the route; None for a call or case without a route, which needs a role for all routes;
            `ANYWHERE` for an action that belongs to no single route.

    Examples:
        >>> from guard.access import Grant
        >>> mira = Principal("mira", "Mira Patel", "user", (Grant(Role.REVIEWER, "medical"),))
        >>> bool(may(mira, Permission.DECIDE, "medical"))
        True
        >>> may(mira, Permission.DECIDE, "law").why
        'Mira Patel may not decide cases on the route law: reviewer:medical'
    """
    for grant in principal.grants:
        if permission in PERMISSIONS[grant.role] and (route == ANYWHERE or grant.route in (None, route)):
            return Allowed(grant.role)
    where = "" if route == ANYWHERE else " without a route" if route is None else f" on the route {route}"
    has = ", ".join(map(str, principal.grants)) or "no role"
    return Refused(f"{principal.name} may not {permission.value}{where}: {has}")


def reachable_routes(principal: Principal, permission: Permission) -> frozenset[str] | None:
    """Return the routes on which somebody may do something; None for all, with calls that have no route.

    Examples:
        >>> from guard.access import Grant
        >>> mira = Principal("mira", "Mira", "user", (Grant(Role.REVIEWER, "medical"), Grant(Role.VIEWER)))
        >>> sorted(reachable_routes(mira, Permission.DECIDE))
        ['medical']
        >>> reachable_routes(mira, Permission.SEE_CASES) is None
        True
    """
    routes = {grant.route for grant in principal.grants if permission in PERMISSIONS[grant.role]}
    return None if None in routes else frozenset(route for route in routes if route is not None)
