"""``guard audit``: sign, check, prove and export the audit log."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.output import JsonOption, StoreOption, console, print_json
from guard.cli.terminal import one_line
from guard.errors import InputError

if TYPE_CHECKING:
    from guard.audit.notes import PublicKey
    from guard.review.store import Store

app = typer.Typer(
    help="Check that nothing in the audit log was changed, and prove what is in it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

SigningKeyOption = Annotated[
    str | None,
    typer.Option("--signing-key", metavar="FILE", help="Key file from guard audit key, to sign the checkpoint with."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Verifier key NAME+HASH+KEY, printed by guard audit key."),
]


@app.command("key")
def make_key(
    name: Annotated[str, typer.Argument(help="Name of the signer, which checkpoints carry as their origin.")],
    *,
    out: Annotated[str, typer.Option(metavar="FILE", help="File to write the signing key to; must not exist.")],
) -> None:
    """Make a signing key, and print the verifier key for those who check the log."""
    from guard.audit.notes import SigningKey

    key = SigningKey.generate(name)
    key.save(out)
    typer.echo(str(key.public))


@app.command()
def checkpoint(
    *,
    signing_key: SigningKeyOption = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="File to write the note to, as well.")] = None,
    store: StoreOption = None,
) -> None:
    """Record the log's size and root, and print the note. Keep a copy where the database's owner cannot change it."""
    from guard.audit.notes import SigningKey
    from guard.files.write_whole import write_whole

    key = SigningKey.load(signing_key) if signing_key else None
    with _opened(store) as opened:
        note = opened.audit_log().checkpoint(key)
    if out:
        write_whole(Path(out), note)
    typer.echo(note, nl=False)


@app.command()
def verify(
    *,
    key: KeyOption = None,
    copies: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="FILE", help="Signed checkpoint that you kept elsewhere; repeatable."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every entry, stored text and checkpoint. Exit with 6 if anything was changed, removed or inserted."""
    with _opened(store) as opened:
        notes = tuple(_read(copy) for copy in copies or ())
        found = opened.audit_log().verify(key=_public(key), copies=notes)
    if as_json:
        print_json({**asdict(found), "root": found.root.hex(), "ok": found.ok})
    else:
        out = console()
        for problem in found.problems:
            out.print(one_line(f"Problem: {problem}."))  # it may quote a row that was tampered with
        state = "is as it was written" if found.ok else "was tampered with"
        out.print(
            f"The log of {found.size} entries {state}: {found.checkpoints} checkpoints ({found.signed} signed "
            f"by the key) and {found.texts} kept texts compared."
        )
        if found.ok and not copies:
            out.print("Without a checkpoint from elsewhere (--checkpoint) this does not show that nothing was cut off.")
    if not found.ok:
        raise typer.Exit(6)


@app.command()
def prove(
    subject: Annotated[str, typer.Argument(metavar="ID", help="Decision id, or number of an entry.")],
    *,
    store: StoreOption = None,
) -> None:
    """Print the proof, as JSON, that entries about a decision are in the tree of the latest checkpoint."""
    with _opened(store) as opened:
        log = opened.audit_log()
        numbers = [int(subject)] if subject.isdecimal() else [each.number for each in log.entries(subject=subject)]
        if not numbers:
            raise InputError(f"The log has no entry about '{subject}'", fix="Give a decision's id")
        proofs = log.prove(*numbers)
    for proof in proofs:
        made = asdict(proof)
        made["checkpoint"]["root"] = proof.checkpoint.root.hex()
        print_json(made)


@app.command()
def export(*, store: StoreOption = None) -> None:
    """Print the log as JSON Lines: entries, hashes, and the salts and texts that were not erased."""
    with _opened(store) as opened:
        for line in opened.audit_log().export():
            print_json(json.loads(line))


@app.command()
def erase(
    *,
    before: Annotated[str, typer.Option(metavar="TIME", help="ISO 8601 time, such as 2026-05-01T00:00:00+00:00.")],
    store: StoreOption = None,
) -> None:
    """Erase the texts and salts of older entries. Entries and proofs stay, but can no longer be linked to a text."""
    with _opened(store) as opened:
        count = opened.audit_log().erase(before=before)
    typer.echo(f"Erased {count} texts and salts of entries before {before}.")


def _opened(store: str | None) -> Store:
    from guard.review.store import Store

    return Store.open(store, create=False)


def _public(key: str | None) -> PublicKey | None:
    from guard.audit.notes import PublicKey

    return PublicKey.parse(key) if key else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The checkpoint '{path}' cannot be read", why=str(error)) from error
