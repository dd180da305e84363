"""Access control: users, API keys, sessions, one-time links and permissions.

`Access` stores them in the database of the review store. `may` is the only function that grants a permission.
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
