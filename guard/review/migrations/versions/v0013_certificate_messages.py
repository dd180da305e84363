"""Messages about certificates, which are about no case."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    with op.batch_alter_table("outbox") as outbox:
        outbox.alter_column("review_id", existing_type=sa.Text, nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM outbox WHERE review_id IS NULL")
    with op.batch_alter_table("outbox") as outbox:
        outbox.alter_column("review_id", existing_type=sa.Text, nullable=False)
