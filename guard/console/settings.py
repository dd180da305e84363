"""Settings of a console."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from guard.access.oidc import OidcSettings
from guard.audit.notes import SigningKey
from guard.errors import InputError

#: Host names of a server on loopback.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """Addresses and trust settings of a console.

    Attributes:
        secure_cookie: whether browsers reach it by HTTPS. The session's cookie is then ``__Host-guard``; browsers
            keep that name for HTTPS, so on plain HTTP, as on loopback, it is ``guard``.
        names: accepted host names; others are refused, which prevents DNS rebinding. Empty accepts any name.
        proxy_header: the header in which a proxy names the signed-in user; None if users sign in here.
        proxy_addresses: addresses of that proxy; the header is ignored from any other address.
        oidc: an OpenID Connect provider at which people may sign in; None without one.
        signing_key: signs the checkpoints of the audit log that its page makes; None leaves them unsigned.

    Raises:
        InputError: a proxy header without an address, an invalid address, or an invalid host name.
    """

    secure_cookie: bool = False
    names: frozenset[str] = frozenset()
    proxy_header: str | None = None
    proxy_addresses: frozenset[str] = frozenset()
    signing_key: SigningKey | None = None
    oidc: OidcSettings | None = None

    def __post_init__(self) -> None:
        if self.proxy_header is not None and not self.proxy_addresses:
            raise InputError(
                "A proxy header needs the address of the proxy",
                why="otherwise anybody could send the header",
                fix="Give --proxy-address",
            )
        object.__setattr__(self, "names", frozenset(map(_checked_name, self.names)))
        object.__setattr__(self, "proxy_addresses", frozenset(map(_checked_address, self.proxy_addresses)))

    @property
    def cookie(self) -> str:
        """The name of the session's cookie."""
        return "__Host-guard" if self.secure_cookie else "guard"

    @property
    def login_cookie(self) -> str:
        """The name of the cookie that a login has while it is at the provider."""
        return f"{self.cookie}-login"


def is_loopback(host: str) -> bool:
    """Return whether a server that listens there can be reached from the same machine only.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked_name(name: str) -> str:
    """Return a host name in lower case; an invalid one would match nothing, so it is refused."""
    host = name.strip().lower()
    if not re.fullmatch(r"[^\s/@:\[\]]+|\[[0-9a-f:.]+\]", host):
        raise InputError(
            f"'{name[:60]}' is not a host name", fix="Write --name guard.example.org, without scheme and port"
        )
    return host


def _checked_address(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise InputError(f"'{address[:60]}' is not an IP address", fix="Write --proxy-address 10.0.0.2") from None
