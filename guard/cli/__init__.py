"""The command line. Commands are shells over the library; nothing heavy is imported to show help.

Exit codes: 0 done; 1 unexpected failure; 2 bad input (arguments, files, policy); 3 a scorer does not match or cannot be
fitted; 4 an engine failed or a package is missing; 5 deadline or cancelled; 6 store or escalation failed; 10 abstained;
11 escalated (both only from ``guard ask``); 12 not certifiable (only from ``guard certify``); 130 interrupted.
"""

from __future__ import annotations

import _thread
import io
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli import audit, keys, policy, review, scorers, users, webhooks
from guard.cli.ask import ask
from guard.cli.calibrate import calibrate
from guard.cli.certificates import certificates
from guard.cli.certify import certify
from guard.cli.console import console
from guard.cli.demo import demo
from guard.cli.doctor import doctor
from guard.cli.evaluate import evaluate
from guard.cli.output import fail, fail_unexpectedly
from guard.cli.rebind import rebind
from guard.cli.recalibrate import recalibrate
from guard.cli.record import record
from guard.cli.replay import replay
from guard.cli.score import score
from guard.cli.serve import serve
from guard.cli.shards import merge
from guard.errors import GuardError, InputError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["app", "main"]

app = typer.Typer(
    name="guard",
    help="Estimate how likely a local language model's answers are wrong, and act on it.",
    epilog="Exit codes: 0 done, 2 bad input, 3 scorer, 4 engine, 5 deadline, 6 store, 10 abstained, 11 escalated, "
    "12 not certifiable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # a paragraph of a docstring is wrapped to the terminal, not at its own lines
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import guard

        typer.echo(f"guard {guard.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (
    ask,
    demo,
    console,
    calibrate,
    rebind,
    certify,
    certificates,
    recalibrate,
    replay,
    record,
    evaluate,
    score,
    merge,
    serve,
    doctor,
):
    app.command()(command)
app.add_typer(policy.app, name="policy")
app.add_typer(review.app, name="review")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(users.app, name="users")
app.add_typer(keys.app, name="keys")
app.add_typer(scorers.app, name="scorers")
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Run the command line; every guard error becomes one message and its documented exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter shows its code
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _raise_interrupts_again
    try:
        sys.exit(_run())
    except GuardError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - its text may be anybody's; Python would print it raw
        fail_unexpectedly()


#: The base of Typer's usage errors, by which Typer has no public name.
_USAGE_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _run() -> int:
    """Run the chosen command and return its exit code.

    Raises:
        InputError: an unknown option, a missing or superfluous argument, a bad value. Typer would print what it quotes
            raw.
    """
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:  # the end of the input at a prompt
        sys.stderr.write("Aborted.\n")
        return 1
    except _USAGE_ERROR as error:
        message = error.format_message()
        if not message:  # the help has been printed instead
            return int(error.exit_code)
        raise InputError(message, fix=_help_hint(error)) from None


def _help_hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"See {context.command_path} --help" if context is not None else ""


def _raise_interrupts_again(dropped: UnraisableHookArgs) -> None:
    """Raise Ctrl-C again where Python has dropped it, since it came while a library's object was freed."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        # Later and from another thread: raised in this hook it would be dropped again.
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(dropped)
