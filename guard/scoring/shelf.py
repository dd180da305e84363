"""The shelf of scorers: those that come with guard, and those in a folder of the user's, each by its name."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

from guard.errors import InputError

#: Environment variable that names another folder.
ENVIRONMENT = "GUARD_SCORERS"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def shelf_folder() -> Path:
    """Return the user's folder of scorers: ``$GUARD_SCORERS``, or else ``scorers`` in guard's data folder."""
    import platformdirs

    return Path(os.environ.get(ENVIRONMENT) or platformdirs.user_data_path("guard") / "scorers").expanduser()


def shipped_folder() -> Path:
    """Return the folder of the scorers that come with guard.

    Examples:
        >>> sorted(each.name for each in shipped_folder().glob("*.json"))
        ['smollm2-135m-instruct-q4_1.json']
    """
    return Path(str(files("guard") / "scoring" / "shipped"))


def shelved() -> dict[str, Path]:
    """Return the files of the scorers on the shelf by name; a user's one cannot replace one that comes with guard.

    Examples:
        >>> shelved()["smollm2-135m-instruct-q4_1"].name
        'smollm2-135m-instruct-q4_1.json'
    """
    folders = (shipped_folder(), shelf_folder())
    found = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    return {path.stem: path for path in reversed(found)}


def scorer_path(named: str | Path) -> Path:
    """Return the file that a path or a name on the shelf stands for; a file that exists goes before a name.

    Examples:
        >>> scorer_path("smollm2-135m-instruct-q4_1").name
        'smollm2-135m-instruct-q4_1.json'
        >>> scorer_path("no-such-scorer").name
        'no-such-scorer'
    """
    path = Path(named)
    if not isinstance(named, str) or not _NAME.fullmatch(named) or path.exists():
        return path
    return shelved().get(named, path)


def place_for(name: str) -> Path:
    """Return where a scorer of this name stands on the user's shelf.

    Raises:
        InputError: the name is none, or belongs to a scorer that comes with guard.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is no name for a scorer", fix="Use letters, digits, dots, dashes and underscores")
    if (shipped_folder() / f"{name}.json").exists():
        raise InputError(f"'{name}' comes with guard", fix="Give another name with --name")
    return shelf_folder() / f"{name}.json"
