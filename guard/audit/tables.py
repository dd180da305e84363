"""The audit log's tables, as the newest migration leaves them. They are in the database of the review store."""

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table, Text

METADATA = sa.MetaData()

#: Entries are numbered from 0 without gaps; ``event`` is canonical JSON (RFC 8785), of which ``leaf`` is the hash.
ENTRIES = Table(
    "audit_entries",
    METADATA,
    Column("number", sa.Integer, primary_key=True, autoincrement=False),
    Column("subject", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("leaf", Text, nullable=False),
    sa.Index("audit_entries_by_subject", "subject", "number"),
)

#: What opens an entry's commitments: the salt, and the text where texts are kept. Rows may be erased, never changed.
TEXTS = Table(
    "audit_texts",
    METADATA,
    Column("number", sa.Integer, ForeignKey("audit_entries.number"), primary_key=True),
    Column("field", Text, primary_key=True),
    Column("at", Text, nullable=False),
    Column("salt", Text, nullable=False),
    Column("content", Text),
    sa.Index("audit_texts_by_age", "at"),
)

#: ``subtrees`` lets the next checkpoint continue where this one ended.
CHECKPOINTS = Table(
    "audit_checkpoints",
    METADATA,
    Column("number", sa.Integer, primary_key=True),
    Column("size", sa.Integer, nullable=False),
    Column("at", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("note", Text),
    Column("subtrees", sa.JSON, nullable=False),
)
