"""The audit trail: who did what to a review, and when. Rows are only ever added."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "review_events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("review_id", sa.Text, sa.ForeignKey("reviews.id"), nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
    )
    op.create_index("review_events_by_review", "review_events", ["review_id", "number"])
    # What is known of reviews that are older than the trail.
    op.execute(
        "INSERT INTO review_events (review_id, at, who, what) "
        "SELECT id, created_at, 'guard', 'added' FROM reviews ORDER BY created_at, id"
    )
    op.execute(
        "INSERT INTO review_events (review_id, at, who, what) "
        "SELECT id, decided_at, reviewer, status FROM reviews "
        "WHERE status <> 'pending' ORDER BY decided_at, id"
    )
    if op.get_bind().dialect.name == "sqlite":
        _append_only_sqlite()
    else:
        _append_only_postgresql()


def _append_only_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER review_events_no_{verb.lower()} BEFORE {verb} ON review_events "
            "BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END"
        )


def _append_only_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION review_events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'review_events is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER review_events_append_only BEFORE UPDATE OR DELETE ON review_events "
        "FOR EACH ROW EXECUTE FUNCTION review_events_append_only()"
    )
