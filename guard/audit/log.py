"""The audit log: events in order, in a Merkle tree over the rows of a database.

An entry is committed with the transaction that it belongs to, and is never changed or removed. Checkpoints that are
stored elsewhere show whether the log still starts with the same entries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit import merkle
from guard.audit.events import LogEvent, Redaction, build_event, canonical_json, commitment
from guard.audit.notes import LogCheckpoint, PublicKey, SigningKey, open_note
from guard.audit.tables import CHECKPOINTS, ENTRIES, TEXTS
from guard.errors import InputError, StoreError

#: The origin of checkpoints that nobody signs.
UNSIGNED = "guard"

#: PostgreSQL: entries are numbered one transaction at a time.
_NUMBERING_LOCK = 0x6C6F67

_PAGE = 2000

#: Gets a new checkpoint and its note, None if it is not signed.
OnCheckpoint = Callable[[Connection, LogCheckpoint, str | None], None]


class Transactions(Protocol):
    """A database, as `guard.review.database.Database` is one."""

    def read(self) -> AbstractContextManager[Connection]: ...

    def write(self) -> AbstractContextManager[Connection]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log.

    Attributes:
        number: from 0, without gaps.
        event: canonical JSON.
        leaf: hash of the entry in the tree, as hexadecimal digits.
    """

    number: int
    event: str
    leaf: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of verifying a log.

    Attributes:
        size: number of entries.
        root: of the tree over them as they are now, 32 bytes.
        checkpoints: number of checkpoints compared, including the copies.
        signed: number of these with a signature of the given key.
        texts: number of stored texts compared with their hashes.
        problems: one sentence each; empty if all is well.
    """

    size: int
    root: bytes
    checkpoints: int
    signed: int
    texts: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Proof that an entry is in the log; anyone can check it with SHA-256 alone.

    Attributes:
        entry: the entry that is proved.
        checkpoint: checkpoint of the tree that contains it.
        path: the hashes from the entry to the root, upwards, as hexadecimal digits.
        note: the signed checkpoint; None if the checkpoint is not signed.
    """

    entry: Entry
    checkpoint: LogCheckpoint
    path: tuple[str, ...]
    note: str | None = None

    def holds(self) -> bool:
        """Return whether the path leads from the entry to the root."""
        return merkle.includes(
            merkle.leaf_hash(self.entry.event.encode()),
            index=self.entry.number,
            size=self.checkpoint.size,
            proof=[bytes.fromhex(node) for node in self.path],
            root=self.checkpoint.root,
        )


