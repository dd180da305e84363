"""``guard review``: list, read and decide what was escalated."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import AsJson, StoreUrl, console, print_json
from guard.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from guard.store import Review, ReviewEvent, Store

app = typer.Typer(
    help="Look through what was escalated, and decide it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_STATUSES = ("pending", "approved", "edited", "rejected", "all")

ReviewId = Annotated[str, typer.Argument(metavar="ID", help="The review's id or its beginning, or the decision id.")]
Reviewer = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; by default your login name.")]
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="A note to keep with the decision.")]
Route = Annotated[str | None, typer.Option(metavar="ROUTE", help="Only this route.")]


@app.command("list")
def list_reviews(
    *,
    status: Annotated[
        str, typer.Option(metavar="STATUS", help="pending, approved, edited, rejected or all.")
    ] = "pending",
    route: Route = None,
    limit: Annotated[int, typer.Option(help="Show at most so many.")] = 20,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """List reviews, those that have waited longest first."""
    if status not in _STATUSES:
        raise InputError(f"There is no status '{status}'", fix=did_you_mean(status, _STATUSES))
    only = None if status == "all" else status
    with _opened(store) as reviews:
        found = reviews.reviews(status=only, route=route, limit=limit)
        total = reviews.count(status=only, route=route)
    if as_json:
        print_json({"total": total, "reviews": [_json(review) for review in found]})
        return
    kind = "" if only is None else f"{only} "
    if not found:
        console().print(f"No {kind}reviews.")
        return
    console().print(_list_table(found, with_status=only is None))
    console().print(f"{len(found)} of {total} {kind}reviews. Read one: guard review show {found[0].id}")


@app.command()
def show(name: ReviewId, *, store: StoreUrl = None, as_json: AsJson = False) -> None:
    """Show one review: question, answer, score, rule, attempts, and what became of it."""
    with _opened(store) as reviews:
        review = reviews.review(name)
        history = reviews.history(review.id)
    if as_json:
        print_json(_json(review) | {"history": [asdict(event) for event in history]})
        return
    console().print(_case_table(review))
    if review.attempts:
        console().print(_attempts_table(review))
    console().print(_decision_table(review, history))


@app.command()
def approve(
    name: ReviewId,
    *,
    reviewer: Reviewer = None,
    note: Note = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let the model's answer stand."""
    with _opened(store) as reviews:
        review = reviews.approve(name, reviewer=_reviewer(reviewer), note=note)
    _report(review, as_json=as_json)


@app.command()
def edit(
    name: ReviewId,
    *,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The better answer; without it $EDITOR opens.")
    ] = None,
    reviewer: Reviewer = None,
    note: Note = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put a better answer in place of the model's."""
    by = _reviewer(reviewer)
    with _opened(store) as reviews:
        better = answer if answer is not None else _from_editor(reviews.review(name).answer or "")
        review = reviews.edit(name, answer=better, reviewer=by, note=note)
    _report(review, as_json=as_json)


