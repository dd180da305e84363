"""Users, keys and sessions as frozen records without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from guard.checked import whole_number
from guard.errors import InputError, did_you_mean


class Role(StrEnum):
    """A role; `guard.access.authorisation` defines its permissions.

    ``caller`` is for API keys that ask the model. The other roles work on cases and settings.
    """

    CALLER = "caller"
    VIEWER = "viewer"
    REVIEWER = "reviewer"
    LEAD = "lead"
    AUDITOR = "auditor"
    ADMIN = "admin"


class Permission(StrEnum):
    """A kind of action."""

    ASK = "ask"
    SEE_CASES = "see cases"
    DECIDE = "decide cases"
    REASSIGN = "reassign and adjudicate cases"
    SEE_INSIGHTS = "see insights"
    TRY_POLICIES = "try policies on recorded calls"
    READ_TRAIL = "read the history of every case"
    READ_LOG = "read and verify the audit log"
    ADMINISTER = "administer accounts and webhooks"


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, on one route or on all.

    Attributes:
        role: the role.
        route: the route of the policy; None for all routes, including calls without one.

    Raises:
        InputError: ``admin`` with a route: users and keys belong to no route.
    """

    role: Role
    route: str | None = None

    def __post_init__(self) -> None:
        if self.role is Role.ADMIN and self.route is not None:
            raise InputError("The role admin cannot be limited to a route", fix="Write admin")

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Read ``ROLE`` or ``ROLE:ROUTE``.

        Raises:
            InputError: the role is unknown, or the route is empty.

        Examples:
            >>> Grant.parse("reviewer:medical")
            Grant(role=<Role.REVIEWER: 'reviewer'>, route='medical')
        """
        role, colon, route = text.strip().partition(":")
        if role not in list(Role):
            raise InputError(f"There is no role '{role}'", fix=did_you_mean(role, Role))
        if colon and not route.strip():
            raise InputError(f"'{text}' names no route", fix=f"Write {role}, or {role}:ROUTE")
        return cls(Role(role), route.strip() or None)

    def __str__(self) -> str:
        return self.role.value if self.route is None else f"{self.role.value}:{self.route}"


def parse_grants(texts: Iterable[str]) -> tuple[Grant, ...]:
    """Read grants such as ``lead`` and ``reviewer:medical``, each once, in a fixed order.

    Raises:
        InputError: a grant is invalid, or there is none.

    Examples:
        >>> [str(grant) for grant in parse_grants(["reviewer:law", "lead", "lead"])]
        ['lead', 'reviewer:law']
    """
    grants = {str(grant): grant for grant in map(Grant.parse, texts)}
    if not grants:
        raise InputError("At least one role is needed", fix=f"Known: {', '.join(Role)}")
    return tuple(grants[text] for text in sorted(grants))


@dataclass(frozen=True, slots=True)
class Principal:
    """The subject of `guard.access.authorisation.may`.

    Attributes:
        id: name of the user or key in the audit trail.
        name: display name.
        kind: ``user``, ``key``, or ``local`` for the user of a console without accounts.
        grants: roles, each with its route.
    """

    id: str
    name: str
    kind: Literal["user", "key", "local"]
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account.

    Attributes:
        id: the login name, in lower case.
        name: the name that others see.
        grants: roles, each with its route.
        has_password: whether a password is set; without one, the user needs a link or a proxy to sign in.
        created_at, seen_at, disabled_at: ISO 8601, UTC; None for never.
    """

    id: str
    name: str
    grants: tuple[Grant, ...]
    has_password: bool
    created_at: str
    seen_at: str | None
    disabled_at: str | None

    @property
    def principal(self) -> Principal:
        """The user as a principal."""
        return Principal(self.id, self.name, "user", self.grants)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of an API key; None is no limit.

    Attributes:
        requests_per_minute: number of requests.
        tokens_per_minute: number of prompt and completion tokens.
        tokens_per_month: quota of prompt and completion tokens in a calendar month (UTC).

    Raises:
        InputError: a limit is not a whole number above 0.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_month: int | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if (value := getattr(self, name)) is not None:
                whole_number(name, value, least=1)

    @property
    def of_a_minute(self) -> dict[Literal["requests", "tokens"], int]:
        """The limits of a minute that there are.

        Examples:
            >>> KeyLimits(requests_per_minute=60).of_a_minute
            {'requests': 60}
        """
        given: dict[Literal["requests", "tokens"], int | None] = {
            "requests": self.requests_per_minute,
            "tokens": self.tokens_per_minute,
        }
        return {what: limit for what, limit in given.items() if limit is not None}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The API key of a program. The secret is shown once, when the key is made.

    Attributes:
        prefix: public prefix of the secret, which identifies the key.
        name: display name, unique among keys that are not revoked.
        grants: roles, each with its route.
        limits: limits of the key.
        used_tokens: tokens in the current calendar month (UTC).
        created_at, seen_at, ends_at, revoked_at: ISO 8601, UTC; None for never.
    """

    prefix: str
    name: str
    grants: tuple[Grant, ...]
    limits: KeyLimits
    used_tokens: int
    created_at: str
    seen_at: str | None
    ends_at: str | None
    revoked_at: str | None

    @property
    def principal(self) -> Principal:
        """The key as a principal."""
        return Principal(self.prefix, self.name, "key", self.grants)


@dataclass(frozen=True, slots=True)
class Session:
    """The session of a signed-in user, without the cookie's secret.

    Attributes:
        user: the user, with the current roles.
        created_at, ends_at: ISO 8601, UTC.
    """

    user: User
    created_at: str
    ends_at: str
