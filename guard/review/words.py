"""Cases by the words of their question and answer, found in the database's own index of words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from guard.errors import InputError
from guard.review.migrations.tables import REVIEWS
from guard.review.records import storable_text

#: Up to this number of matches, a search on SQLite looks each of them up: some microseconds each.
_FEW = 12_000

#: Up to this number, it walks through the ordered cases with the set of all matches; beyond it, it reads their texts.
_MANY = 50_000

#: Up to this number of matches, by its estimate, PostgreSQL must start from its index of words: to split a text into
#: words takes it far longer than it assumes.
_INDEXED = 50_000

#: Words that are looked for in texts, at most: SQLite's conditions are of limited depth.
_READ = 20


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are looked up, in order.

    Examples:
        >>> split_words("Is 4 g the most?")
        ['Is', '4', 'g', 'the', 'most']
    """
    return re.findall(r"\w+", storable_text(text) or "")


@dataclass(frozen=True, slots=True)
class WordSearch:
    """How cases with some words are selected.

    Attributes:
        source: what to select from, in place of the table of cases.
        condition: holds for these cases.
        first: whether PostgreSQL finds the cases by their words before it orders them.
    """

    source: sa.FromClause
    condition: sa.ColumnElement[bool]
    first: bool = False

    def narrowed(self, query: sa.Select[Any]) -> sa.Select[Any]:
        """Return a query for these cases alone, to be executed by `run_search`."""
        return query.select_from(self.source).where(self.condition).execution_options(**{_FIRST: self.first})


#: Execution option of queries with `WordSearch.first`.
_FIRST = "guard_words_first"


def search_words(connection: Connection, text: str) -> WordSearch:
    """Return the fastest way to select cases with all words of a text.

    Raises:
        InputError: it has no word.
    """
    words = split_words(text)
    if not words:
        raise InputError("The search contains no word", fix="Give letters or digits")
    if connection.dialect.name == "sqlite":
        return _on_sqlite(connection, words)
    condition = _on_postgresql(words)
    return WordSearch(REVIEWS, condition, first=_estimate(connection, condition) < _INDEXED)


def run_search(connection: Connection, query: sa.Select[Any]) -> list[Any]:
    """Return the first column of a query's rows, whether it is a search or not."""
    first = query.get_execution_options().get(_FIRST, False)
    if first:  # an order's index would give the cases in order, and each would be split into words
        connection.exec_driver_sql("SET LOCAL enable_indexscan = off")
    found = list(connection.scalars(query))
    if first:
        connection.exec_driver_sql("SET LOCAL enable_indexscan = on")
    return found


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


def _estimate(connection: Connection, condition: sa.ColumnElement[bool]) -> int:
    """Return how many cases meet a condition by PostgreSQL's statistics."""
    query = sa.select(sa.literal_column("1")).select_from(REVIEWS).where(condition).compile(connection)
    ((plan,),) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}", dict(query.params)).scalars()
    return int(plan["Plan"]["Plan Rows"])


class _InThisOrder(sa.Join):
    """A join whose tables SQLite reads in the order in which they are written."""

    inherit_cache = True


@compiles(_InThisOrder, "sqlite")
def _write_join(join: _InThisOrder, compiler: SQLCompiler, **options: Any) -> str:
    text: str = compiler.visit_join(join, **options)  # type: ignore[no-untyped-call]
    return text.replace(" JOIN ", " CROSS JOIN ", 1)


_WORDS = sa.table("review_words", sa.column("rowid", sa.BigInteger))


def _on_sqlite(connection: Connection, words: list[str]) -> WordSearch:
    """Use the fastest of three ways; SQLite itself knows too little of the words to choose."""
    wanted = " ".join(f'"{word}"' for word in words)
    rows = _matching(wanted)
    limited = rows.limit(_MANY).subquery()
    matches = int(connection.scalar(sa.select(sa.func.count()).select_from(limited)) or 0)
    if matches < _FEW:
        source = _InThisOrder(_WORDS, REVIEWS, REVIEWS.c.number == _WORDS.c.rowid)
        return WordSearch(source, _has(wanted))
    if matches < _MANY:
        # The indexes of orders have the number, so that only cases of the page are read; "+" keeps SQLite to them.
        return WordSearch(REVIEWS, sa.literal_column("+reviews.number").in_(rows))
    looked_up = sa.exists(rows.where(sa.text("review_words.rowid = reviews.number")))
    return WordSearch(REVIEWS, _in_text(words, looked_up=looked_up))


def _in_text(words: list[str], *, looked_up: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Return the condition for texts with all words, which mostly needs no look at the index: that takes far longer.

    The index takes letters with and without accents for the same, so only texts and words in ASCII can be compared.
    """
    text = REVIEWS.c.question + sa.literal_column("' '") + sa.func.coalesce(REVIEWS.c.answer, sa.literal_column("''"))
    is_ascii = sa.func.length(sa.cast(text, sa.LargeBinary)) == sa.func.length(text)
    read = [word.lower() for word in words if word.isascii() and word.isalnum()][:_READ]
    spaced = sa.func.lower(sa.literal_column("' '", sa.Text) + text + sa.literal_column("' '"), type_=sa.Text)
    has = sa.and_(sa.true(), *(spaced.op("GLOB")(f"*[^0-9a-z]{word}[^0-9a-z]*") for word in read))
    if len(read) == len(words):
        return sa.or_(sa.and_(is_ascii, has), sa.and_(~is_ascii, looked_up))
    return sa.and_(sa.or_(~is_ascii, has), looked_up)


def _matching(wanted: str) -> sa.Select[Any]:
    return sa.select(_WORDS.c.rowid).where(_has(wanted))


def _has(wanted: str) -> sa.ColumnElement[bool]:
    return sa.literal_column("review_words").bool_op("MATCH")(sa.literal(wanted))
