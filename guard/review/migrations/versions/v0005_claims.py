"""Claims, due times, priorities, second opinions, undo, and text search.

The triggers of 0003 are replaced: a verdict can be undone until ``final_at``, a claim belongs to one person until it
ends, and each change needs its event in the trail first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

#: What a decision sets in a review.
_DECIDED = ("status", "final_answer", "draft", "reviewer", "note", "decided_at")
_BEFORE = (
    *("id", "decision_id", "created_at", "route", "policy", "model", "question", "prompt", "answer"),
    *("p_wrong", "rule", "reason", "attempts", "metadata", "fingerprint"),
)
#: What stays in a case as it came in.
_CASE = (
    *_BEFORE,
    *("scorer", "due_at", "priority", "reviews_wanted", "late_action", "late_text", "number", "sort_key", "doubt"),
)
_VERDICTS = "('approved', 'edited', 'rejected')"
_NUMBERS = ("priority", "reviews_wanted", "opinions", "disputed")
_TEXTS = (
    *("scorer", "due_at", "late_action", "late_text", "sort_key", "claimed_by", "claimed_at", "claimed_until"),
    *("assigned_to", "final_at", "late_at"),
)
_INDEXES = {
    "reviews_by_due": ["status", "sort_key", "id"],
    "reviews_by_route": ["route", "status", "sort_key", "id"],
    "reviews_by_model": ["model", "status", "sort_key", "id"],
    "reviews_by_doubt": ["status", "doubt", "id"],
    "reviews_by_time": ["created_at", "id"],
    "reviews_by_decision_time": ["decided_at", "id"],
}
_OPEN = "status = 'pending' AND late_at IS NULL"


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    _drop_old_triggers(sqlite)
    _add_columns(sqlite)
    op.execute(
        "UPDATE reviews SET sort_key = 'none ' || created_at, doubt = coalesce(p_wrong, 2), final_at = decided_at"
    )
    op.drop_index("reviews_open_once", "reviews")
    op.drop_index("review_events_one_verdict", "review_events")
    for name, columns in _INDEXES.items():
        op.create_index(name, "reviews", columns)
    op.create_index("reviews_by_number", "reviews", ["number"], unique=True)
    _partial("reviews_open_once", ["fingerprint"], _OPEN, unique=True)
    # With the status in front SQLite sees that the index has the order of what is claimed next.
    _partial("reviews_to_claim", ["status", "priority", "sort_key", "id"], "late_at IS NULL")
    _partial("reviews_due", ["due_at"], _OPEN)
    _partial("reviews_claimed", ["claimed_by"], "claimed_by IS NOT NULL")
    if sqlite:
        _search_on_sqlite()
        _guard_sqlite()
    else:
        _search_on_postgresql()
        _guard_postgresql()


def _drop_old_triggers(sqlite: bool) -> None:
    if sqlite:
        for name in ("reviews_keep_verdicts", "reviews_no_replace", "review_events_no_replace"):
            op.execute(f"DROP TRIGGER {name}")
        return
    op.execute("DROP TRIGGER reviews_keep_verdicts ON reviews")
    op.execute("DROP FUNCTION reviews_keep_verdicts()")


def _add_columns(sqlite: bool) -> None:
    for name in _TEXTS:
        op.add_column("reviews", sa.Column(name, sa.Text))
    for name in _NUMBERS:
        default = "1" if name in ("priority", "reviews_wanted") else "0"
        op.add_column("reviews", sa.Column(name, sa.SmallInteger, nullable=False, server_default=default))
    op.add_column("reviews", sa.Column("doubt", sa.Float))
    op.add_column("reviews", sa.Column("number", sa.BigInteger))
    for name in ("verdict", "whom"):
        op.add_column("review_events", sa.Column(name, sa.Text))
    for name in ("due_at", "late_action", "late_text"):
        op.add_column("review_repeats", sa.Column(name, sa.Text))
    if sqlite:
        op.execute("UPDATE reviews SET number = rowid")
        return
    op.execute("CREATE SEQUENCE reviews_number OWNED BY reviews.number")
    op.execute("UPDATE reviews SET number = nextval('reviews_number')")


def _partial(name: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, "reviews", columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


# -- search ------------------------------------------------------------------------------------


def _search_on_sqlite() -> None:
    """Index the words of questions and answers; the texts themselves stay in ``reviews``."""
    op.execute(
        "CREATE VIRTUAL TABLE review_words USING fts5("
        "question, answer, content='reviews', content_rowid='number', tokenize='unicode61')"
    )
    op.execute("INSERT INTO review_words (rowid, question, answer) SELECT number, question, answer FROM reviews")
    op.execute(
        "CREATE TRIGGER reviews_words AFTER INSERT ON reviews BEGIN "
        "INSERT INTO review_words (rowid, question, answer) VALUES (NEW.number, NEW.question, NEW.answer); END"
    )


def _search_on_postgresql() -> None:
    op.execute(
        "CREATE INDEX review_words ON reviews USING gin "
        "(to_tsvector('simple', question || ' ' || coalesce(answer, '')))"
    )


# -- what the database allows ------------------------------------------------------------------


def _newest(review: str) -> str:
    """Return the number of the newest event that is a verdict or takes one back."""
    return (
        "(SELECT max(trail.number) FROM review_events AS trail "
        f"WHERE trail.review_id = {review} AND trail.what IN ('approved', 'edited', 'rejected', 'undone'))"
    )


def _refusals(same: str) -> dict[str, str]:
    """Return what an update must not do, each with what the database says; `same` compares NULLs too."""
    differs = {"IS": "IS NOT", "IS NOT DISTINCT FROM": "IS DISTINCT FROM"}[same]
    text = "" if same == "IS" else "::text"  # JSON has no equality in PostgreSQL; its text has
    changed = " OR ".join(f"NEW.{name}{text} {differs} OLD.{name}{text}" for name in _CASE)
    kept = {"status": "what", "reviewer": "who", "decided_at": "at"}
    pairs = " AND ".join(f"trail.{kept.get(name, name)} {same} NEW.{name}" for name in _DECIDED)
    verdict = f"EXISTS (SELECT 1 FROM review_events AS trail WHERE trail.number = {_newest('NEW.id')} AND {pairs})"
    undone = (
        "EXISTS (SELECT 1 FROM review_events AS trail "
        f"WHERE trail.number = {_newest('NEW.id')} AND trail.what = 'undone' AND trail.at < OLD.final_at)"
    )
    event = "EXISTS (SELECT 1 FROM review_events AS trail WHERE trail.review_id = NEW.id AND "
    opinions = (
        "(SELECT coalesce(sum(CASE what WHEN 'opinion' THEN 1 ELSE -1 END), 0) FROM review_events AS trail "
        "WHERE trail.review_id = NEW.id AND what IN ('opinion', 'withdrawn'))"
    )
    empty = " AND ".join(f"NEW.{name} IS NULL" for name in (*_DECIDED[1:], "final_at"))
    unclaimed = "NEW.claimed_by IS NULL AND NEW.claimed_at IS NULL AND NEW.claimed_until IS NULL"
    taken = "OLD.claimed_by IS NOT NULL AND OLD.claimed_until >"
    return {
        changed: "a case cannot be changed",
        f"OLD.status <> 'pending' AND NOT (NEW.status = 'pending' AND {undone})": "a verdict cannot be changed",
        f"NEW.status = 'pending' AND NOT ({empty})": "the verdict is not in the audit trail",
        f"NEW.status <> 'pending' AND NOT ({verdict})": "the verdict is not in the audit trail",
        "NEW.status <> 'pending' AND (NEW.final_at IS NULL OR NEW.final_at < NEW.decided_at)": (
            "a verdict becomes final after it is given"
        ),
        f"NEW.status <> 'pending' AND {taken} NEW.decided_at AND OLD.claimed_by <> NEW.reviewer": (
            "somebody else has claimed the case"
        ),
        "NEW.status <> 'pending' AND NEW.reviews_wanted > 1 AND NEW.opinions < 2": "the case wants a second opinion",
        f"NEW.opinions <> OLD.opinions AND NEW.opinions <> {opinions}": "the opinions are not in the audit trail",
        f"NEW.status <> 'pending' AND NOT ({unclaimed})": "a decided case cannot be claimed",
        f"NOT ({unclaimed}) AND (NEW.claimed_by IS NULL OR NEW.claimed_at IS NULL OR NEW.claimed_until IS NULL)": (
            "a claim has a person, a beginning and an end"
        ),
        f"NEW.claimed_by IS NOT NULL AND NEW.claimed_at {differs} OLD.claimed_at AND NOT "
        f"{event} trail.what = 'claimed' AND trail.who = NEW.claimed_by AND trail.at = NEW.claimed_at)": (
            "the claim is not in the audit trail"
        ),
        f"NEW.claimed_by IS NOT NULL AND NEW.claimed_by <> OLD.claimed_by AND {taken} NEW.claimed_at": (
            "somebody else has claimed the case"
        ),
        "NEW.claimed_by IS NOT NULL AND NEW.claimed_by <> NEW.assigned_to": "the case is assigned to somebody else",
        f"NEW.late_at {differs} OLD.late_at AND NOT (OLD.late_at IS NULL AND NEW.status = 'pending' "
        "AND NEW.due_at IS NOT NULL AND NEW.due_at <= NEW.late_at "
        f"AND {event} trail.what = 'late' AND trail.at = NEW.late_at))": (
            "a case is late once, and after its due time"
        ),
    }


def _trail_refusals(new: str = "NEW") -> dict[str, str]:
    newest = f"(SELECT what FROM review_events WHERE number = {_newest(f'{new}.review_id')})"
    return {
        f"{new}.what IN {_VERDICTS} AND {newest} IN {_VERDICTS}": "the case has a verdict already",
        f"{new}.what = 'undone' AND coalesce({newest}, 'undone') = 'undone'": "there is no verdict to undo",
    }


def _guard_sqlite() -> None:
    # A row that takes another's rowid would delete it, with UPDATE OR REPLACE.
    refusals = {"NEW.rowid <> OLD.rowid": "a case cannot be changed", **_refusals("IS")}
    cases = " ".join(f"WHEN {condition} THEN RAISE(ABORT, '{says}')" for condition, says in refusals.items())
    op.execute(f"CREATE TRIGGER reviews_keep_verdicts BEFORE UPDATE ON reviews BEGIN SELECT CASE {cases} END; END")
    trail = " ".join(f"WHEN {condition} THEN RAISE(ABORT, '{says}')" for condition, says in _trail_refusals().items())
    op.execute(
        "CREATE TRIGGER review_events_no_replace BEFORE INSERT ON review_events BEGIN SELECT CASE "
        "WHEN EXISTS (SELECT 1 FROM review_events WHERE number = NEW.number) "
        f"THEN RAISE(ABORT, 'review_events is append-only') {trail} END; END"
    )
    _no_replacing_on_sqlite(_OPEN)


def _no_replacing_on_sqlite(still_open: str) -> None:
    """REPLACE would delete what is there, past the triggers that forbid deleting."""
    known = (
        "rowid = NEW.rowid OR id = NEW.id OR decision_id = NEW.decision_id",
        f"{still_open} AND fingerprint = NEW.fingerprint",
    )
    there = " OR ".join(f"EXISTS (SELECT 1 FROM reviews WHERE {condition})" for condition in known)
    op.execute(
        f"CREATE TRIGGER reviews_no_replace BEFORE INSERT ON reviews WHEN {there} BEGIN SELECT RAISE(IGNORE); END"
    )


def _guard_postgresql() -> None:
    updates = _raising(_refusals("IS NOT DISTINCT FROM"))
    op.execute(
        "CREATE FUNCTION reviews_keep_verdicts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_OP = 'INSERT' THEN "
        "IF NEW.status <> 'pending' THEN RAISE EXCEPTION 'a case begins pending'; END IF; "
        "NEW.number := nextval('reviews_number'); "
        f"ELSE {updates} END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER reviews_keep_verdicts BEFORE INSERT OR UPDATE ON reviews "
        "FOR EACH ROW EXECUTE FUNCTION reviews_keep_verdicts()"
    )
    op.execute(
        "CREATE FUNCTION review_events_in_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"{_raising(_trail_refusals())} RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER review_events_in_order BEFORE INSERT ON review_events "
        "FOR EACH ROW EXECUTE FUNCTION review_events_in_order()"
    )


def _raising(refusals: dict[str, str]) -> str:
    return " ".join(f"IF {condition} THEN RAISE EXCEPTION '{says}'; END IF;" for condition, says in refusals.items())


# -- back to 0004 ------------------------------------------------------------------------------


def downgrade() -> None:
    """Return to 0004, which has no place for claims, opinions and what was undone: their events are deleted."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    _drop_new_triggers(sqlite)
    stays = (
        "what = 'added' OR number IN (SELECT max(number) FROM review_events "
        "WHERE what IN ('approved', 'edited', 'rejected') GROUP BY review_id) "
        "AND review_id IN (SELECT id FROM reviews WHERE status <> 'pending')"
    )
    op.execute(f"DELETE FROM review_events WHERE NOT ({stays})")
    for name in (*_INDEXES, "reviews_by_number", "reviews_open_once", "reviews_to_claim", "reviews_due"):
        op.drop_index(name, "reviews")
    op.drop_index("reviews_claimed", "reviews")
    for name in (*_TEXTS, *_NUMBERS, "doubt", "number"):
        op.drop_column("reviews", name)
    for name in ("verdict", "whom"):
        op.drop_column("review_events", name)
    for name in ("due_at", "late_action", "late_text"):
        op.drop_column("review_repeats", name)
    _open_once_again()
    _restore_old_triggers(sqlite)


