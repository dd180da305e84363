"""Finds policies: built-in ones by name, others as files."""

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
    # The folder is inside the package in the wheel, and at the top level in a source checkout.
    for folder in (package / "builtin", package.parents[1] / "policies"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise PolicyError("The built-in policies are missing", why=f"no {folder}", fix="Install guard again")


def find_policy(source: str | Path) -> Path:
    """Return the file of a policy, given by its name or path.

    Raises:
        PolicyError: there is no such built-in policy or file.
    """
    builtin = builtin_policies()
    if isinstance(source, str) and source in builtin:
        return builtin[source]
    path = Path(source)
    if not source or (path.parent == Path() and not path.suffix and not path.exists()):
        what = f"There is no policy '{source}': no built-in policy and no file has that name"
        raise PolicyError(what, fix=did_you_mean(str(source), builtin))
    return path
