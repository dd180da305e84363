"""``guard review`` for people who work through the queue: next, claim, release, skip, assign, undo, stats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.certificates import certificate_json, certificates_table
from guard.cli.output import JsonOption, StoreOption, console, print_json
from guard.cli.review_options import (
    NoteOption,
    ReviewArgument,
    ReviewerOption,
    RouteOption,
    ask_for_draft,
    edit_in_editor,
    interruptible,
    open_store,
    reviewer_name,
)
from guard.cli.review_tables import attempts_table, case_table, stats_tables
from guard.cli.terminal import say
from guard.errors import ReviewError
from guard.review.span_marks import checked_marks, numbered_marks, span_places

if TYPE_CHECKING:
    from guard.review.span_marks import SpanMark
    from guard.review.store import Review, Store

MinutesOption = Annotated[float, typer.Option("--minutes", metavar="N", help="Duration of the claim in minutes.")]

_KEYS = "[a]pprove  [e]dit  [r]eject  [s]kip  [n]ote  {marks}[u]ndo the last one  [q]uit: "


def take_next(
    *,
    route: RouteOption = None,
    reviewer: ReviewerOption = None,
    minutes: MinutesOption = 10.0,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the next case and show it. On a terminal, decide it by key and continue with the next one.

    Nobody else gets the case until the claim ends or you release it. Cases come by priority, due time and age, without
    those that you skipped. In scripts, decide with guard review approve, edit or reject.
    """
    who = reviewer_name(reviewer)
    with open_store(store) as reviews:
        while (case := reviews.claim_next(reviewer=who, route=route, lease_s=60 * minutes)) is not None:
            if as_json:
                print_json(asdict(case))
                return
            console().print(case_table(case, reviews.repeats(case.id)))
            if case.attempts and not case.is_blind:
                console().print(attempts_table(case))
            if not sys.stdin.isatty():
                say(f"It is yours until {case.claimed_until}. Decide: guard review approve {case.id}")
                return
            with _given_back(reviews, case, who):
                goes_on = _decide_by_key(reviews, case, who)
            if not goes_on:
                reviews.release(case.id, reviewer=who)
                return
    if as_json:
        print_json(None)
    else:
        say("No case waits for you.")


