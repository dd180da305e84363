"""Who may use guard: users, API keys, sessions, one-time links and failed logins.

No secret is kept: passwords as argon2id, everything that guard makes itself as SHA-256.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "access_users",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("grants", sa.JSON, nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Text),
        sa.Column("disabled_at", sa.Text),
    )
    op.create_table(
        "access_keys",
        sa.Column("prefix", sa.Text, primary_key=True),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("grants", sa.JSON, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("tokens_per_month", sa.BigInteger),
        sa.Column("used_tokens", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("used_month", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Text),
        sa.Column("ends_at", sa.Text),
        sa.Column("revoked_at", sa.Text),
    )
    working = sa.text("revoked_at IS NULL")
    op.create_index(
        "access_keys_one_name", "access_keys", ["name"], unique=True, sqlite_where=working, postgresql_where=working
    )
    _create_what_passes()


def _create_what_passes() -> None:
    op.create_table(
        "access_sessions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("access_users.id"), nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Text, nullable=False),
        sa.Column("ends_at", sa.Text, nullable=False),
    )
    op.create_index("access_sessions_by_user", "access_sessions", ["user_id"])
    op.create_table(
        "access_links",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("access_users.id")),
        sa.Column("ends_at", sa.Text, nullable=False),
    )
    op.create_table(
        "access_failures",
        sa.Column("login", sa.Text, primary_key=True),
        sa.Column("tries", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("access_failures", "access_links", "access_sessions", "access_keys", "access_users"):
        op.drop_table(table)
