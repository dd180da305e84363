"""Indexes of orders with the number of each case: a search for words on SQLite walks through them without the cases."""

from alembic import op

revision = "0014"
down_revision = "0013"

_INDEXES = {
    "reviews_by_status": ["status", "created_at", "id"],
    "reviews_by_due": ["status", "sort_key", "id"],
    "reviews_by_route": ["route", "status", "sort_key", "id"],
    "reviews_by_model": ["model", "status", "sort_key", "id"],
    "reviews_by_doubt": ["status", "doubt", "id"],
    "reviews_by_time": ["created_at", "id"],
    "reviews_by_decision_time": ["decided_at", "id"],
}


def upgrade() -> None:
    for name, columns in _INDEXES.items():
        op.drop_index(name, "reviews")
        op.create_index(name, "reviews", [*columns, "number"])


def downgrade() -> None:
    for name, columns in _INDEXES.items():
        op.drop_index(name, "reviews")
        op.create_index(name, "reviews", columns)