def _drop_new_triggers(sqlite: bool) -> None:
    if sqlite:
        names = ("reviews_words", "reviews_keep_verdicts", "reviews_no_replace", "reviews_no_delete")
        for name in (*names, "review_events_no_replace", "review_events_no_delete"):
            op.execute(f"DROP TRIGGER {name}")
        op.execute("DROP TABLE review_words")
        return
    op.execute("DROP INDEX review_words")
    for table, name in (("reviews", "reviews_keep_verdicts"), ("review_events", "review_events_in_order")):
        op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute(f"DROP FUNCTION {name}()")
    op.execute("DROP TRIGGER review_events_append_only ON review_events")


def _open_once_again() -> None:
    """A late case and a later identical one may both wait here; 0004 allows one, so the later has no fingerprint."""
    op.execute(
        "UPDATE reviews SET fingerprint = NULL WHERE status = 'pending' AND id NOT IN "
        "(SELECT min(id) FROM reviews WHERE status = 'pending' GROUP BY fingerprint)"
    )
    _partial("reviews_open_once", ["fingerprint"], "status = 'pending'", unique=True)
    condition = sa.text("what <> 'added'")
    op.create_index(
        "review_events_one_verdict",
        "review_events",
        ["review_id"],
        unique=True,
        sqlite_where=condition,
        postgresql_where=condition,
    )


