"""Labels from final verdicts: decided cases in order, and answers whose spans reviewers marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from guard.review import queries
from guard.review.database import Database
from guard.review.migrations.tables import REVIEWS
from guard.review.records import Review, answered_prompt, prompt_row, storable_text
from guard.review.span_marks import SpanMark

#: Cases that are read at a time.
PAGE = 500


@dataclass(frozen=True, slots=True)
class MarkedAnswers:
    """Answers with spans that reviewers marked.

    Attributes:
        rows: for ``guard calibrate --spans``, one for each answer: ``prompt``, ``response``, ``spans`` (``start``,
            ``end``, ``wrong``), ``equations`` (false: only the marks are labels), ``model``, and what else the prompt
            has, as in `guard.review.store.Store.labelled`.
        models: number of rows by model.
        left_out: number of cases with marks that are no rows, since the model's own prompt is not stored: answers of
            fallbacks, chains and agents, answers after a thought, and cases of an older guard.
    """

    rows: tuple[dict[str, Any], ...]
    models: Mapping[str, int]
    left_out: int


def read_decided(database: Database, wanted: Mapping[str, str | None], *, page: int = PAGE) -> Iterator[Review]:
    """Yield the cases with an answer and a final verdict, in the order of the verdicts.

    Args:
        database: of the store.
        wanted: values of columns, each None for any.
        page: number of cases that are read at a time.
    """
    order = sa.tuple_(REVIEWS.c.decided_at, REVIEWS.c.id)
    query = queries.selected().where(queries.has_verdict(), REVIEWS.c.answer.is_not(None))
    for name, value in wanted.items():
        query = query if value is None else query.where(REVIEWS.c[name] == storable_text(value))
    query = query.order_by(REVIEWS.c.decided_at, REVIEWS.c.id).limit(page)
    after: tuple[str, str] | None = None
    while True:
        # No transaction stays open between pages: the reader may be slow.
        with database.read() as connection:
            at = database.now(connection)
            reviews = queries.read_reviews(connection, query if after is None else query.where(order > after))
        yield from (review for review in reviews if str(review.final_at) <= at)
        if len(reviews) < page:
            return
        after = (str(reviews[-1].decided_at), reviews[-1].id)


def read_marked(database: Database, wanted: Mapping[str, str | None]) -> MarkedAnswers:
    """Return the answers with marks; of several marks of one span in the same answer the latest counts.

    Args:
        database, wanted: as for `read_decided`.
    """
    answers: dict[str, tuple[dict[str, Any], dict[tuple[int, int], SpanMark]]] = {}
    left_out = 0
    for review in read_decided(database, wanted):
        if not review.span_marks:
            continue
        if (row := _asked(review)) is None:
            left_out += 1
            continue
        _, marks = answers.setdefault(json.dumps(row, sort_keys=True), (row, {}))
        marks.update((mark.place, mark) for mark in review.span_marks)
    rows = tuple({**row, "spans": [asdict(marks[place]) for place in sorted(marks)]} for row, marks in answers.values())
    return MarkedAnswers(rows, Counter(row["model"] for row in rows), left_out)


def _asked(review: Review) -> dict[str, Any] | None:
    """Return an answer with the prompt that the model read; None if that is not stored."""
    last, before = review.attempts[-1], review.attempts[-2:-1]
    if any("instruction" not in each for each in before) or last.get("source") != "model" or not last.get("tokens"):
        return None
    if last.get("reasoning"):
        return None
    return {**prompt_row(answered_prompt(review)), "response": review.answer, "equations": False, "model": review.model}
