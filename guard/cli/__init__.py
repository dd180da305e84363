"""The command line. Commands are shells over the library; nothing heavy is imported to show help.

Exit codes: 0 done, 1 unexpected failure, 2 bad input (arguments, files, policy), 3 scorer does not
fit or cannot be fitted, 4 engine or optional package missing, 5 deadline or cancelled, 6 store or
escalation failed, 10 abstained, 11 escalated (`guard ask` only), 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from guard.cli import policy, review
from guard.cli.output import fail
from guard.errors import GuardError

app = typer.Typer(
    name="guard",
    help="Know when a local language model is wrong, and do something about it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(policy.app, name="policy")
app.add_typer(review.app, name="review")


def main() -> None:
    """Run the command line; every guard error becomes one message and its documented exit code."""
    try:
        app()
    except GuardError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
