"""The review queue."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("decision_id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("route", sa.Text),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("p_wrong", sa.Float),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("final_answer", sa.Text),
        sa.Column("reviewer", sa.Text),
        sa.Column("note", sa.Text),
        sa.Column("decided_at", sa.Text),
        sa.CheckConstraint("status IN ('pending', 'approved', 'edited', 'rejected')", name="reviews_known_status"),
        sa.CheckConstraint("(status = 'pending') = (decided_at IS NULL)", name="reviews_decided_has_time"),
    )
    op.create_index("reviews_by_status", "reviews", ["status", "created_at", "id"])
