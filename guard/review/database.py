"""The database of the review store: location, transactions, and translation of driver errors."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from guard.errors import InputError, StoreError, missing_extra
from guard.files.output_file import has_blank_name
from guard.files.private_files import create_private, create_private_folder
from guard.review import migrations
from guard.review.host_file import HostFile
from guard.review.records import text_of_time

#: Environment variable with the default store.
ENVIRONMENT = "GUARD_STORE"

#: Seconds to wait for another process's lock; less than the ten seconds of an escalation handler, so that the caller
#: gets the error "locked" and not a timeout.
TIMEOUT_S = 8.0

_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")

#: Bytes at the beginning of an SQLite file that are read as memory; SQLite's own limit is as high.
_MAPPED = 2**31

#: Arbitrary number that all versions of guard share; Alembic needs one migration at a time.
_MIGRATION_LOCK = 0x67756172

_LOCKED = ("another process keeps it locked", "Try again, or end the process that holds it")
_READ_ONLY = ("it is read-only", "Make the file and its folder writable")
_FULL = ("the disk is full", "Free some space, then try again")
_NOT_OURS = ("it is not an SQLite database", "Give another file with --store or GUARD_STORE")
_DAMAGED = ("the database is damaged", "Restore it from a backup, or recover it with sqlite3 .recover")

#: Prefixes of SQLite's error names and PostgreSQL's SQLSTATEs, with reason and remedy.
_REASONS = {
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_PERM": _READ_ONLY,
    "SQLITE_FULL": _FULL,
    "SQLITE_NOTADB": _NOT_OURS,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_CANTOPEN": ("the file cannot be opened", "Check that the folder exists and is writable"),
    "SQLITE_IOERR": ("reading or writing the disk failed", "Check the disk and its free space"),
    "55P03": _LOCKED,
    "53100": _FULL,
    "25006": ("it is read-only", "Give a user and a server that may write"),
    "42501": ("permission is denied", "Open the store as the owner of its tables, and grant this user what it needs"),
}


class Database:
    """A database: an engine with the name of its location, and two kinds of transaction.

    After a fork, the child has connections of its own.
    """

    def __init__(
        self,
        engine: Engine,
        place: str,
        *,
        timeout_s: float = TIMEOUT_S,
        read_only: bool = False,
        host_file: HostFile | None = None,
    ) -> None:
        """
        Args:
            engine: connects.
            place: the file, or the URL without its password.
            timeout_s: seconds for which a thread waits for the others to write.
            read_only: whether nothing can be written.
            host_file: of an SQLite file that can be written: refuses a second host.
        """
        self.engine = engine
        self.place = place
        self._timeout_s = timeout_s
        self.read_only = read_only
        self._host_file = host_file
        self.clock: Callable[[Connection], datetime] = _clock(engine)
        self._turn = threading.Lock()
        self._inherited: list[sa.Pool] = []
        _DATABASES.add(self)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Return a read transaction with a consistent view of the database.

        Raises:
            StoreError: the database failed.
        """
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Return a write transaction, committed at the end of the block; an exception rolls it back.

        Raises:
            StoreError: the database failed.
        """
        with self._in_turn(), self._transaction(writes=True) as connection:
            yield connection

    def now(self, connection: Connection) -> str:
        """Return the time of the clock that all users of the database share, in the store's form.

        This is PostgreSQL's clock; processes that share an SQLite file are on one machine. A time taken after a lock
        is later than any time that a previous holder of the lock took.
        """
        return text_of_time(self.clock(connection))

    def insert_new(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return an insert that ignores rows whose unique columns exist."""
        if self.engine.dialect.name == "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    @property
    def is_shared(self) -> bool:
        """Whether processes on several hosts may use the database."""
        return self.engine.dialect.name == "postgresql"

    def close(self) -> None:
        """Close all connections."""
        if self._host_file is not None:
            self._host_file.end()
        self.engine.dispose()

    def leave_to_parent(self) -> None:
        """In a forked child: make new connections, and never use or close those of the parent."""
        self._turn = threading.Lock()  # a thread of the parent may have held it
        self._inherited.append(self.engine.pool)
        self.engine.dispose(close=False)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let the threads of this process write to an SQLite file one after the other.

        SQLite's own wait for its lock is a sleep that grows: of many writers some would wait for seconds.
        """
        if self.is_shared:
            yield
            return
        if not self._turn.acquire(timeout=self._timeout_s):
            raise StoreError(f"The review store '{self.place}' failed", why=_LOCKED[0], fix=_LOCKED[1])
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        with translated(self.place):
            if self._host_file is not None:
                self._host_file.check()
            with self._connected(writes) as connection:
                yield connection

    @contextmanager
    def _connected(self, writes: bool) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            connection.execution_options(guard_writes=writes)
            with connection.begin():
                yield connection


def _clock(engine: Engine) -> Callable[[Connection], datetime]:
    if engine.dialect.name == "sqlite":
        return lambda _: datetime.now(UTC)
    query = sa.select(sa.func.clock_timestamp())
    return lambda connection: connection.execute(query).scalar_one()


#: The open databases of this process.
_DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()


def _after_fork() -> None:
    for database in list(_DATABASES):
        database.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def connect(url: str | Path | None, *, create: bool, timeout_s: float) -> Database:
    """Open a database and bring its schema up to date; arguments as in `guard.review.store.Store.open`."""
    parsed = _parse(_default() if url is None else url)
    if parsed.get_backend_name() == "sqlite":
        database = _open_sqlite(parsed, create=create, timeout_s=timeout_s)
    else:
        database = _open_postgresql(parsed, timeout_s=timeout_s)
    try:
        _bring_up_to_date(database)
    except BaseException:
        database.close()
        raise
    return database


def is_shared(url: str | Path | None) -> bool:
    """Return whether the database that `connect` would open may be used from several hosts."""
    return _parse(_default() if url is None else url).get_backend_name() == "postgresql"


def _default() -> str | Path:
    return os.environ.get(ENVIRONMENT) or platformdirs.user_data_path("guard") / "reviews.db"


def _parse(url: str | Path) -> URL:
    if not isinstance(url, str | Path):
        raise InputError(
            f"A review store must be a file, a URL or a Store, got a {type(url).__name__}",
            fix="Write store='reviews.db', or store=Store.open(...)",
        )
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: the driver's message repeats the URL, and with it the password.
        raise StoreError(
            f"The store's {url.partition(':')[0]} URL cannot be read",
            fix="Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters as %XX",
        ) from None
    if parsed.drivername in _POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in _SQLITE:
        return parsed
    raise StoreError(
        f"A review store cannot be kept in '{parsed.drivername}'",
        fix="Give an SQLite file, or a postgresql:// URL",
    )


# -- SQLite ------------------------------------------------------------------------------------


def _open_sqlite(url: URL, *, create: bool, timeout_s: float) -> Database:
    if url.database is not None and has_blank_name(url.database):
        raise StoreError(f"The review store's path {url.database!r} is blank", fix=_NOT_OURS[1])
    name = url.database or ":memory:"
    if name == ":memory:" or name.startswith("file:"):
        raise StoreError(
            f"A review store cannot be kept in '{name}'",
            why="reviews have to outlive the process",
            fix="Give a file's path",
        )
    path, asked = _path(name), _asks_read_only(url)
    with translated(str(path)):
        _prepare(path, create=create and not asked)
        read_only = asked or not _writable(path)
        host_file = None if read_only else HostFile(path)
        if host_file is not None:
            host_file.refuse_others()
        address = _read_only_address(path) if read_only else str(path)
        _refuse_foreign(path, address, timeout_s)
        if host_file is not None:
            host_file.take()
    url = URL.create("sqlite", database=address, query={"uri": "true"} if read_only else {})
    engine = sa.create_engine(url, hide_parameters=True, pool_timeout=timeout_s)
    configure = _configure_read_only if read_only else partial(_configure, path=path, timeout_s=timeout_s)
    event.listen(engine, "connect", lambda raw, _: configure(raw))
    event.listen(engine, "begin", _begin)
    return Database(engine, str(path), timeout_s=timeout_s, read_only=read_only, host_file=host_file)


def _asks_read_only(url: URL) -> bool:
    """Return whether a URL says ``mode=ro``; anything else of it that would be ignored is refused."""
    asked = dict(url.query) in ({"mode": "ro"}, {"mode": "ro", "uri": "true"})
    if url.host or url.username or (url.query and not asked):
        raise StoreError(
            "The store's sqlite URL says more than a file and ?mode=ro",
            why="the rest would be ignored",
            fix="Write sqlite:////FOLDER/reviews.db, and ?mode=ro behind it to only read it",
        )
    return asked


def _path(name: str) -> Path:
    try:
        if "\0" in name:
            raise ValueError("it has a NUL")
        return Path(name).expanduser().absolute()
    except (ValueError, RuntimeError) as error:  # RuntimeError: no such user's home
        raise StoreError("The review store's path cannot be used", why=str(error), fix="Give another path") from error


def _prepare(path: Path, *, create: bool) -> None:
    if path.is_dir():
        raise StoreError(f"The review store '{path}' is a folder", fix=f"Give a file, such as {path / 'reviews.db'}")
    if path.exists():
        return
    if not create:
        raise StoreError(
            f"There is no review store '{path}'", fix="Check the path; the first escalation to it makes it"
        )
    # Prompts and answers are private to this user.
    create_private_folder(path.parent)
    create_private(path)


def _writable(path: Path) -> bool:
    """Return whether this user may write the file, and the write-ahead log beside it."""
    effective = os.access in os.supports_effective_ids
    return all(os.access(place, os.W_OK, effective_ids=effective) for place in (path, path.parent))


def _read_only_address(path: Path) -> str:
    """Return the URI of a database that can only be read.

    Reading one whose log is not there would need to make that log; it is read as a file that nobody
    changes. Where there is a log, another process writes, and SQLite follows it.
    """
    logged = path.with_name(f"{path.name}-wal")
    still = "" if logged.exists() and logged.stat().st_size else "&immutable=1"
    return f"{path.as_uri()}?mode=ro{still}"


def _refuse_foreign(path: Path, address: str, timeout_s: float) -> None:
    """Check before any change: a mistyped path must not alter another program's database."""
    with closing(sqlite3.connect(address, timeout=timeout_s, uri=address != str(path))) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if migrations.VERSION_TABLE not in tables:
        migrations.check_versioned(tables, None)
    if tables and migrations.VERSION_TABLE not in tables:
        raise StoreError(
            f"'{path}' is the database of another program",
            why="it has tables, but none of guard's",
            fix="Give another file with --store or GUARD_STORE",
        )


