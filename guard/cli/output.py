"""How commands print: tables for people, JSON for programs, one sentence for errors."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from guard.errors import GuardError

if TYPE_CHECKING:
    from rich.console import Console

#: Options that several commands share.
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="GGUF file, model folder, or smollm2 (the embedded model).")
]
ScorerFile = Annotated[
    str | None, typer.Option("--scorer", "-s", help="What guard calibrate wrote; not needed for smollm2.")
]
PolicyName = Annotated[str, typer.Option("--policy", "-p", help="Policy file or built-in name.")]
CertificateFile = Annotated[
    str | None, typer.Option("--certificate", help="What guard certify wrote; by default what the policy names.")
]
Engine = Annotated[str | None, typer.Option("--engine", help="llama.cpp or transformers, where both can load it.")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Of transformers: float32 (by default), bfloat16, float16 or int4.")
]
Force = Annotated[bool, typer.Option("--force-scorer", help="Use a scorer of another model; scores are marked.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="SQLite file or database URL; by default $GUARD_STORE, else reviews.db in your data folder.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def console(*, stderr: bool = False) -> Console:
    """A rich console; imported late, since it is not needed for JSON."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output, a line of its own."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def fail(error: GuardError) -> NoReturn:
    """Print an error and leave with its exit code; as JSON where the command was asked for JSON."""
    if "--json" in sys.argv:
        kind = type(error).__name__
        print_json({"error": {"type": kind, "what": error.what, "why": error.why, "fix": error.fix}})
    else:
        console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
    sys.exit(error.exit_code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
