"""Files that only their owner can read: those with prompts, answers or labels."""

from __future__ import annotations

from pathlib import Path


def create_private(path: Path) -> None:
    """Create an empty file that only its owner may read and write; an existing file keeps its permissions.

    SQLite gives its side files (``-wal``, ``-shm``) the permissions of the database.
    """
    path.touch(mode=0o600, exist_ok=True)


def create_private_folder(path: Path) -> None:
    """Create a folder that only its owner may enter, and its missing parents."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
