"""The trail holds the whole verdict, cases and verdicts cannot be changed, and identical cases are counted.

The triggers keep a slip or a stray statement from forging a verdict. Who may drop triggers may do anything;
for that, reading compares each verdict with the trail (see docs/explanation/threat-model.md).
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

#: What a decision sets in a review; all else in a case stays as it came in.
_DECIDED = ("status", "final_answer", "draft", "reviewer", "note", "decided_at")
_CASE = (
    *("id", "decision_id", "created_at", "route", "policy", "model", "question", "prompt", "answer"),
    *("p_wrong", "rule", "reason", "attempts", "metadata", "fingerprint"),
)


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("reviews", sa.Column("draft", sa.Text))
    op.add_column("reviews", sa.Column("fingerprint", sa.Text))
    for name in ("draft", "final_answer", "note"):
        op.add_column("review_events", sa.Column(name, sa.Text))
    op.create_table(
        "review_repeats",
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("review_id", sa.Text, sa.ForeignKey("reviews.id"), nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("p_wrong", sa.Float),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
    )
    op.create_index("review_repeats_by_review", "review_repeats", ["review_id", "created_at", "decision_id"])
    _complete_old_verdicts(sqlite)
    _index("reviews_open_once", "reviews", "fingerprint", "status = 'pending'")
    _index("review_events_one_verdict", "review_events", "review_id", "what <> 'added'")
    if sqlite:
        _guard_sqlite()
    else:
        _guard_postgresql()


def _complete_old_verdicts(sqlite: bool) -> None:
    """Until now approved answers counted as right, and edited and rejected ones as wrong."""
    op.execute(
        "UPDATE reviews SET draft = CASE status WHEN 'approved' THEN 'right' ELSE 'wrong' END "
        "WHERE status <> 'pending' AND answer IS NOT NULL"
    )
    if sqlite:
        op.execute("DROP TRIGGER review_events_no_update")
    else:
        op.execute("DROP TRIGGER review_events_append_only ON review_events")
    for name in ("draft", "final_answer", "note"):
        op.execute(
            f"UPDATE review_events SET {name} = (SELECT {name} FROM reviews WHERE reviews.id = review_id) "
            "WHERE what <> 'added'"
        )


def _index(name: str, table: str, column: str, where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, [column], unique=True, sqlite_where=condition, postgresql_where=condition)


# -- SQLite ------------------------------------------------------------------------------------


def _guard_sqlite() -> None:
    op.execute("DROP TRIGGER review_events_no_delete")
    for table in ("review_events", "review_repeats"):
        _abort(f"{table}_no_update", f"BEFORE UPDATE ON {table}", "", f"{table} is append-only")
    for table in ("reviews", "review_events", "review_repeats"):
        _abort(f"{table}_no_delete", f"BEFORE DELETE ON {table}", "", f"{table} is append-only")
    changed = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in _CASE)
    op.execute(
        "CREATE TRIGGER reviews_keep_verdicts BEFORE UPDATE ON reviews BEGIN SELECT CASE "
        f"WHEN {changed} THEN RAISE(ABORT, 'a case cannot be changed') "
        "WHEN OLD.status <> 'pending' THEN RAISE(ABORT, 'a verdict cannot be changed') "
        f"WHEN NOT {_in_the_trail('IS')} THEN RAISE(ABORT, 'the verdict is not in the audit trail') END; END"
    )
    added = "BEFORE INSERT ON reviews"
    _abort("reviews_begin_pending", added, "WHEN NEW.status <> 'pending'", "a case begins pending")
    # REPLACE would delete what is there, past the triggers that forbid deleting.
    _ignore(
        "reviews",
        "rowid = NEW.rowid OR id = NEW.id OR decision_id = NEW.decision_id",
        "status = 'pending' AND fingerprint = NEW.fingerprint",
    )
    _ignore("review_repeats", "rowid = NEW.rowid OR decision_id = NEW.decision_id")
    _abort(
        "review_events_no_replace",
        "BEFORE INSERT ON review_events",
        "WHEN EXISTS (SELECT 1 FROM review_events WHERE number = NEW.number "
        "OR (review_id = NEW.review_id AND what <> 'added' AND NEW.what <> 'added'))",
        "review_events is append-only",
    )


def _abort(name: str, on: str, when: str, says: str) -> None:
    op.execute(f"CREATE TRIGGER {name} {on} {when} BEGIN SELECT RAISE(ABORT, '{says}'); END")


def _ignore(table: str, *there: str) -> None:
    known = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {condition})" for condition in there)
    op.execute(
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {known} BEGIN SELECT RAISE(IGNORE); END"
    )


def _in_the_trail(same: str) -> str:
    kept = {"status": "what", "reviewer": "who", "decided_at": "at"}
    pairs = " AND ".join(f"trail.{kept.get(name, name)} {same} NEW.{name}" for name in _DECIDED)
    return f"EXISTS (SELECT 1 FROM review_events AS trail WHERE trail.review_id = NEW.id AND {pairs})"


# -- PostgreSQL --------------------------------------------------------------------------------


def _guard_postgresql() -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION review_events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in ("review_events", "review_repeats", "reviews"):
        verbs = "DELETE" if table == "reviews" else "UPDATE OR DELETE"
        for name, on, each in (("append_only", verbs, "ROW"), ("no_truncate", "TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {table}_{name} BEFORE {on} ON {table} "
                f"FOR EACH {each} EXECUTE FUNCTION review_events_append_only()"
            )
    # JSON has no equality in PostgreSQL; its text has.
    changed = " OR ".join(f"NEW.{name}::text IS DISTINCT FROM OLD.{name}::text" for name in _CASE)
    op.execute(
        "CREATE FUNCTION reviews_keep_verdicts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_OP = 'INSERT' THEN "
        "IF NEW.status <> 'pending' THEN RAISE EXCEPTION 'a case begins pending'; END IF; "
        f"ELSIF {changed} THEN RAISE EXCEPTION 'a case cannot be changed'; "
        "ELSIF OLD.status <> 'pending' THEN RAISE EXCEPTION 'a verdict cannot be changed'; "
        f"ELSIF NOT {_in_the_trail('IS NOT DISTINCT FROM')} THEN "
        "RAISE EXCEPTION 'the verdict is not in the audit trail'; END IF; "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER reviews_keep_verdicts BEFORE INSERT OR UPDATE ON reviews "
        "FOR EACH ROW EXECUTE FUNCTION reviews_keep_verdicts()"
    )