class AuditLog:
    """The log in a database. Safe under threads and processes; `Store.audit_log` returns the one of a review store."""

    def __init__(
        self,
        database: Transactions,
        *,
        keep_text: bool = False,
        redaction: Redaction | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> None:
        """
        Args:
            database: that holds the log's tables.
            keep_text: whether to store prompts, answers and notes beside the log, until `erase` removes them.
                Otherwise the log has salted hashes of them only.
            redaction: called with a field's name and text before the text is stored and hashed; if it returns None, the
                text is hashed whole and not stored.
            on_checkpoint: called in the transaction of each new checkpoint.
        """
        self._database = database
        self._keep_text = keep_text
        self._redaction = redaction
        self._on_checkpoint = on_checkpoint

    # -- writing -------------------------------------------------------------------------------

    def append(self, kind: str, subject: str, fields: Mapping[str, Any], *, texts: Mapping[str, str | None]) -> int:
        """Add an event; it is on disk when this returns.

        Args:
            kind: of the event, such as ``decision``.
            subject: what it is about, such as the decision's id.
            fields: plain data that stands in the log as it is.
            texts: prompts, answers and notes, of which the log has hashes.

        Returns:
            The entry's number.

        Raises:
            InputError: a field has no form in JSON.
            StoreError: the database failed.
        """
        with self._database.write() as connection:
            return add_entry(
                connection, kind, subject, fields, texts=texts, keep_text=self._keep_text, redaction=self._redaction
            )

    def append_changed(self, kind: str, subject: str, fields: Mapping[str, Any]) -> int | None:
        """Add an event without texts, unless the latest one about this subject says the same; errors as for `append`.

        Returns:
            The entry's number; None if nothing has changed.
        """
        with self._database.write() as connection:
            _lock_numbering(connection)
            latest = _latest_event(connection, subject)
            if latest is not None and canonical_json({**latest, **fields}) == canonical_json(latest):
                return None
            return add_entry(connection, kind, subject, fields, texts={})

    def checkpoint(self, key: SigningKey | None = None) -> str:
        """Record the present size and root, signed if there is a key, and return the note (unsigned: its text).

        Send the note elsewhere: only a copy that the database's owner cannot change shows later that nothing
        was removed.

        Raises:
            StoreError: the database failed, or its rows were changed so that they cannot be read.
        """
        with self._database.write() as connection, _readable_rows():
            _lock_numbering(connection)
            tree = _latest_tree(connection)
            for entry in _entries(connection, tree.size):
                tree.append(bytes.fromhex(entry.leaf))
            found = LogCheckpoint(key.name if key else UNSIGNED, tree.size, tree.root())
            note = key.sign(found) if key else None
            _keep_checkpoint(connection, found, tree, note)
            if self._on_checkpoint is not None:
                self._on_checkpoint(connection, found, note)
        return note or found.text()

    def erase(self, *, before: str) -> int:
        """Erase the texts and salts of old entries; the entries stay, and with them all proofs.

        Args:
            before: an ISO 8601 time in UTC, with its offset.

        Returns:
            The number of texts that were erased.

        Raises:
            InputError: it is no such time.
        """
        statement = sa.delete(TEXTS).where(TEXTS.c.at < _utc(before))
        with self._database.write() as connection:
            return int(connection.execute(statement).rowcount)

    # -- reading -------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(ENTRIES)) or 0)

    def entries(self, start: int = 0, *, subject: str | None = None) -> Iterator[Entry]:
        """Yield entries in order.

        Args:
            start: the number of the first.
            subject: only those about this, such as a decision's id.
        """
        while True:
            # No transaction stays open between pages: the reader may be slow.
            with self._database.read() as connection:
                page = list(_page(connection, start, subject))
            yield from page
            if len(page) < _PAGE:
                return
            start = page[-1].number + 1

    def prove(self, *numbers: int) -> list[InclusionProof]:
        """Return the proofs that entries are in the tree of the latest checkpoint.

        Args:
            numbers: of the entries. All leaves are read once, however many there are.

        Raises:
            InputError: there is no such entry, or no checkpoint since it was added.
            StoreError: as for `checkpoint`.
        """
        with self._database.read() as connection, _readable_rows():
            return self._proofs(connection, numbers)

    @staticmethod
    def _proofs(connection: Connection, numbers: tuple[int, ...]) -> list[InclusionProof]:
        latest = _latest_checkpoint(connection)
        entries = list(_entries(connection, 0))
        for number in numbers:
            if not 0 <= number < len(entries):
                raise InputError(f"The log has no entry {number}", why=f"it has {len(entries)}")
            if latest is None or latest.size <= number:
                raise InputError(f"No checkpoint covers entry {number}", fix="Run: guard audit checkpoint")
        leaves = [bytes.fromhex(entry.leaf) for entry in entries[: latest.size if latest else 0]]
        return [_proof(latest, leaves, entries[number]) for number in numbers]

    def verify(self, *, key: PublicKey | None = None, copies: tuple[str, ...] = ()) -> Verification:
        """Check every entry, text and checkpoint.

        Args:
            key: that signed the checkpoints.
            copies: signed checkpoints that were kept elsewhere; they need the key. They alone show that the
                log's end was not removed, and that the whole log was not rewritten.

        Raises:
            InputError: a copy is not signed by the key, or there is no key for it.
            StoreError: the database failed.
        """
        elsewhere = [_opened(note, key) for note in copies]
        with self._database.read() as connection:
            return _LogCheck(key).run(connection, elsewhere)

    def export(self) -> Iterator[str]:
        """Yield the log as JSON Lines: each entry with its number, its event and the salts and texts that are left."""
        for entry in self.entries():
            with self._database.read() as connection:
                openings = connection.execute(sa.select(TEXTS).where(TEXTS.c.number == entry.number)).all()
            kept = {row.field: {"salt": row.salt, "content": row.content} for row in openings}
            yield canonical_json(
                {"number": entry.number, "event": entry.event, "leaf": entry.leaf, "openings": kept},
            )


@dataclass(slots=True)
class _LogCheck:
    """One pass over the log that collects problems."""

    key: PublicKey | None
    tree: merkle.GrowingTree = field(default_factory=merkle.GrowingTree)
    problems: list[str] = field(default_factory=list)
    signed: int = 0

    def run(self, connection: Connection, elsewhere: list[LogCheckpoint]) -> Verification:
        recorded = connection.execute(sa.select(CHECKPOINTS).order_by(CHECKPOINTS.c.size)).all()
        expected = [*filter(None, map(self._recorded, recorded)), *elsewhere]
        self.signed += len(elsewhere)
        self._walk(connection, sorted(expected, key=lambda each: each.size))
        texts = self._texts(connection)
        root = self.tree.root()
        return Verification(self.tree.size, root, len(expected), self.signed, texts, tuple(self.problems))

    def _recorded(self, row: Any) -> LogCheckpoint | None:
        """Return a checkpoint of the database; one that cannot be read, or whose note says otherwise, is a problem."""
        try:
            found = LogCheckpoint(_origin(row.note), int(row.size), bytes.fromhex(row.root))
        except (ValueError, TypeError, AttributeError):
            self.problems.append("A checkpoint cannot be read")
            return None
        if self.key is None or row.note is None:
            return found
        try:
            noted = open_note(row.note, self.key)
        except InputError:
            self.problems.append(f"The checkpoint of {row.size} entries is not signed by {self.key.name}")
            return found
        self.signed += 1
        return noted

    def _walk(self, connection: Connection, expected: list[LogCheckpoint]) -> None:
        """Read all entries in order, and compare the tree with each checkpoint when it has its size."""
        waiting = list(expected)
        for entry in _entries(connection, 0):
            self._compare(waiting)
            self.tree.append(self._leaf(entry))
        self._compare(waiting)
        for missed in waiting:
            self.problems.append(
                f"A checkpoint is of {missed.size} entries, and the log has {self.tree.size}: its end was cut off"
            )

    def _compare(self, waiting: list[LogCheckpoint]) -> None:
        while waiting and waiting[0].size == self.tree.size:
            if waiting.pop(0).root != self.tree.root():
                self.problems.append(
                    f"The first {self.tree.size} entries are not those of the checkpoint: "
                    "one was changed, moved, removed or put in"
                )

    def _leaf(self, entry: Entry) -> bytes:
        """Check an entry, and return what stands for it in the tree; rows may hold anything."""
        if entry.number != self.tree.size:
            self.problems.append(f"Entry {self.tree.size} is missing: entry {entry.number} follows")
        leaf = merkle.leaf_hash(str(entry.event).encode())
        if leaf.hex() != entry.leaf:
            self.problems.append(f"Entry {entry.number} was changed: its hash is another")
        try:
            return bytes.fromhex(entry.leaf)
        except (ValueError, TypeError):
            return b""

    def _texts(self, connection: Connection) -> int:
        """Compare the texts that are kept with their hashes; return their number."""
        columns = (TEXTS.c.number, TEXTS.c.field, TEXTS.c.salt, TEXTS.c.content, ENTRIES.c.event)
        query = sa.select(*columns).join(ENTRIES, ENTRIES.c.number == TEXTS.c.number).order_by(TEXTS.c.number)
        compared = 0
        for row in connection.execute(query.where(TEXTS.c.content.is_not(None))):
            compared += 1
            if not _opens(row):
                self.problems.append(f"The text '{row.field}' of entry {row.number} is not the one that was logged")
        return compared


@contextmanager
def _readable_rows() -> Iterator[None]:
    """Raise StoreError for rows that somebody has changed so that they cannot be read."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise StoreError("The audit log's rows cannot be read", fix="Run: guard audit verify") from error


def _opens(row: Any) -> bool:
    """Return whether a kept text is the one of its entry; rows may hold anything."""
    try:
        logged = json.loads(row.event)["texts"].get(row.field)
        return bool(logged == commitment(row.salt, row.content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _proof(latest: Any, leaves: list[bytes], entry: Entry) -> InclusionProof:
    found = LogCheckpoint(_origin(latest.note), int(latest.size), bytes.fromhex(latest.root))
    path = tuple(node.hex() for node in merkle.inclusion_proof(leaves, entry.number))
    return InclusionProof(entry, found, path, latest.note)


# -- writing in a transaction ------------------------------------------------------------------


def add_entry(
    connection: Connection,
    kind: str,
    subject: str,
    fields: Mapping[str, Any],
    *,
    texts: Mapping[str, str | None],
    keep_text: bool = False,
    redaction: Redaction | None = None,
) -> int:
    """Add an event inside the caller's transaction, so that both are on disk or neither; see `AuditLog.append`.

    On PostgreSQL the transactions that add entries wait for each other from here to their end.
    """
    at = _now()
    event = build_event(kind, subject, {"at": at, **fields}, texts=texts, keep_text=keep_text, redaction=redaction)
    number = _next_number(connection)
    leaf = merkle.leaf_hash(event.canonical.encode()).hex()
    row = {"number": number, "subject": subject, "event": event.canonical, "leaf": leaf}
    connection.execute(sa.insert(ENTRIES).values(row))
    _keep_openings(connection, number, at, event)
    return number


# -- queries -----------------------------------------------------------------------------------


def _next_number(connection: Connection) -> int:
    _lock_numbering(connection)
    return int(connection.scalar(sa.select(sa.func.coalesce(sa.func.max(ENTRIES.c.number) + 1, 0))) or 0)


def _latest_event(connection: Connection, subject: str) -> dict[str, Any] | None:
    query = sa.select(ENTRIES.c.event).where(ENTRIES.c.subject == subject).order_by(ENTRIES.c.number.desc()).limit(1)
    event = connection.scalar(query)
    return None if event is None else json.loads(event)


def _lock_numbering(connection: Connection) -> None:
    """Wait for the transactions that number entries now; SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_NUMBERING_LOCK)))


