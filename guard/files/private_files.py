"""Files for their owner's eyes only: whatever holds prompts, answers or labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def create_private(path: Path) -> None:
    """Create an empty file that only its owner may read and write; one that is there keeps its rights.

    SQLite gives its side files (``-wal``, ``-shm``) the rights of the database.
    """
    path.touch(mode=0o600, exist_ok=True)


def create_private_folder(path: Path) -> None:
    """Create a folder that only its owner may enter, and what is missing above it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def replacing_privately(path: Path) -> Iterator[Path]:
    """Give a new private file beside the path, which takes its place at the end, or is removed on an error.

    The path has the old content or the whole new one at any time, and the new one is private
    even where the old one was not.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
