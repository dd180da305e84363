"""Where a served model is, and the key to it. A key is read from the environment or a file, and shown nowhere."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import SecretStr

from guard.errors import InputError

#: Environment variable that the key is read from, unless another is named.
KEY_VARIABLE = "GUARD_OPENAI_API_KEY"

_WANTED = "Give it as http://HOST:PORT/v1#NAME, or as the model's name with base_url (--base-url)"


@dataclass(frozen=True, slots=True)
class Address:
    """A server's base URL, and the name of a model there.

    Attributes:
        base_url: such as ``http://127.0.0.1:8000/v1``, without a slash at its end.
        model: the served name; None for the only one.
    """

    base_url: str
    model: str | None

    @classmethod
    def parse(cls, model: str, base_url: str | None) -> Self:
        """Read an address: ``URL#NAME``, or a name beside a base URL.

        Raises:
            InputError: no URL of HTTP, or one with a password, which would be shown in errors.
        """
        written = model if base_url is None else base_url
        parts = _split(written)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("The address of a served model is no URL", fix=_WANTED)
        if "@" in parts.netloc or parts.query:
            raise InputError(
                "The address of a served model has a user name, a password or a query",
                why="it would be shown in errors",
                fix=f"Put the key into {KEY_VARIABLE}, or name its file in api_key_file",
            )
        name = unquote(parts.fragment) if base_url is None else model
        if base_url is not None and parts.fragment:
            raise InputError("base_url names a model, and so does the model", fix=_WANTED)
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/"), name or None)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that no proxy leads there."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def is_in_the_clear(self) -> bool:
        """Whether others on the network can read what is sent there."""
        return self.base_url.startswith("http://") and not self.is_loopback


def _split(written: str) -> SplitResult:
    try:
        parts = urlsplit(written)
        _ = parts.port
    except ValueError as error:
        raise InputError("The address of a served model is no URL", fix=_WANTED) from error
    return parts


def read_key(variable: str | None, file: str | Path | None) -> SecretStr | None:
    """Return the key from a file or from the environment; None where neither is named and the variable is not set.

    Raises:
        InputError: both are named, the named one is not there, or it holds no key of one line.
    """
    if variable and file:
        raise InputError("api_key_env and api_key_file are both given", fix="Give one of them")
    if file is not None:
        try:
            written = Path(file).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise InputError(f"The key cannot be read from '{file}'", why=type(error).__name__) from None
    else:
        written = os.environ.get(variable or KEY_VARIABLE, "")
    key = written.strip()
    if not key and (file is not None or variable is not None):
        raise InputError(f"There is no key in {file or f'the environment variable {variable}'}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("The key is not one line of printable characters")
    return SecretStr(key) if key else None
