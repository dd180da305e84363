"""Cases by the words of their question and answer, found in the database's own index of words."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.errors import InputError
from guard.review.migrations.tables import REVIEWS
from guard.review.records import storable_text

#: Up to this number of matches, a search starts from the word index; beyond it, from the ordered cases.
_MANY = 5_000


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are looked up, in order.

    Examples:
        >>> split_words("Is 4 g the most?")
        ['Is', '4', 'g', 'the', 'most']
    """
    return re.findall(r"\w+", storable_text(text) or "")


def has_words(connection: Connection, text: str) -> sa.ColumnElement[bool]:
    """Return the condition for cases with all words of a text.

    Raises:
        InputError: it has no word.
    """
    words = split_words(text)
    if not words:
        raise InputError("The search contains no word", fix="Give letters or digits")
    if connection.dialect.name == "sqlite":
        return _on_sqlite(connection, " ".join(f'"{word}"' for word in words))
    return _on_postgresql(words)


def numbers_with(connection: Connection, word: str, limit: int) -> list[int]:
    """Return the numbers of cases with a word, at most some: the newest on SQLite, any on PostgreSQL."""
    if connection.dialect.name == "sqlite":
        query = _matching(f'"{word}"').order_by(sa.text("rowid DESC"))
    else:
        query = sa.select(REVIEWS.c.number).where(_on_postgresql([word]))
    return [int(number) for number in connection.scalars(query.limit(limit))]


def _on_postgresql(words: list[str]) -> sa.ColumnElement[bool]:
    there = sa.func.to_tsvector(
        sa.literal_column("'simple'"),
        REVIEWS.c.question + sa.literal_column("' '") + sa.func.coalesce(REVIEWS.c.answer, sa.literal_column("''")),
    )
    wanted = " & ".join(f"'{word}'" for word in words)
    return there.bool_op("@@")(sa.func.to_tsquery(sa.literal_column("'simple'"), wanted))


def _on_sqlite(connection: Connection, wanted: str) -> sa.ColumnElement[bool]:
    """Use the index for rare words; for common words scan the cases in order, which soon fills a page."""
    rows = _matching(wanted)
    many = len(connection.execute(rows.limit(_MANY)).all()) == _MANY
    if many:
        return sa.exists(rows.where(sa.text("review_words.rowid = reviews.number")))
    return REVIEWS.c.number.in_(rows)


def _matching(wanted: str) -> sa.Select[Any]:
    matches = sa.text("review_words MATCH :wanted").bindparams(wanted=wanted)
    return sa.select(sa.literal_column("rowid")).select_from(sa.text("review_words")).where(matches)
