"""An index for the few waiting cases that have an opinion: without it each page of them reads all that wait."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    some = sa.text("opinions > 0")
    op.create_index(
        "reviews_with_opinions", "reviews", ["status", "sort_key", "id"], sqlite_where=some, postgresql_where=some
    )


def downgrade() -> None:
    op.drop_index("reviews_with_opinions", "reviews")
