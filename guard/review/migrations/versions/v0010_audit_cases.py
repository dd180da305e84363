"""Audit cases: accepted answers that people check, the certificates that they watch, and the key that draws them.

What a case is cannot be changed later, and a suspension cannot be lifted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_KEPT = ("kind", "certificate", "audit_rate")
_INDEXES = {
    "reviews_of_certificate": (["certificate", "number"], "certificate IS NOT NULL"),
    "reviews_audited": (["created_at"], "kind = 'audit'"),
}


def upgrade() -> None:
    op.add_column("reviews", sa.Column("kind", sa.Text, nullable=False, server_default="escalation"))
    op.add_column("reviews", sa.Column("certificate", sa.Text))
    op.add_column("reviews", sa.Column("audit_rate", sa.Float))
    for name, (columns, where) in _INDEXES.items():
        condition = sa.text(where)
        op.create_index(name, "reviews", columns, sqlite_where=condition, postgresql_where=condition)
    op.create_table(
        "watched_certificates",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("route", sa.Text),
        sa.Column("risk", sa.Float, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("rate", sa.Float, nullable=False),
        sa.Column("false_alarms", sa.Float, nullable=False),
        sa.Column("since", sa.Text, nullable=False),
        sa.Column("shift", sa.JSON, nullable=False),
        sa.Column("shifted_at", sa.Text),
        sa.Column("suspended_at", sa.Text),
        sa.Column("suspended_why", sa.Text),
    )
    op.create_table(
        "sampling_keys",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _guard_sqlite() -> None:
    changed = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in _KEPT)
    op.execute(
        f"CREATE TRIGGER reviews_keep_kind BEFORE UPDATE ON reviews WHEN {changed} "
        "BEGIN SELECT RAISE(ABORT, 'a case cannot be changed'); END"
    )
    lifted = "OLD.suspended_at IS NOT NULL AND NEW.suspended_at IS NOT OLD.suspended_at OR NEW.id IS NOT OLD.id"
    op.execute(
        f"CREATE TRIGGER watched_certificates_stay BEFORE UPDATE ON watched_certificates WHEN {lifted} "
        "BEGIN SELECT RAISE(ABORT, 'a suspension cannot be lifted'); END"
    )
    for table in ("watched_certificates", "sampling_keys"):
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} cannot be deleted'); END"
        )
    op.execute(
        "CREATE TRIGGER watched_certificates_no_replace BEFORE INSERT ON watched_certificates "
        "WHEN EXISTS (SELECT 1 FROM watched_certificates WHERE id = NEW.id) BEGIN SELECT RAISE(IGNORE); END"
    )


def _guard_postgresql() -> None:
    changed = " OR ".join(f"NEW.{name} IS DISTINCT FROM OLD.{name}" for name in _KEPT)
    _refuse("reviews_keep_kind", "reviews", "UPDATE", changed, "a case cannot be changed")
    lifted = "OLD.suspended_at IS NOT NULL AND NEW.suspended_at IS DISTINCT FROM OLD.suspended_at OR NEW.id <> OLD.id"
    _refuse("watched_certificates_stay", "watched_certificates", "UPDATE", lifted, "a suspension cannot be lifted")
    for table in ("watched_certificates", "sampling_keys"):
        _refuse(f"{table}_no_delete", table, "DELETE", "true", f"{table} cannot be deleted")


def _refuse(name: str, table: str, verb: str, condition: str, says: str) -> None:
    kept = "OLD" if verb == "DELETE" else "NEW"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {condition} THEN RAISE EXCEPTION '{says}'; END IF; RETURN {kept}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")


def downgrade() -> None:
    """Return to 0009, which has one kind of case: audit cases become ordinary ones."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute("DROP TRIGGER reviews_keep_kind" + ("" if sqlite else " ON reviews"))
    op.drop_table("watched_certificates")
    op.drop_table("sampling_keys")
    if not sqlite:
        for name in ("reviews_keep_kind", "watched_certificates_stay"):
            op.execute(f"DROP FUNCTION {name}()")
        for table in ("watched_certificates", "sampling_keys"):
            op.execute(f"DROP FUNCTION {table}_no_delete()")
    for name in _INDEXES:
        op.drop_index(name, "reviews")
    for name in _KEPT:
        op.drop_column("reviews", name)
