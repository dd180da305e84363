"""The JSON that docs/reference/cli.md shows for a command, and its comparison with what the command prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CLI = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"

#: Stands for ``{...}``: an object like the one before it, which may be missing.
LIKEWISE: Any = {"...": None}

#: Keys by name, each with the keys of the object (or of the objects in the list) that it holds, if the page shows them.
JsonKeys = dict[str, Any]


def documented(heading: str, block: int = 0) -> JsonKeys:
    """The keys in one of the text blocks of a section."""
    section = CLI.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^```text\n(.*?)^```", section, re.M | re.S)[block]
    tokens = re.findall(r'"[^"]*"|\{\.\.\.\}|[{}\[\],:]|[^\s{}\[\],:"]+', found)
    keys, rest = _object(tokens[1:])
    assert not rest, rest
    return keys


def _object(tokens: list[str]) -> tuple[JsonKeys, list[str]]:
    """Read keys up to the closing brace; return them and what follows it."""
    keys: JsonKeys = {}
    while tokens[0] != "}":
        name, tokens = tokens[0].strip('"'), tokens[1:]
        keys[name] = None
        while tokens[0] not in (",", "}"):
            token, tokens = tokens[0], tokens[1:]
            if token == "{...}":
                keys[name] = LIKEWISE
            elif token == "{":
                keys[name], tokens = _object(tokens)
            elif token == "[" and tokens[0] != "{":
                tokens = tokens[tokens.index("]") + 1 :]
        tokens = tokens[1:] if tokens[0] == "," else tokens
    return keys, tokens[1:]


def differences(printed: Any, keys: JsonKeys | None, at: str = "") -> list[str]:
    """What is printed and not documented, or documented and not printed; a list is judged by its first object."""
    if keys in (None, LIKEWISE) or printed is None or printed == []:
        return []
    if isinstance(printed, list):
        return differences(printed[0], keys, f"{at}[0]")
    found = [f"{at}.{name} is not documented" for name in printed if name not in keys]
    found += [f"{at}.{name} is not printed" for name in keys if name not in printed and keys[name] != LIKEWISE]
    for name in printed.keys() & keys.keys():
        found += differences(printed[name], keys[name], f"{at}.{name}")
    return found