@app.command()
def reject(
    name: ReviewId,
    *,
    answer: Annotated[str | None, typer.Option(metavar="TEXT", help="The right answer, if known.")] = None,
    reviewer: Reviewer = None,
    note: Note = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Say that the answer is wrong."""
    with _opened(store) as reviews:
        review = reviews.reject(name, reviewer=_reviewer(reviewer), note=note, answer=answer)
    _report(review, as_json=as_json)


@app.command()
def export(
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write here; by default to standard output.")] = None,
    route: Route = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write decided reviews as labelled JSON Lines, for `guard calibrate`."""
    with _opened(store) as reviews:
        rows = reviews.labelled(route=route)
        if out is None:
            for row in rows:
                print_json(row)
            return
        written = _write_lines(rows, out)
    if as_json:
        print_json({"rows": written, "out": str(out)})
    else:
        console().print(f"{written} labelled rows written to {out}", markup=False, soft_wrap=True)


# -- helpers of the commands -------------------------------------------------------------------


@contextmanager
def _opened(url: str | None) -> Iterator[Store]:
    from guard.store import Store

    # A store named here and not found is a typing mistake; the user's own may not exist yet.
    with Store.open(url, create=url is None) as store:
        yield store


def _reviewer(name: str | None) -> str:
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such user, as in some containers
        raise InputError("The login name is unknown", fix="Give your name with --reviewer") from None


def _from_editor(text: str) -> str:
    """Let the user change a text in an editor; the file is theirs alone and removed afterwards."""
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


def _write_lines(rows: Iterable[dict[str, Any]], out: Path) -> int:
    """Write JSON Lines so that the file is either the old one or the whole new one."""
    import json

    if out.exists() and not out.is_file():
        raise InputError(f"'{out}' is not a file", fix="Give a file's path with --out")
    written = 0
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += 1
        part.replace(out)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(f"'{out}' cannot be written", why=error.strerror or str(error)) from error
    return written


def _report(review: Review, *, as_json: bool) -> None:
    if as_json:
        print_json(_json(review))
    else:
        console().print(_visible(f"{review.id} {review.status} by {review.reviewer}"), markup=False)


def _json(review: Review) -> dict[str, Any]:
    return asdict(review)


# -- tables ------------------------------------------------------------------------------------


def _visible(text: str) -> str:
    """Text that cannot steer the reader's terminal: questions and answers come from strangers."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def _one_line(text: str) -> str:
    return " ".join(_visible(text).split())


def _probability(p_wrong: float | None) -> str:
    return "-" if p_wrong is None else f"{p_wrong:.3f}"


def _when(time: str) -> str:
    """Date and minute of an ISO 8601 time, in UTC as it is kept."""
    return time[:16].replace("T", " ")


def _list_table(reviews: list[Review], *, with_status: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("id", no_wrap=True, style="bold")
    table.add_column("escalated (UTC)", no_wrap=True)
    if with_status:
        table.add_column("status", no_wrap=True)
    table.add_column("route", no_wrap=True, max_width=10, overflow="ellipsis")
    table.add_column("p(wrong)", no_wrap=True, justify="right")
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=1)
    for review in reviews:
        cells = [review.id, _when(review.created_at)]
        cells += [review.status.value] if with_status else []
        cells += [_one_line(review.route or "-"), _probability(review.p_wrong), _one_line(review.question)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _fields(pairs: Iterable[tuple[str, str | None]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, Text(_visible(value)))
    return table


def _case_table(review: Review) -> Table:
    return _fields(
        [
            ("id", review.id),
            ("decision", review.decision_id),
            ("escalated", f"{_when(review.created_at)} UTC"),
            ("route", review.route),
            ("policy", review.policy),
            ("model", review.model),
            ("question", review.question),
            ("answer", review.answer if review.answer is not None else "(none: generation failed)"),
            ("p(wrong)", _probability(review.p_wrong)),
            ("rule", f"{review.rule}: {review.reason}"),
        ]
    )


def _attempts_table(review: Review) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="attempts", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", no_wrap=True, justify="right")
    table.add_column("source", no_wrap=True, max_width=12, overflow="ellipsis")
    table.add_column("p(wrong)", no_wrap=True, justify="right")
    table.add_column("then", no_wrap=True)
    table.add_column("rule", no_wrap=True, max_width=14, overflow="ellipsis")
    table.add_column("answer", overflow="fold", min_width=16)
    for number, attempt in enumerate(review.attempts, start=1):
        answer = attempt["answer"] if attempt["answer"] is not None else f"({attempt['error']})"
        cells = [str(number), attempt["source"], _probability(attempt["p_wrong"])]
        cells += [attempt["action"], attempt["rule"], answer]
        table.add_row(*(Text(_visible(cell)) for cell in cells))
    return table


def _decision_table(review: Review, history: list[ReviewEvent]) -> Table:
    trail = "\n".join(f"{_when(event.at)} UTC  {event.what} by {event.who}" for event in history)
    return _fields(
        [
            ("status", review.status.value),
            ("final answer", review.final_answer),
            ("note", review.note),
            ("history", trail),
        ]
    )
