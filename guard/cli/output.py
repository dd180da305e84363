"""How commands print: tables for people, JSON for programs, one sentence for errors."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from guard.cli.terminal import json_visible, one_line, shown, visible
from guard.errors import GuardError, InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Options shared by several commands.
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="GGUF file, model folder, smollm2 (the embedded model), or URL#NAME of a served model."
    ),
]
ScorerOption = Annotated[
    str | None, typer.Option("--scorer", "-s", help="Scorer file, or its name on the shelf; not needed for smollm2.")
]
PolicyOption = Annotated[str, typer.Option("--policy", "-p", help="Policy file or built-in name.")]
CertificateOption = Annotated[
    str | None,
    typer.Option("--certificate", help="Certificate file; by default the one named in the policy."),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        metavar="KEY=VALUE",
        help="Variable of the model's chat template, such as enable_thinking=false; repeatable.",
    ),
]
FallbackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback",
        metavar="NAME=MODULE:FUNCTION",
        help="Function that answers when the policy falls back to NAME; repeatable.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force-scorer", help="Use a scorer of another model; scores are marked as uncalibrated.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="SQLite file or database URL; by default $GUARD_STORE, else reviews.db in your data folder.",
    ),
]
AuditLogOption = Annotated[
    bool, typer.Option("--audit-log", help="Write every decision to the store's audit log before acting on it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def template_options(given: list[str] | None) -> dict[str, Any] | None:
    """Return the given template options, or None. Values are JSON, or else texts.

    Raises:
        InputError: an option is not KEY=VALUE, or a key is repeated.
    """
    options: dict[str, Any] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise InputError(f"--template-option {each!r} is not KEY=VALUE", fix="Write enable_thinking=false")
        if name in options:
            raise InputError(f"--template-option {name} is given twice")
        options[name] = _json_or_text(value)
    return options if given else None


def _json_or_text(value: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false"}.get(value, value), parse_constant=_refused)
    except (ValueError, RecursionError):
        return value


def _refused(constant: str) -> NoReturn:
    raise ValueError(constant)


def user_functions(option: str, given: list[str] | None) -> dict[str, Any]:
    """Return the user's own functions by their names in the policy.

    Args:
        option: ``handler`` or ``fallback``.
        given: texts such as ``NAME=MODULE:FUNCTION``.

    Raises:
        InputError: a text cannot be read, a name is repeated, or a function does not exist.
    """
    from guard.files.user_code import load_function

    functions: dict[str, Any] = {}
    for each in given or ():
        name, equals, function = each.partition("=")
        if not (name and equals and function):
            raise InputError(f"--{option} {each!r} cannot be read", fix=f"Write --{option} NAME=MODULE:FUNCTION")
        if name in functions:
            raise InputError(f"--{option} gives '{name}' twice", fix=f"Give each {option} once")
        functions[name] = load_function(function, option)
    return functions


def console(*, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return a rich console that makes terminal control characters visible; imported late, since JSON output needs
    none.
    """
    from guard.cli.screen import Screen

    return Screen(stderr=stderr, file=file, width=width, highlight=False, markup=False, emoji=False)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of texts that anybody may have written, each in one line."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(shown(one_line(cell)) for cell in row))
    return table


def print_json(value: Any) -> None:
    """Print one JSON value on standard output, as one line."""
    text = json_visible(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    sys.stdout.write(text + "\n")


def fail(error: GuardError) -> NoReturn:
    """Print an error, as JSON with ``--json``, and exit with its code."""
    if "--json" in sys.argv:
        kind = type(error).__name__
        print_json({"error": {"type": kind, "what": error.what, "why": error.why, "fix": error.fix}})
    else:
        _print_error(str(error))
    sys.exit(error.exit_code)


def fail_unexpectedly() -> NoReturn:
    """Print the traceback of the current error, which may quote anything, and exit with code 1."""
    sys.stderr.write(visible(traceback.format_exc()))
    sys.exit(1)


def _print_error(text: str) -> None:
    """Print an error; further lines are indented, so that text in it cannot pose as another message."""
    from rich.text import Text

    error = Text.assemble(("error:", "bold red"), " ", shown(text.replace("\n", "\n  ")))
    screen = console(stderr=True)
    # On a terminal, lines are wrapped between words; in a file or a pipe they stay whole.
    screen.print(error, soft_wrap=not screen.is_terminal)
