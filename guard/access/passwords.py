"""Passwords: stored as argon2id hashes; an unknown name takes as long as a wrong password."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

from guard.errors import InputError, missing_extra

if TYPE_CHECKING:
    from argon2 import PasswordHasher

#: Smallest and largest length of a password.
SHORTEST, LONGEST = 12, 1024

# Each hash needs 64 MiB: many concurrent logins must not exhaust the memory.
_FEW = threading.BoundedSemaphore(2)


def check_password(password: str, *, login: str = "") -> None:
    """Refuse a password that is too easy to guess.

    Raises:
        InputError: the password has fewer than 12 or more than 1,024 characters, or is the login name.

    Examples:
        >>> check_password("correct horse battery")
    """
    if len(password) < SHORTEST:
        raise InputError(f"{len(password)} characters. At least {SHORTEST} are needed; a few words are fine")
    if len(password) > LONGEST:
        raise InputError(f"{len(password)} characters. At most {LONGEST} are kept")
    if len(set(password)) < 4 or (login and password.casefold().replace(login.casefold(), "") == ""):
        raise InputError("This password is easy to guess", fix="Choose a few unrelated words")


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, with salt and parameters.

    Raises:
        InputError: as for `check_password`.
        MissingExtraError: argon2-cffi is not installed.
    """
    check_password(password)
    with _FEW:
        return _hasher().hash(_bytes(password))


def verify_password(password: str, stored: str | None) -> bool:
    """Return whether a password matches a hash. None (an unknown user) takes as long and returns False.

    Raises:
        MissingExtraError: argon2-cffi is not installed.
    """
    hasher = _hasher()  # first, for its error about a missing package
    from argon2.exceptions import InvalidHashError, VerificationError

    with _FEW:
        try:
            return hasher.verify(stored or _nobodys(), _bytes(password[: LONGEST + 1])) and stored is not None
        except (VerificationError, InvalidHashError):
            return False


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


@cache
def _hasher() -> PasswordHasher:
    try:
        from argon2 import PasswordHasher
    except ImportError:
        raise missing_extra("argon2-cffi", "console") from None
    return PasswordHasher()


@cache
def _nobodys() -> str:
    return _hasher().hash("the password of nobody")
