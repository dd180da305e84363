"""Weight files on disk: whether they are there, and the SHA-256 that a scorer is bound to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from guard.errors import ModelFileError, did_you_mean
from guard.files.private_files import create_private_folder
from guard.files.write_whole import write_whole

#: How many pieces of a file are compared before its hash is taken from the cache, and the bytes of each.
_SAMPLES, _SAMPLE_BYTES = 64, 2**14


def weight_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a regular file.

    Raises:
        ModelFileError: there is none; the text names the nearest file of the folder.
    """
    file = Path(path).expanduser()
    try:
        if file.is_file():
            return file
        if file.is_dir():
            raise ModelFileError(f"{file} is a folder", fix="Give the path of the .gguf file in it")
        if file.exists():
            raise ModelFileError(f"{file} is not a regular file", fix="Give the path of a .gguf file")
        near = [other.name for other in file.parent.glob("*.gguf")] if file.parent.is_dir() else []
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise unreadable(file, error) from error
    why = "" if file.parent.is_dir() else f"the folder {file.parent} does not exist"
    raise ModelFileError(f"There is no file {file}", why=why, fix=did_you_mean(file.name, near))


def unreadable(file: Path, error: Exception) -> ModelFileError:
    """Return the error for a file that the system does not let us read."""
    why = getattr(error, "strerror", None) or str(error)
    return ModelFileError(f"Cannot read {str(file)!r}", why=why, fix="Check the path and its permissions")


def weights_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a weight file, in hex.

    The hash is kept in the user's cache folder, for as long as the file stays the same: its place, size,
    device and inode, the times of its content and of its inode, and `_SAMPLES` pieces of its content.
    Size, mtime and inode alone are what anybody can restore after changing the file; the inode's time is
    set by the kernel. The pieces are for file systems that do not keep that time, and cost milliseconds
    where hashing gigabytes costs seconds at every start. A cache that cannot be read or written is no error.

    Raises:
        ModelFileError: the file cannot be read.
    """
    file = weight_file(path)
    try:
        identity = _identity(file)
        cached = _cache_file(identity)
        known = _read_cache(cached, identity)
        if known is not None:
            return known
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        unchanged = _identity(file) == identity
    except OSError as error:
        raise unreadable(file, error) from error
    if unchanged:
        _write_cache(cached, {**identity, "sha256": digest})
    return digest


def _identity(file: Path) -> dict[str, str | int]:
    found = file.stat()
    return {
        "path": str(file.resolve()),
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "device": found.st_dev,
        "inode": found.st_ino,
        "samples": _samples_sha256(file, found.st_size),
    }


def _samples_sha256(file: Path, size: int) -> str:
    """SHA-256 of pieces that are spread evenly over the file, its beginning and end among them."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for number in range(_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _cache_file(identity: Mapping[str, str | int]) -> Path:
    from platformdirs import user_cache_dir

    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return Path(user_cache_dir("guard")) / "weights" / f"{name}.json"


def _read_cache(cached: Path, identity: Mapping[str, str | int]) -> str | None:
    try:
        entry = json.loads(cached.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in identity.items()):
        return None
    digest = entry.get("sha256")
    is_hash = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return digest if is_hash else None


def _write_cache(cached: Path, entry: Mapping[str, str | int]) -> None:
    with contextlib.suppress(OSError):  # without a cache the file is hashed again
        create_private_folder(cached.parent)
        write_whole(cached, json.dumps(entry), private=True)
