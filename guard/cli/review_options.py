"""Shared parts of ``guard review``: options, store, name of the reviewer, editor."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.errors import InputError

if TYPE_CHECKING:
    from guard.review.records import Draft
    from guard.review.store import Store

DRAFTS = ("right", "wrong")

ReviewArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the review, or the decision id.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Decide without confirmation; needs the whole id.")]
ReviewerOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the reviewer; by default your login name.")
]
NoteOption = Annotated[str | None, typer.Option(metavar="TEXT", help="Note to store with the decision.")]
WrongSpanOption = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="Number of a span that is wrong, as guard review show lists it; repeatable."),
]
RightSpanOption = Annotated[
    list[int] | None, typer.Option(metavar="N", help="Number of a span that is right; repeatable.")
]
RouteOption = Annotated[str | None, typer.Option(metavar="ROUTE", help="Route to restrict to.")]


@contextmanager
def open_store(url: str | None) -> Iterator[Store]:
    """Open the store that a command was given, for as long as the command runs."""
    from guard.review.store import Store

    # A store named here and not found is a typing mistake; the user's own may not exist yet.
    with Store.open(url, create=url is None) as store:
        yield store


def reviewer_name(name: str | None) -> str:
    """Return the reviewer's name, by default that of the login.

    Raises:
        InputError: the system knows no login name.
    """
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such user, as in some containers
        raise InputError("The login name is unknown", fix="Give your name with --reviewer") from None


def edit_in_editor(text: str) -> str:
    """Let the user change a text in an editor; the file is theirs alone and removed afterwards.

    Raises:
        InputError: nobody is there, or the editor failed.
    """
    if not sys.stdin.isatty():
        raise InputError("The edited answer is missing", fix="Give it with --answer")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="guard-review-") as folder:
        path = Path(folder) / "answer.txt"
        path.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"The editor '{editor}' failed", why=str(error), fix="Set EDITOR, or give --answer"
            ) from error


def ask_for_draft() -> Draft:
    """Ask until the user says whether the model's answer was right or wrong."""
    while True:
        with interruptible():
            draft = typer.prompt("Was the model's own answer right or wrong?").strip().lower()
        if draft == "right":
            return "right"
        if draft == "wrong":
            return "wrong"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C at a prompt end the command as anywhere else; typer makes an end of input of it, exit code 1."""
    try:
        yield
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