def _keep_openings(connection: Connection, number: int, at: str, event: LogEvent) -> None:
    rows = [
        {"number": number, "field": each.field, "at": at, "salt": each.salt, "content": each.content}
        for each in event.openings
    ]
    if rows:
        connection.execute(sa.insert(TEXTS), rows)


def _page(connection: Connection, start: int, subject: str | None) -> Iterator[Entry]:
    query = sa.select(ENTRIES.c.number, ENTRIES.c.event, ENTRIES.c.leaf).where(ENTRIES.c.number >= start)
    if subject is not None:
        query = query.where(ENTRIES.c.subject == subject)
    for row in connection.execute(query.order_by(ENTRIES.c.number).limit(_PAGE)):
        yield Entry(*row)


def _entries(connection: Connection, start: int) -> Iterator[Entry]:
    while page := list(_page(connection, start, None)):
        yield from page
        start = page[-1].number + 1


def _latest_checkpoint(connection: Connection) -> Any:
    return connection.execute(sa.select(CHECKPOINTS).order_by(CHECKPOINTS.c.number.desc()).limit(1)).first()


def _latest_tree(connection: Connection) -> merkle.GrowingTree:
    latest = _latest_checkpoint(connection)
    if latest is None:
        return merkle.GrowingTree()
    return merkle.GrowingTree(int(latest.size), (bytes.fromhex(node) for node in latest.subtrees))


def _keep_checkpoint(connection: Connection, found: LogCheckpoint, tree: merkle.GrowingTree, note: str | None) -> None:
    row = {
        **{"size": found.size, "at": _now(), "root": found.root.hex(), "note": note},
        "subtrees": [node.hex() for node in tree.subtrees],
    }
    connection.execute(sa.insert(CHECKPOINTS).values(row))


def _origin(note: str | None) -> str:
    return note.partition("\n")[0] if note else UNSIGNED


def _opened(note: str, key: PublicKey | None) -> LogCheckpoint:
    if key is None:
        raise InputError("A checkpoint from elsewhere needs the key that signed it", fix="Give it with --key")
    return open_note(note, key)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _utc(time: str) -> str:
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        parsed = datetime.min
    if parsed.tzinfo is None:
        raise InputError(f"'{time:.60}' is no ISO 8601 time with an offset", fix="Write 2026-11-26T00:00:00+00:00")
    return parsed.astimezone(UTC).isoformat(timespec="milliseconds")
