"""Secrets of endpoints at rest: encrypted (Fernet) with a key that is not in the database.

The key is the environment variable ``GUARD_SECRETS_KEY``, or a file in the user's data folder that only the user can
read, made when it is first needed. Several keys, separated by commas, decrypt; the first one encrypts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from guard.errors import StoreError, missing_extra
from guard.files.private_files import create_private, create_private_folder

#: Environment variable with the key.
ENVIRONMENT = "GUARD_SECRETS_KEY"


def seal(values: Mapping[str, Any]) -> str:
    """Encrypt values.

    Raises:
        StoreError: the key cannot be read or made.
        MissingExtraError: cryptography is not installed.
    """
    return str(_fernet().encrypt(json.dumps(values).encode()).decode())


def unseal(sealed: str) -> dict[str, Any]:
    """Decrypt values.

    Raises:
        StoreError: the key is wrong, or the text was changed.
        MissingExtraError: cryptography is not installed.
    """
    from cryptography.fernet import InvalidToken

    try:
        values: dict[str, Any] = json.loads(_fernet().decrypt(sealed.encode()))
    except InvalidToken:
        raise StoreError(
            "The secrets of an endpoint cannot be read",
            why="they were encrypted with another key",
            fix=f"Give that key in {ENVIRONMENT}, or add the endpoint again",
        ) from None
    return values


def _fernet() -> Any:
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError:
        raise missing_extra("cryptography", "webhooks") from None
    try:
        return MultiFernet([Fernet(key.strip()) for key in (os.environ.get(ENVIRONMENT) or _kept_key()).split(",")])
    except ValueError as error:
        fix = "Make one: python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
        raise StoreError("The key for secrets is not valid", why=str(error), fix=fix) from error


def _kept_key() -> str:
    """Return the key in the user's data folder; the first process that needs one makes it."""
    from cryptography.fernet import Fernet

    path = platformdirs.user_data_path("guard") / "secrets.key"
    try:
        create_private_folder(path.parent)
        if not path.exists():
            _write_once(path, Fernet.generate_key().decode())
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise StoreError(f"The key '{path}' cannot be used", why=str(error), fix=f"Set {ENVIRONMENT}") from error


def _write_once(path: Path, key: str) -> None:
    """Write a key unless another process has; linking the file is atomic."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    create_private(part)
    part.write_text(key, encoding="ascii")
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()
