"""``guard review``: list, read and decide cases."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from guard.checked import checked_choice
from guard.cli import review_work
from guard.cli.output import JsonOption, StoreOption, console, print_json
from guard.cli.review_options import (
    DRAFTS,
    NoteOption,
    ReviewArgument,
    ReviewerOption,
    RightSpanOption,
    RouteOption,
    WrongSpanOption,
    YesOption,
    ask_for_draft,
    edit_in_editor,
    interruptible,
    open_store,
    reviewer_name,
)
from guard.cli.review_tables import (
    attempts_table,
    case_table,
    decision_table,
    describe_answer,
    list_table,
    short_case_table,
)
from guard.cli.terminal import one_line, shown
from guard.errors import InputError, ReviewError, did_you_mean
from guard.files.write_whole import replacing
from guard.review.span_marks import numbered_marks
from guard.review_terms import CASE_KINDS

if TYPE_CHECKING:
    from guard.review.records import Draft
    from guard.review.store import Review, Store
    from guard.review_terms import CaseKind

app = typer.Typer(
    help="List, read and decide escalated cases, and accepted answers that were drawn for an audit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_STATUSES = ("pending", "approved", "edited", "rejected", "all")
_KINDS = (*CASE_KINDS, "all")


@app.command("list")
def list_reviews(
    *,
    status: Annotated[
        str, typer.Option(metavar="STATUS", help="Status: pending, approved, edited, rejected or all.")
    ] = "pending",
    kind: Annotated[str, typer.Option(metavar="KIND", help="Kind: escalation, audit or all.")] = "all",
    route: RouteOption = None,
    limit: Annotated[int, typer.Option(help="Largest number of reviews to show.")] = 20,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List reviews, oldest first."""
    if status not in _STATUSES:
        raise InputError(f"There is no status '{status}'", fix=did_you_mean(status, _STATUSES))
    chosen = _chosen_kind(kind)
    from guard.review.pages import CaseFilter, counted

    only = None if status == "all" else status
    with open_store(store) as reviews:
        found = reviews.reviews(status=only, route=route, kind=chosen, limit=limit)
        total = reviews.count(CaseFilter(status=only, route=route, kind=chosen))
    if as_json:
        print_json({"total": total, "reviews": [asdict(review) for review in found]})
        return
    named = " ".join(each for each in (only, chosen) if each)
    named = f"{named} " if named else ""
    if not found:
        console().print(f"No {named}reviews.")
        return
    with_kind = chosen is None and any(review.kind == "audit" for review in found)
    console().print(list_table(found, with_status=only is None, with_kind=with_kind))
    console().print(f"{len(found)} of {counted(total)} {named}reviews. Read one: guard review show {found[0].id}")


