"""Indexes without which PostgreSQL reads a million rows: words of waiting cases, and what a person has dealt with.

A search among waiting cases read the decided ones, too; a claim read all events for the person's opinions and skips.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    some = sa.text("what IN ('opinion', 'skipped')")
    op.create_index(
        "review_events_dealt_with", "review_events", ["who", "review_id"], sqlite_where=some, postgresql_where=some
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE INDEX review_words_pending ON reviews USING gin "
            "(to_tsvector('simple', question || ' ' || coalesce(answer, ''))) WHERE status = 'pending'"
        )


def downgrade() -> None:
    op.drop_index("review_events_dealt_with", "review_events")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP INDEX review_words_pending")
