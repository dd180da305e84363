"""The audit log: entries in a Merkle tree, what opens their hashes, and checkpoints.

Entries and checkpoints are only added. What opens a hash may be erased, so that texts can be forgotten while the proofs
stay. Who may drop triggers may do anything; copies of checkpoints that are kept elsewhere show it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_TABLES = ("audit_entries", "audit_checkpoints", "audit_texts")


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("leaf", sa.Text, nullable=False),
    )
    op.create_index("audit_entries_by_subject", "audit_entries", ["subject", "number"])
    op.create_table(
        "audit_texts",
        sa.Column("number", sa.Integer, sa.ForeignKey("audit_entries.number"), primary_key=True),
        sa.Column("field", sa.Text, primary_key=True),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("content", sa.Text),
    )
    op.create_index("audit_texts_by_age", "audit_texts", ["at"])
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("root", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("subtrees", sa.JSON, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_append_only()")


def _guard_sqlite() -> None:
    for table in _TABLES:
        for verb in ("UPDATE",) if table == "audit_texts" else ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    # REPLACE would delete what is there, past the triggers that forbid deleting.
    for table, same in (
        ("audit_entries", "number = NEW.number"),
        ("audit_checkpoints", "number = NEW.number"),
        ("audit_texts", "number = NEW.number AND field = NEW.field"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in _TABLES:
        rows = "UPDATE" if table == "audit_texts" else "UPDATE OR DELETE"
        for name, on, each in (("append_only", rows, "ROW"), ("no_truncate", "TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {table}_{name} BEFORE {on} ON {table} "
                f"FOR EACH {each} EXECUTE FUNCTION audit_append_only()"
            )
