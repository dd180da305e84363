"""The review store's tables, as the newest migration leaves them."""

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table, Text

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
    sa.Index("reviews_by_status", "status", "created_at", "id"),
)
sa.Index(
    "reviews_open_once",
    REVIEWS.c.fingerprint,
    unique=True,
    sqlite_where=REVIEWS.c.status == "pending",
    postgresql_where=REVIEWS.c.status == "pending",
)

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
    sa.Index("review_events_by_review", "review_id", "number"),
)
sa.Index(
    "review_events_one_verdict",
    EVENTS.c.review_id,
    unique=True,
    sqlite_where=EVENTS.c.what != "added",
    postgresql_where=EVENTS.c.what != "added",
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
    sa.Index("review_repeats_by_review", "review_id", "created_at", "decision_id"),
)
