"""What API keys use in a minute, which all servers of a database count together."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "access_minutes",
        sa.Column("prefix", sa.Text, sa.ForeignKey("access_keys.prefix"), primary_key=True),
        sa.Column("began_at", sa.Text, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("access_minutes")
