"""Earlier cases like another one, with their verdicts: found by their words, of which the rare ones count most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log, sqrt
from statistics import fmean
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.review.migrations.tables import REVIEWS
from guard.review.queries import on_routes
from guard.review.words import numbers_with, split_words

if TYPE_CHECKING:
    from guard.review.records import Review
    from guard.review.store import Store

#: Words of a question that are looked up, the longest first, and cases that are looked at for each.
_WORDS, _CASES = 12, 150

#: Shorter words are in every question.
_SHORTEST = 3

#: Least likeness of a case that is shown.
LEAST_ALIKE = 0.4

_SHOWN = ("id", "question", "status", "p_wrong", "reviewer", "decided_at", "note")


@dataclass(frozen=True, slots=True)
class SimilarCase:
    """A decided case.

    Attributes:
        id, question, status, p_wrong, reviewer, decided_at, note: as in `guard.review.records.Review`.
        alike: cosine of the two questions' words, from 0 to 1; rare words weigh more.
    """

    id: str
    question: str
    status: str
    p_wrong: float | None
    reviewer: str
    decided_at: str
    note: str | None
    alike: float


def find_similar(
    store: Store, review: Review, *, routes: frozenset[str] | None = None, limit: int = 3
) -> list[SimilarCase]:
    """Return decided cases whose question is like a case's, the most alike first.

    A verdict that can still be undone does not count. Of common words only some cases are looked at, so that the time
    does not grow with the store.

    Args:
        store: where they are.
        review: the case.
        routes: only these; None for all.
        limit: the largest number.
    """
    with store._database.read() as connection:
        at = store._database.now(connection)
        return _ranked(connection, review, at, routes)[:limit]


def _ranked(connection: Connection, review: Review, at: str, routes: frozenset[str] | None) -> list[SimilarCase]:
    asked = _terms(review.question)
    chosen = sorted(asked, key=lambda word: (-len(word), word))[:_WORDS]
    found = {word: numbers_with(connection, word, _CASES) for word in chosen}
    weights = {word: log(1 + _CASES / max(len(numbers), 1)) for word, numbers in found.items()}
    numbers = sorted({number for each in found.values() for number in each})
    query = sa.select(*(REVIEWS.c[name] for name in _SHOWN)).where(
        REVIEWS.c.number.in_(numbers), REVIEWS.c.final_at <= at, REVIEWS.c.id != review.id, *on_routes(routes)
    )
    rows = connection.execute(query).all()
    cases = [SimilarCase(**row._mapping, alike=_alike(asked, _terms(row.question), weights)) for row in rows]
    alike = [case for case in cases if case.alike >= LEAST_ALIKE]
    return sorted(alike, key=lambda case: (case.alike, case.decided_at), reverse=True)


def _terms(question: str) -> frozenset[str]:
    return frozenset(word.lower() for word in split_words(question) if len(word) >= _SHORTEST or word.isdecimal())


def _alike(one: Iterable[str], other: Iterable[str], weights: Mapping[str, float]) -> float:
    """Return the cosine of two questions whose words count once each; a word that was not looked up is a usual one."""
    usual = fmean(weights.values()) if weights else 1.0
    both, *each = (sum(weights.get(word, usual) for word in words) for words in (set(one) & set(other), one, other))
    return both / sqrt(each[0] * each[1]) if both else 0.0
