"""Notifications: endpoints, and the outbox of what they are still to get."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("with_text", sa.SmallInteger, nullable=False),
        sa.Column("allow_private", sa.SmallInteger, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("off_at", sa.Text),
        sa.Column("off_reason", sa.Text),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("endpoint", sa.Text, sa.ForeignKey("endpoints.name"), nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("review_id", sa.Text, sa.ForeignKey("reviews.id"), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", sa.Text),
        sa.Column("lease_until", sa.Text),
        sa.Column("delivered_at", sa.Text),
        sa.Column("dead_at", sa.Text),
        sa.Column("cancelled_at", sa.Text),
        sa.Column("last_error", sa.Text),
    )
    op.create_index("outbox_next", "outbox", ["next_at"])
    op.create_index("outbox_by_review", "outbox", ["review_id", "event"])
    op.create_index("outbox_by_endpoint", "outbox", ["endpoint", "created_at"])


def downgrade() -> None:
    op.drop_table("outbox")
    op.drop_table("endpoints")