def claim(
    name: ReviewArgument,
    *,
    reviewer: ReviewerOption = None,
    minutes: MinutesOption = 10.0,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Claim a case, or extend a claim. Nobody else gets the case until the claim ends."""
    who = reviewer_name(reviewer)
    _done(store, lambda reviews: reviews.claim(name, reviewer=who, lease_s=60 * minutes), as_json, f"claimed by {who}")


def release(
    name: ReviewArgument, *, reviewer: ReviewerOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Release a case."""
    who = reviewer_name(reviewer)
    _done(store, lambda reviews: reviews.release(name, reviewer=who), as_json, "is free")


def skip(
    name: ReviewArgument,
    *,
    reviewer: ReviewerOption = None,
    note: NoteOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave a case to others; guard review next does not offer it to you again, except an audit case, last of all."""
    who = reviewer_name(reviewer)
    _done(store, lambda reviews: reviews.skip(name, reviewer=who, note=note), as_json, f"skipped by {who}")


def assign(
    name: ReviewArgument,
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only person who may take the case; without it, anybody may."),
    ] = None,
    reviewer: ReviewerOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Assign a case to one person, and end any claim."""
    who = reviewer_name(reviewer)
    says = "is for everybody" if to is None else f"is for {to}"
    _done(store, lambda reviews: reviews.assign(name, to=to, by=who), as_json, says)


def undo(
    name: ReviewArgument, *, reviewer: ReviewerOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Undo your decision of the last ten seconds; you hold the case again."""
    who = reviewer_name(reviewer)
    _done(store, lambda reviews: reviews.undo(name, reviewer=who), as_json, "is undecided again, and yours")


def stats(*, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show how much waits, who has decided how much, how far reviewers agree, and what audits say of certificates."""
    from guard.monitoring.certificate_watch import CertificateWatch

    with open_store(store) as reviews:
        figures, watched = reviews.stats(), CertificateWatch(reviews).read()
    if as_json:
        print_json({**asdict(figures), "certificates": [certificate_json(each) for each in watched]})
        return
    for table in (*stats_tables(figures), *([certificates_table(watched)] if watched else [])):
        console().print(table)


def _done(store: str | None, work: Callable[[Store], Review], as_json: bool, says: str) -> None:
    with open_store(store) as reviews:
        review = work(reviews)
    if as_json:
        print_json(asdict(review))
    else:
        say(f"{review.id} {says}")


# -- by key ------------------------------------------------------------------------------------


@contextmanager
def _given_back(reviews: Store, case: Review, who: str) -> Iterator[None]:
    """Release a case where the reviewer ends the command by Ctrl-C or an end of input."""
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        with suppress(ReviewError):  # it has just been decided
            reviews.release(case.id, reviewer=who)
        raise


def _decide_by_key(reviews: Store, case: Review, who: str) -> bool:
    """Let the reviewer decide one case; return whether they go on to the next."""
    given: dict[str, Any] = {"note": None, "marks": ()}
    keys = _KEYS.format(marks="[m]ark spans  " if span_places(case.attempts) else "")
    while True:
        with interruptible():
            key = typer.prompt(keys, prompt_suffix="").strip().lower()[:1]
        if key == "q":
            return False
        try:
            with interruptible():
                if key in ("n", "m"):
                    given |= {"note": typer.prompt("Note")} if key == "n" else {"marks": _ask_for_marks(case)}
            if _carry_out(key, reviews, case, who, given):
                return True
        except ReviewError as error:
            say(str(error))


def _ask_for_marks(case: Review) -> tuple[SpanMark, ...]:
    """Return the marks that the reviewer types, by the numbers of spans; they take the place of earlier ones.

    Raises:
        ReviewError: there is no such span, or one has two marks.
    """
    said = {
        label: typer.prompt(f"Numbers of {label} spans, such as 2 4", default="", show_default=False)
        for label in ("wrong", "right")
    }
    try:
        numbers = {label: [int(each) for each in text.replace(",", " ").split()] for label, text in said.items()}
    except ValueError:
        raise ReviewError(
            "Spans are marked by their numbers", fix="Write them with spaces between, such as 2 4"
        ) from None
    return checked_marks(case.attempts, numbered_marks(case.attempts, **numbers))


def _carry_out(key: str, reviews: Store, case: Review, who: str, given: dict[str, Any]) -> bool:
    """Do what a key says; return whether the case is dealt with."""
    match key:
        case "a":
            reviews.approve(case.id, reviewer=who, **given)
        case "e":
            answer = edit_in_editor(case.answer or "")
            draft = ask_for_draft() if case.answer is not None else None
            reviews.edit(case.id, answer=answer, draft=draft, reviewer=who, **given)
        case "r":
            reviews.reject(case.id, reviewer=who, **given)
        case "s":
            reviews.skip(case.id, reviewer=who, note=given["note"])
        case "u":
            return _undo_last(reviews, case, who)
        case _:
            return False
    say(f"{case.id}: done. u takes a decision back for ten seconds.")
    return True


def _undo_last(reviews: Store, case: Review, who: str) -> bool:
    """Undo the reviewer's newest decision, and leave the present case for it."""
    from guard.review.pages import CaseFilter

    last = reviews.page(CaseFilter(decided_by=who), order="decided", limit=1).reviews
    if not last:
        raise ReviewError(f"{who} has decided nothing yet")
    reviews.undo(last[0].id, reviewer=who)
    reviews.release(case.id, reviewer=who)
    say(f"{last[0].id} is undecided again.")
    return True
