"""Atomic writing: a file is written beside its path, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guard.files.output_file import has_blank_name


def write_whole(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file atomically: at any time, even after a power cut, its path has either the old or the whole new
    content.

    Args:
        path: path of the file, in an existing folder.
        content: text is written as UTF-8.
        private: only the owner may read and write the file (mode 0600); otherwise the umask decides.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    with replacing(path, private=private) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a new, empty file beside the path, which replaces it at the end, or is removed on an error.

    For writers that need a path; see `write_whole`. A private file is private even if the file that it replaces was
    not.
    """
    if has_blank_name(path):
        raise OSError(errno.EINVAL, "the name is blank", str(path))
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        yield part
        _flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems cannot flush a folder; the file itself is complete
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
