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
        return _on_sqlite(connection, words)
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


def _on_sqlite(connection: Connection, words: list[str]) -> sa.ColumnElement[bool]:
    """Use the index for rare words; for common words scan the cases in order, which soon fills a page."""
    rows = _matching(" ".join(f'"{word}"' for word in words))
    found = rows.limit(_MANY).subquery()
    if connection.scalar(sa.select(sa.func.count()).select_from(found)) == _MANY:
        looked_up = sa.exists(rows.where(sa.text("review_words.rowid = reviews.number")))
        return sa.and_(*_could_have(words), looked_up)
    return REVIEWS.c.number.in_(rows)


def _could_have(words: list[str]) -> list[sa.ColumnElement[bool]]:
    """Return conditions that every case with these words meets and most others do not: cheaper than the index by far.

    The index takes letters with and without accents for the same, so only texts and words in ASCII can be compared.
    """
    text = REVIEWS.c.question + sa.literal_column("' '") + sa.func.coalesce(REVIEWS.c.answer, sa.literal_column("''"))
    other = sa.func.length(sa.cast(text, sa.LargeBinary)) != sa.func.length(text)
    plain = [word for word in words if word.isascii() and word.isalnum()]
    return [sa.or_(text.like(f"%{word}%"), other) for word in plain]


def _matching(wanted: str) -> sa.Select[Any]:
    matches = sa.text("review_words MATCH :wanted").bindparams(wanted=wanted)
    return sa.select(sa.literal_column("rowid")).select_from(sa.text("review_words")).where(matches)
