"""Statements that reach a review store's database past guard."""

from __future__ import annotations

from guard.review.store import Store


def run_past_guard(store: Store, *statements: str) -> None:
    """Run statements in one transaction, as somebody with a client of the database could."""
    with store._database.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