def _configure_read_only(raw: Any) -> None:
    raw.isolation_level = None
    # No wait for locks: a database that is read-only here is not locked for long.
    raw.execute("PRAGMA query_only = ON")


def _configure(raw: Any, *, path: Path, timeout_s: float) -> None:
    """Configure a new connection: durability, lock timeout and explicit transactions."""
    raw.isolation_level = None  # Python's driver starts transactions late, and never for DDL.
    with closing(raw.cursor()) as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Reads without a system call for each page: a search reads thousands.
        cursor.execute(f"PRAGMA mmap_size = {_MAPPED}")
        if _journal(cursor, timeout_s) != "wal":
            raise StoreError(
                f"The review store '{path}' cannot use a write-ahead log",
                why="its file system has no shared memory, such as a network drive",
                fix="Put it on a local disk, or use PostgreSQL",
            )


def _journal(cursor: sqlite3.Cursor, timeout_s: float) -> str:
    """Switch to WAL mode; SQLite itself does not wait if two processes switch at the same time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    # A transaction that starts as a read could have an outdated snapshot, and its write would fail without waiting.
    writes = connection.get_execution_options().get("guard_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


# -- PostgreSQL --------------------------------------------------------------------------------


def _open_postgresql(url: URL, *, timeout_s: float) -> Database:
    options = f"-c lock_timeout={int(timeout_s * 1000)} -c synchronous_commit=on"
    # Nothing is prepared: PostgreSQL would find common and rare words by one plan, which takes seconds for one of them.
    arguments: dict[str, Any] = {"connect_timeout": max(2, round(timeout_s)), "prepare_threshold": None}
    if "options" not in url.query:
        arguments["options"] = options
    try:
        engine = sa.create_engine(
            url, hide_parameters=True, pool_pre_ping=True, pool_timeout=timeout_s, connect_args=arguments
        )
    except ImportError:
        raise missing_extra("psycopg", "postgresql") from None
    return Database(engine, url.render_as_string(hide_password=True))


# -- schema ------------------------------------------------------------------------------------


def _bring_up_to_date(database: Database) -> None:
    with database.read() as connection:
        revision = migrations.current(connection)
        if revision == migrations.HEAD:
            return
    if database.read_only:
        _refuse_outdated(database.place, revision)
    with database.write() as connection:  # on SQLite this is the lock
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        migrations.upgrade(connection)


def _refuse_outdated(place: str, revision: str | None) -> None:
    migrations.check_known(revision)
    raise StoreError(
        f"The review store '{place}' cannot be brought up to date",
        why=f"it is read-only, and of schema {revision or 'none'} where this guard reads {migrations.HEAD}",
        fix="Make the file and its folder writable, and open it once",
    )


# -- errors ------------------------------------------------------------------------------------


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Translate errors of drivers and file systems into a `StoreError` that names the location."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError, UnicodeDecodeError) as error:
        original = getattr(error, "orig", None) or error
        why, fix = _reason(original)
        raise StoreError(f"The review store '{place}' failed", why=why, fix=fix) from error


def _reason(error: BaseException) -> tuple[str, str]:
    code = getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None) or ""
    for beginning, reason in _REASONS.items():
        if code.startswith(beginning):
            return reason
    if isinstance(error, UnicodeDecodeError):  # SQLite returns text unchecked
        return _DAMAGED
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a part of its path is a file, not a folder", "Give another path"
    if isinstance(error, OSError):
        return error.strerror or str(error), "Check the path and its permissions"
    no_connection = not code and not isinstance(error, SQLAlchemyError | sqlite3.Error)
    fix = "Check the URL, and that the server runs and lets this user in" if no_connection else ""
    return str(error).strip().partition("\n")[0], fix
