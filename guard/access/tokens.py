"""Secrets that guard makes itself: API keys, session cookies, one-time links. At rest only their SHA-256 is kept.

A plain hash is enough for them, since none can be guessed: each has at least 160 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: Letters of keys; none that can be taken for another.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

#: How an API key begins, so that scanners for leaked secrets can know one.
KEY_MARK = "grd_"

_PREFIX, _REST = 8, 32


def make_key() -> tuple[str, str]:
    """Return a new API key: its public beginning, and the whole secret (``grd_PREFIX_REST``)."""
    prefix = KEY_MARK + _letters(_PREFIX)
    return prefix, f"{prefix}_{_letters(_REST)}"


def make_token() -> str:
    """Return a new secret of 256 bits for a cookie or a link, in letters that a URL can hold."""
    return secrets.token_urlsafe(32)


def key_prefix(secret: str) -> str:
    """Return the public beginning of what may be an API key; nobody's where it is none.

    Examples:
        >>> key_prefix("grd_abcd2345_" + 32 * "x")
        'grd_abcd2345'
    """
    begins = secret[: len(KEY_MARK) + _PREFIX]
    return begins if begins.isascii() and begins.isprintable() else ""


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def same(secret: str, kept: str | None) -> bool:
    """Compare a secret with what is kept of one, in a time that tells nothing of either. None is never the same."""
    return hmac.compare_digest(digest(secret), kept or digest(secrets.token_hex())) and kept is not None


def _letters(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))
