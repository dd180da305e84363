"""The review store's tables, as the newest migration leaves them."""

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, SmallInteger, Table, Text

from guard.audit.tables import METADATA as AUDIT_LOG

METADATA = sa.MetaData()

REVIEWS = Table(
    "reviews",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("decision_id", Text, nullable=False, unique=True),
    Column("created_at", Text, nullable=False),
    Column("route", Text),
    Column("policy", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("prompt", sa.JSON, nullable=False),
    Column("answer", Text),
    Column("p_wrong", sa.Float),
    Column("rule", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", sa.JSON, nullable=False),
    Column("metadata", sa.JSON, nullable=False),
    Column("status", Text, nullable=False),
    Column("final_answer", Text),
    Column("reviewer", Text),
    Column("note", Text),
    Column("decided_at", Text),
    Column("draft", Text),
    Column("fingerprint", Text),
    # What the policy asks of reviewers.
    Column("scorer", Text),
    Column("due_at", Text),
    Column("priority", SmallInteger, nullable=False, server_default="1"),
    Column("reviews_wanted", SmallInteger, nullable=False, server_default="1"),
    Column("late_action", Text),
    Column("late_text", Text),
    # By which cases are ordered and found.
    Column("number", sa.BigInteger),
    Column("sort_key", Text),
    Column("doubt", sa.Float),
    # What changes while a case waits.
    Column("claimed_by", Text),
    Column("claimed_at", Text),
    Column("claimed_until", Text),
    Column("assigned_to", Text),
    Column("opinions", SmallInteger, nullable=False, server_default="0"),
    Column("disputed", SmallInteger, nullable=False, server_default="0"),
    Column("final_at", Text),
    Column("late_at", Text),
    # What the case is, and how an accepted answer was drawn to be checked.
    Column("kind", Text, nullable=False, server_default="escalation"),
    Column("certificate", Text),
    Column("audit_rate", sa.Float),
    Column("span_marks", sa.JSON(none_as_null=True)),
    # With the number at their end, a search for words walks through an order without reading the cases.
    sa.Index("reviews_by_status", "status", "created_at", "id", "number"),
    sa.Index("reviews_by_due", "status", "sort_key", "id", "number"),
    sa.Index("reviews_by_route", "route", "status", "sort_key", "id", "number"),
    sa.Index("reviews_by_model", "model", "status", "sort_key", "id", "number"),
    sa.Index("reviews_by_doubt", "status", "doubt", "id", "number"),
    sa.Index("reviews_by_time", "created_at", "id", "number"),
    sa.Index("reviews_by_decision_time", "decided_at", "id", "number"),
    sa.Index("reviews_by_number", "number", unique=True),
)

_OPEN = (REVIEWS.c.status == "pending") & REVIEWS.c.late_at.is_(None)


def _partial(name: str, *columns: Column[object], where: sa.ColumnElement[bool], unique: bool = False) -> None:
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


_partial("reviews_open_once", REVIEWS.c.fingerprint, where=_OPEN, unique=True)
_partial(
    "reviews_to_claim",
    *(REVIEWS.c[name] for name in ("status", "priority", "sort_key", "id")),
    where=REVIEWS.c.late_at.is_(None),
)
_partial(
    "reviews_with_opinions",
    *(REVIEWS.c[name] for name in ("status", "sort_key", "id")),
    where=REVIEWS.c.opinions > 0,
)
_partial("reviews_due", REVIEWS.c.due_at, where=_OPEN)
_partial("reviews_of_certificate", REVIEWS.c.certificate, REVIEWS.c.number, where=REVIEWS.c.certificate.is_not(None))
_partial("reviews_audited", REVIEWS.c.created_at, where=REVIEWS.c.kind == "audit")
_partial("reviews_claimed", REVIEWS.c.claimed_by, where=REVIEWS.c.claimed_by.is_not(None))

EVENTS = Table(
    "review_events",
    METADATA,
    Column("number", sa.Integer, primary_key=True),
    Column("review_id", Text, ForeignKey("reviews.id"), nullable=False),
    Column("at", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("draft", Text),
    Column("final_answer", Text),
    Column("note", Text),
    Column("verdict", Text),
    Column("whom", Text),
    Column("span_marks", sa.JSON(none_as_null=True)),
    sa.Index("review_events_by_review", "review_id", "number"),
)

_partial(
    "review_events_dealt_with",
    EVENTS.c.who,
    EVENTS.c.review_id,
    where=EVENTS.c.what.in_((sa.literal_column("'opinion'"), sa.literal_column("'skipped'"))),
)

ENDPOINTS = Table(
    "endpoints",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("sealed", Text),
    Column("events", sa.JSON, nullable=False),
    Column("with_text", SmallInteger, nullable=False),
    Column("allow_private", SmallInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("off_at", Text),
    Column("off_reason", Text),
)

OUTBOX = Table(
    "outbox",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("endpoint", Text, ForeignKey("endpoints.name"), nullable=False),
    Column("event", Text, nullable=False),
    Column("review_id", Text, ForeignKey("reviews.id")),
    Column("body", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("next_at", Text),
    Column("lease_until", Text),
    Column("delivered_at", Text),
    Column("dead_at", Text),
    Column("cancelled_at", Text),
    Column("last_error", Text),
    sa.Index("outbox_next", "next_at"),
    sa.Index("outbox_by_review", "review_id", "event"),
    sa.Index("outbox_by_endpoint", "endpoint", "created_at"),
)

REPEATS = Table(
    "review_repeats",
    METADATA,
    Column("decision_id", Text, primary_key=True),
    Column("review_id", Text, ForeignKey("reviews.id"), nullable=False),
    Column("created_at", Text, nullable=False),
    Column("p_wrong", sa.Float),
    Column("rule", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", sa.JSON, nullable=False),
    Column("metadata", sa.JSON, nullable=False),
    Column("due_at", Text),
    Column("late_action", Text),
    Column("late_text", Text),
    sa.Index("review_repeats_by_review", "review_id", "created_at", "decision_id"),
)

# -- what servers remember together (`guard.review.short_lived`) -------------------------------

SHORT_LIVED = Table(
    "short_lived",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("content", Text, nullable=False),
    Column("ends_at", Text, nullable=False),
    sa.Index("short_lived_by_end", "ends_at"),
)

# -- guarantees that are watched (`guard.monitoring`) ---------------------------------------------

WATCHED_CERTIFICATES = Table(
    "watched_certificates",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("policy", Text, nullable=False),
    Column("route", Text),
    Column("risk", sa.Float, nullable=False),
    Column("confidence", sa.Float, nullable=False),
    Column("threshold", sa.Float, nullable=False),
    Column("rate", sa.Float, nullable=False),
    Column("false_alarms", sa.Float, nullable=False),
    Column("since", Text, nullable=False),
    Column("shift", sa.JSON, nullable=False),
    Column("shifted_at", Text),
    Column("suspended_at", Text),
    Column("suspended_why", Text),
)

SAMPLING_KEYS = Table(
    "sampling_keys",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("key", Text, nullable=False),
)

# -- who may use guard (`guard.access`) --------------------------------------------------------

ACCESS_USERS = Table(
    "access_users",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("grants", sa.JSON, nullable=False),
    Column("password_hash", Text),
    Column("created_at", Text, nullable=False),
    Column("seen_at", Text),
    Column("disabled_at", Text),
    Column("identity", Text),
    sa.Index("access_users_by_identity", "identity", unique=True),
)

ACCESS_KEYS = Table(
    "access_keys",
    METADATA,
    Column("prefix", Text, primary_key=True),
    Column("secret_hash", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("grants", sa.JSON, nullable=False),
    Column("requests_per_minute", sa.BigInteger),
    Column("tokens_per_minute", sa.BigInteger),
    Column("tokens_per_month", sa.BigInteger),
    Column("used_tokens", sa.BigInteger, nullable=False, server_default="0"),
    Column("used_month", Text),
    Column("created_at", Text, nullable=False),
    Column("seen_at", Text),
    Column("ends_at", Text),
    Column("revoked_at", Text),
)
_partial("access_keys_one_name", ACCESS_KEYS.c.name, where=ACCESS_KEYS.c.revoked_at.is_(None), unique=True)

ACCESS_MINUTES = Table(
    "access_minutes",
    METADATA,
    Column("prefix", Text, ForeignKey("access_keys.prefix"), primary_key=True),
    Column("began_at", Text, nullable=False),
    Column("requests", sa.BigInteger, nullable=False),
    Column("tokens", sa.BigInteger, nullable=False),
)

ACCESS_SESSIONS = Table(
    "access_sessions",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("access_users.id"), nullable=False),
    Column("created_at", Text, nullable=False),
    Column("seen_at", Text, nullable=False),
    Column("ends_at", Text, nullable=False),
    sa.Index("access_sessions_by_user", "user_id"),
)

ACCESS_LINKS = Table(
    "access_links",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("access_users.id")),
    Column("ends_at", Text, nullable=False),
)

ACCESS_FAILURES = Table(
    "access_failures",
    METADATA,
    Column("login", Text, primary_key=True),
    Column("tries", sa.BigInteger, nullable=False),
    Column("at", Text, nullable=False),
)

for audit_table in AUDIT_LOG.sorted_tables:
    audit_table.to_metadata(METADATA)
