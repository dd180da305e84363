"""Generated secrets: API keys, session cookies, one-time links. Only their SHA-256 hashes are stored.

A plain hash is sufficient, since each secret has at least 160 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: Alphabet of keys, without ambiguous letters.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

#: Start of every API key, so that secret scanners recognise one.
KEY_MARK = "grd_"

_PREFIX, _REST = 8, 32


def make_key() -> tuple[str, str]:
    """Return the public prefix and the secret of a new API key (``grd_PREFIX_REST``)."""
    prefix = KEY_MARK + _letters(_PREFIX)
    return prefix, f"{prefix}_{_letters(_REST)}"


def make_token() -> str:
    """Return a new URL-safe secret of 256 bits for a cookie or a link."""
    return secrets.token_urlsafe(32)


def key_prefix(secret: str) -> str:
    """Return the public prefix of a possible API key; a prefix of no key if it is not one.

    Examples:
        >>> key_prefix("grd_abcd2345_" + 32 * "x")
        'grd_abcd2345'
    """
    begins = secret[: len(KEY_MARK) + _PREFIX]
    return begins if begins.isascii() and begins.isprintable() else ""


def digest(secret: str) -> str:
    """Return the hash of a secret that is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def same(secret: str, kept: str | None) -> bool:
    """Compare a secret with a stored hash in constant time; None never matches."""
    return hmac.compare_digest(digest(secret), kept or digest(secrets.token_hex())) and kept is not None


def _letters(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))
