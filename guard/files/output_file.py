"""Checks of the file that a long procedure writes at its end."""

from __future__ import annotations

from pathlib import Path

from guard.errors import InputError


def check_writable(out: Path, what: str) -> None:
    """Check that a file can be written, before hours of work.

    Raises:
        InputError: the path is a folder, or its folder does not exist.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"Cannot write the {what} to '{out}'", fix="Give a file in a folder that exists")


def choose_journal(out: Path, journal: str | Path | None) -> Path:
    """Return the journal of a procedure: the given file, or ``OUT.journal`` beside its output."""
    return out.with_name(f"{out.name}.journal") if journal is None else Path(journal)
