"""List every command with its options, from the command line itself, at the end of docs/reference/cli.md.

python docs/reference/list_commands.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from guard.cli import app

PAGE = Path(__file__).with_name("cli.md")
HEADING = "## All commands and options\n"


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each command with its whole name, such as ``guard policy check``."""
    for each, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {each}")
        else:
            yield f"{name} {each}", command


def table(command: Any) -> str:
    options = [each for each in command.params if each.name != "help"]
    lines = [f"| {_written(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in options]
    return "\n".join(["| option | meaning | default |", "| --- | --- | --- |", *lines])


def _written(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).upper()}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, "") or value == () else f"`{str(value).lower() if value is True else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def section() -> str:
    parts = [HEADING.rstrip(), "Made from the command line (`python docs/reference/list_commands.py`)."]
    for name, command in commands(typer.main.get_command(app), "guard"):
        summary = _cell((command.help or "").split("\n\n")[0])
        parts += [f"### {name}", summary, table(command)]
    return "\n\n".join(parts) + "\n"


def page(text: str) -> str:
    """Return the page with its last section made from the command line as it is now."""
    return text.partition(HEADING)[0].rstrip() + "\n\n" + section()


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