@app.command()
def show(name: ReviewArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show one review: prompt, answer, score, rule, metadata, attempts and decision.

    The first four characters of an id are enough if no other id begins with them.
    """
    with open_store(store) as reviews:
        review = reviews.review(name)
        history, repeats = reviews.history(review.id), reviews.repeats(review.id)
    if as_json:
        more = {"history": [asdict(event) for event in history], "repeated": [asdict(each) for each in repeats]}
        print_json(asdict(review) | more)
        return
    console().print(case_table(review, repeats))
    if review.attempts and not review.is_blind:
        console().print(attempts_table(review))
    console().print(decision_table(review, history))


@app.command()
def approve(
    name: ReviewArgument,
    *,
    right_span: RightSpanOption = None,
    reviewer: ReviewerOption = None,
    note: NoteOption = None,
    yes: YesOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve the model's answer."""
    by = reviewer_name(reviewer)
    with open_store(store) as reviews:
        chosen = _chosen(reviews, name, "Approve", yes=yes or as_json)
        marks = numbered_marks(chosen.attempts, right=right_span or ())
        review = reviews.approve(chosen.id, reviewer=by, note=note, marks=marks)
    _report(review, as_json=as_json)


@app.command()
def edit(
    name: ReviewArgument,
    *,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Better answer; without it, $EDITOR opens.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Label of the model's own answer: right (but wordy, say) or wrong."),
    ] = None,
    wrong_span: WrongSpanOption = None,
    right_span: RightSpanOption = None,
    reviewer: ReviewerOption = None,
    note: NoteOption = None,
    yes: YesOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the model's answer with a better one, and label the model's as right or wrong."""
    by = reviewer_name(reviewer)
    if draft is not None:
        checked_choice("--draft", draft, DRAFTS)
    with open_store(store) as reviews:
        chosen = _chosen(reviews, name, "Edit", yes=yes or as_json)
        if draft is None and chosen.answer is not None and _someone_is_there(as_json):
            draft = ask_for_draft()
        better = answer if answer is not None else edit_in_editor(chosen.answer or "")
        marks = numbered_marks(chosen.attempts, wrong=wrong_span or (), right=right_span or ())
        label = cast("Draft | None", draft)
        review = reviews.edit(chosen.id, answer=better, draft=label, reviewer=by, note=note, marks=marks)
    _report(review, as_json=as_json)


@app.command()
def reject(
    name: ReviewArgument,
    *,
    answer: Annotated[str | None, typer.Option(metavar="TEXT", help="Right answer, if known.")] = None,
    wrong_span: WrongSpanOption = None,
    right_span: RightSpanOption = None,
    reviewer: ReviewerOption = None,
    note: NoteOption = None,
    yes: YesOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reject the model's answer as wrong."""
    by = reviewer_name(reviewer)
    with open_store(store) as reviews:
        chosen = _chosen(reviews, name, "Reject", yes=yes or as_json)
        marks = numbered_marks(chosen.attempts, wrong=wrong_span or (), right=right_span or ())
        review = reviews.reject(chosen.id, reviewer=by, note=note, answer=answer, marks=marks)
    _report(review, as_json=as_json)


@app.command()
def export(
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write; by default standard output.")] = None,
    route: RouteOption = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Only answers of this model, as a scorer needs them.")
    ] = None,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="Kind: escalation, audit or all; each row has its kind and weight.")
    ] = "all",
    spans: Annotated[
        bool, typer.Option("--spans", help="Write the marked spans of answers, for guard calibrate --spans.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write decided reviews as labelled JSON Lines, for `guard calibrate`. Only you can read the file."""
    chosen: dict[str, Any] = {"route": route, "model": model, "kind": _chosen_kind(kind)}
    with open_store(store) as reviews:
        marked = reviews.marked(**chosen) if spans else None
        rows = reviews.labelled(**chosen) if marked is None else marked.rows
        if out is None:
            for row in rows:
                print_json(row)
            return
        models = _write_lines(rows, out)
    written = sum(models.values())
    if as_json:
        more = {} if marked is None else {"left_out": marked.left_out}
        print_json({"rows": written, "out": str(out), "models": dict(models), **more})
        return
    console().print(shown(f"{written} labelled rows written to {out}"), soft_wrap=True)
    if marked is not None and marked.left_out:
        line = f"{marked.left_out} cases with marked spans left out: the prompt of their answers is not stored."
        console().print(shown(line, "yellow"), soft_wrap=True)
    if len(models) > 1:
        names = ", ".join(f"{name} ({count})" for name, count in models.items())
        line = f"They are answers of {len(models)} models: {names}. A scorer needs one model: give --model."
        console().print(shown(one_line(line), "yellow"), soft_wrap=True)


app.command("next")(review_work.take_next)
for command in (review_work.claim, review_work.release, review_work.skip, review_work.assign, review_work.undo):
    app.command()(command)
app.command()(review_work.stats)


# -- helpers of the commands -------------------------------------------------------------------


def _chosen_kind(kind: str) -> CaseKind | None:
    """Return the kind of cases that an option names; None for all."""
    if kind not in _KINDS:
        raise InputError(f"There are no cases '{kind}'", fix=did_you_mean(kind, _KINDS))
    return None if kind == "all" else cast("CaseKind", kind)


def _write_lines(rows: Iterable[dict[str, Any]], out: Path) -> Counter[str]:
    """Write JSON Lines atomically; return the number of rows by model."""
    if out.exists() and not out.is_file():
        raise InputError(f"'{out}' is not a file", fix="Give a file's path with --out")
    models: Counter[str] = Counter()
    try:
        with replacing(out, private=True) as part, part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                models[row["model"]] += 1
    except OSError as error:
        raise InputError(f"'{out}' cannot be written", why=error.strerror or str(error)) from error
    return models


def _someone_is_there(as_json: bool) -> bool:
    return not as_json and sys.stdin.isatty()


def _chosen(store: Store, name: str, verb: str, *, yes: bool) -> Review:
    """Return the review to decide: confirmed on a terminal, otherwise named by its whole id."""
    from guard.review.store import ID_LENGTH

    review = store.review(name)
    if sys.stdin.isatty() and not yes:
        console().print(short_case_table(review))
        with interruptible():
            confirmed = typer.confirm(f"{verb} it?")
        if not confirmed:
            raise typer.Exit(1)
    elif len(name.strip()) < ID_LENGTH:
        raise ReviewError(
            f"'{one_line(name)}' is only a prefix of a review's id",
            why="a decision is final and was not confirmed",
            fix=f"Give the whole id: {review.id}",
        )
    return review


def _report(review: Review, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(review))
        return
    done = "has one opinion; a second is wanted" if review.opinions == 1 else "has two that differ; a third decides"
    says = done if review.reviewer is None else f"{review.status} by {review.reviewer}"
    console().print(
        shown(f"{review.id} {says}. To undo it within ten seconds: guard review undo {review.id}"), soft_wrap=True
    )
    case = shown(one_line(f"{review.question} -> {describe_answer(review)}"), "dim")
    case.truncate(console().width, overflow="ellipsis")
    console().print(case)
