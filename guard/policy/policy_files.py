"""Where policies are: the built-in ones by name, and files."""

from __future__ import annotations

from pathlib import Path

from guard.errors import PolicyError, did_you_mean


def builtin_policies() -> dict[str, Path]:
    """Return the files of the built-in policies by name.

    Examples:
        >>> sorted(builtin_policies())[:2]
        ['balanced', 'certified']
    """
    package = Path(__file__).parent
    # The wheel has the folder inside the package, a source checkout at its top.
    for folder in (package / "builtin", package.parents[1] / "policies"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise PolicyError("The built-in policies are missing", why=f"no {folder}", fix="Install guard again")


def find_policy(source: str | Path) -> Path:
    """Return the file of a policy that is named or given by its path.

    Raises:
        PolicyError: there is no such built-in policy or file.
    """
    builtin = builtin_policies()
    if isinstance(source, str) and source in builtin:
        return builtin[source]
    path = Path(source)
    if not source or (path.parent == Path() and not path.suffix and not path.exists()):
        what = f"There is no policy '{source}', built in or in a file of that name"
        raise PolicyError(what, fix=did_you_mean(str(source), builtin))
    return path