def _restore_old_triggers(sqlite: bool) -> None:
    same = "IS" if sqlite else "IS NOT DISTINCT FROM"
    differs, text = ("IS NOT", "") if sqlite else ("IS DISTINCT FROM", "::text")
    changed = " OR ".join(f"NEW.{name}{text} {differs} OLD.{name}{text}" for name in _BEFORE)
    kept = {"status": "what", "reviewer": "who", "decided_at": "at"}
    pairs = " AND ".join(f"trail.{kept.get(name, name)} {same} NEW.{name}" for name in _DECIDED)
    trail = f"EXISTS (SELECT 1 FROM review_events AS trail WHERE trail.review_id = NEW.id AND {pairs})"
    refusals = {
        changed: "a case cannot be changed",
        "OLD.status <> 'pending'": "a verdict cannot be changed",
        f"NOT {trail}": "the verdict is not in the audit trail",
    }
    if sqlite:
        _restore_on_sqlite(refusals)
    else:
        _restore_on_postgresql(refusals)


def _restore_on_sqlite(refusals: dict[str, str]) -> None:
    cases = " ".join(f"WHEN {condition} THEN RAISE(ABORT, '{says}')" for condition, says in refusals.items())
    op.execute(f"CREATE TRIGGER reviews_keep_verdicts BEFORE UPDATE ON reviews BEGIN SELECT CASE {cases} END; END")
    for table in ("reviews", "review_events"):
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
    op.execute(
        "CREATE TRIGGER review_events_no_replace BEFORE INSERT ON review_events "
        "WHEN EXISTS (SELECT 1 FROM review_events WHERE number = NEW.number "
        "OR (review_id = NEW.review_id AND what <> 'added' AND NEW.what <> 'added')) "
        "BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END"
    )
    _no_replacing_on_sqlite("status = 'pending'")


def _restore_on_postgresql(refusals: dict[str, str]) -> None:
    op.execute(
        "CREATE FUNCTION reviews_keep_verdicts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_OP = 'INSERT' THEN "
        "IF NEW.status <> 'pending' THEN RAISE EXCEPTION 'a case begins pending'; END IF; "
        f"ELSE {_raising(refusals)} END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER reviews_keep_verdicts BEFORE INSERT OR UPDATE ON reviews "
        "FOR EACH ROW EXECUTE FUNCTION reviews_keep_verdicts()"
    )
    op.execute(
        "CREATE TRIGGER review_events_append_only BEFORE UPDATE OR DELETE ON review_events "
        "FOR EACH ROW EXECUTE FUNCTION review_events_append_only()"
    )
