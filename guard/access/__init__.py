"""Who may do what: users, API keys, sessions, one-time links, and the module that decides.

`Access` keeps them beside the reviews, in the same database. `may` is the only place where a permission is granted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.access.authorisation import (
        ANYWHERE,
        Allowed,
        Refused,
        may,
        reachable_routes,
    )
    from guard.access.records import (
        ApiKey,
        Grant,
        KeyLimits,
        Permission,
        Principal,
        Role,
        Session,
        User,
    )
    from guard.access.store import Access

__all__ = [
    "ANYWHERE",
    "Access",
    "Allowed",
    "ApiKey",
    "Grant",
    "KeyLimits",
    "Permission",
    "Principal",
    "Refused",
    "Role",
    "Session",
    "User",
    "may",
    "reachable_routes",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "authorisation": (
            "ANYWHERE",
            "Allowed",
            "Refused",
            "may",
            "reachable_routes",
        ),
        "records": (
            "ApiKey",
            "Grant",
            "KeyLimits",
            "Permission",
            "Principal",
            "Role",
            "Session",
            "User",
        ),
        "store": ("Access",),
    },
)
