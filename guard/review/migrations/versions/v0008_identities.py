"""Accounts of people who sign in at an OpenID Connect provider: which person there an account belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("access_users", sa.Column("identity", sa.Text))
    op.create_index("access_users_by_identity", "access_users", ["identity"], unique=True)


def downgrade() -> None:
    op.drop_index("access_users_by_identity", "access_users")
    op.drop_column("access_users", "identity")
