"""Checks of the file that a long procedure writes at its end."""

from __future__ import annotations

from pathlib import Path

from guard.errors import InputError
from guard.hidden_characters import is_blank


def check_writable(out: Path, what: str) -> None:
    """Check that a file can be written, before hours of work.

    Raises:
        InputError: the path is a folder, its folder does not exist, or its name is blank.
    """
    if has_blank_name(out):
        raise InputError(f"Cannot write the {what} to {str(out)!r}", why="the name is blank", fix="Name a file")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"Cannot write the {what} to '{out}'", fix="Give a file in a folder that exists")


def has_blank_name(path: str | Path) -> bool:
    """Return whether a path ends with a name that nobody can see in a folder; such a file is a mistake.

    Examples:
        >>> has_blank_name(" "), has_blank_name("folder/ "), has_blank_name("a file")
        (True, True, False)
    """
    return is_blank(Path(path).name or str(path))


def choose_journal(out: Path, journal: str | Path | None) -> Path:
    """Return the journal of a procedure: the given file, or ``OUT.journal`` beside its output."""
    return out.with_name(f"{out.name}.journal") if journal is None else Path(journal)
