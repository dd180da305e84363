"""Spans that a reviewer marks as wrong or right: a part of the verdict, in the case and in the trail."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_TRAIL = (
    "SELECT trail.span_marks FROM review_events AS trail WHERE trail.number = (SELECT max(number) FROM review_events "
    "WHERE review_id = NEW.id AND what IN ('approved', 'edited', 'rejected', 'undone'))"
)
_SAYS = "the marks of spans are not in the audit trail"


def upgrade() -> None:
    for table in ("reviews", "review_events"):
        op.add_column(table, sa.Column("span_marks", sa.JSON))
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER reviews_keep_marks BEFORE UPDATE ON reviews "
            f"WHEN NEW.span_marks IS NOT CASE NEW.status WHEN 'pending' THEN NULL ELSE ({_TRAIL}) END "
            f"BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END"
        )
        return
    kept = _TRAIL.replace("trail.span_marks FROM", "trail.span_marks::text FROM")  # JSON has no equality; its text has
    op.execute(
        "CREATE FUNCTION reviews_keep_marks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF (NEW.span_marks::text IS DISTINCT FROM CASE NEW.status WHEN 'pending' THEN NULL ELSE ({kept}) END) "
        f"THEN RAISE EXCEPTION '{_SAYS}'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER reviews_keep_marks BEFORE UPDATE ON reviews FOR EACH ROW EXECUTE FUNCTION reviews_keep_marks()"
    )


def downgrade() -> None:
    """Return to 0015, which has no place for marks: they are deleted."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute("DROP TRIGGER reviews_keep_marks" + ("" if sqlite else " ON reviews"))
    if not sqlite:
        op.execute("DROP FUNCTION reviews_keep_marks()")
    for table in ("reviews", "review_events"):
        op.drop_column(table, "span_marks")
