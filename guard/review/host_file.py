"""One host for an SQLite store: a file beside it says which host uses it, and is written again while it does.

SQLite tells processes apart by locks and shared memory of one kernel. Two hosts that reach the same file over a
network have neither in common, and would damage it. So a host that finds the file of another one watches it: if it
changes, the other host lives, and the store is refused; if not, that host has ended, or this one has booted again.

No clocks are compared. The file is written in place, and closed each time: network file systems show other hosts what
is in a file when they open it, but not what is in memory that processes share.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
import weakref
from functools import cache
from pathlib import Path

from guard.errors import StoreError

#: Seconds between two writes while a store is open, and for which another host's file is watched.
BEAT_S, WATCH_S = 2.0, 6.0

#: Bytes of the file; it is overwritten in place, always whole.
_SIZE = 256
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@cache
def this_host() -> str:
    """Return an id of the running kernel: the same in all its containers, and another one after it has booted again.

    Where there is none, the host's name has to do.
    """
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return platform.node()


class HostFile:
    """The file that says which host uses a store. Safe under threads.

    Args:
        path: of the SQLite file; the host's file is beside it.
        host: the id of this host.
    """

    def __init__(self, path: Path, host: str | None = None) -> None:
        self._store, self._path = path, path.with_name(f"{path.name}-host")
        self._host = host or this_host()
        self._lock = threading.Lock()
        self._written = -WATCH_S
        self._process = 0

    def refuse_others(self) -> None:
        """Look whether another host uses the store, before this one opens it.

        It takes no time unless another host was the last to use the store: then that host's file is watched.

        Raises:
            StoreError: another host uses it.
            OSError: the file cannot be read.
        """
        seen = self._read()
        until = time.monotonic() + WATCH_S
        while self._other(seen) and time.monotonic() < until:
            time.sleep(WATCH_S / 20)
            if self._read() != seen:
                raise self._refused("it writes to the file that says so while this one looks")

    def take(self) -> None:
        """Say that this host uses the store.

        Raises:
            OSError: the file cannot be written.
        """
        self._write()

    def check(self) -> None:
        """Refuse a store that another host has taken, as it may while this process is stopped.

        Raises:
            StoreError: another host has taken it.
            OSError: the file cannot be read or written.
        """
        if self._process != os.getpid():  # after a fork nobody writes for the child
            self._begin()
        if time.monotonic() - self._written > BEAT_S * 2:
            self.beat()

    def beat(self) -> None:
        """Write the file again; errors as for `check`."""
        with self._lock:
            if self._other(self._read()):
                raise self._refused("it has taken the store since this host last wrote")
            self._write()

    def end(self) -> None:
        """Write no more: the store is closed."""
        _HEARTS.discard(self)

    def leave_to_parent(self) -> None:
        """In a forked child: a thread of the parent may have held the lock."""
        self._lock, self._process = threading.Lock(), 0

    def _begin(self) -> None:
        self._process = os.getpid()
        _HEARTS.add(self)

    def _other(self, content: dict[str, str]) -> bool:
        return content.get("host", self._host) != self._host

    def _read(self) -> dict[str, str]:
        """Return what the file says; nothing where there is none, and what changes with it where it is damaged."""
        for _ in range(3):  # another process of this host may be writing
            content = self._content()
            try:
                found = json.loads(content) if content else {}
                return {name: str(found[name]) for name in ("host", "name", "beat")} if found else {}
            except (ValueError, KeyError, TypeError):
                time.sleep(0.01)
        return {"host": "unknown", "name": "unknown", "beat": content.hex()}

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes().strip()
        except FileNotFoundError:
            return b""

    def _write(self) -> None:
        name = platform.node().encode("ascii", "replace").decode()[:60]
        content = json.dumps({"host": self._host, "name": name, "beat": secrets.token_hex(8)})
        descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.write(descriptor, content.encode().ljust(_SIZE))
        finally:
            os.close(descriptor)
        self._written = time.monotonic()

    def _refused(self, why: str) -> StoreError:
        return StoreError(
            f"The review store '{self._store}' is used by another host, {self._read().get('name', 'unknown')}",
            why=f"{why}; SQLite cannot keep two hosts apart",
            fix="Use PostgreSQL for several hosts (--store postgresql://...), or end guard there",
        )


class _Heart(threading.Thread):
    """Writes the files of all stores that are open in this process, again and again."""

    def __init__(self, files: weakref.WeakSet[HostFile]) -> None:
        super().__init__(name="guard-store-host", daemon=True)
        self._files = files

    def run(self) -> None:
        while self._beat_all():
            time.sleep(BEAT_S)

    def _beat_all(self) -> int:
        """Write all files, and return how many there are; no file is kept alive by this thread."""
        files = list(self._files)
        for file in files:
            self._beat(file)
        return len(files)

    @staticmethod
    def _beat(file: HostFile) -> None:
        """Write one file; who uses the store next learns of errors."""
        try:
            file.beat()
        except (StoreError, OSError):
            return


class _Hearts:
    """The stores that are open in this process, and the thread that writes their files."""

    def __init__(self) -> None:
        self._files: weakref.WeakSet[HostFile] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: _Heart | None = None

    def add(self, file: HostFile) -> None:
        with self._lock:
            self._files.add(file)
            if self._thread is None or not self._thread.is_alive():
                self._thread = _Heart(self._files)
                self._thread.start()

    def discard(self, file: HostFile) -> None:
        with self._lock:
            self._files.discard(file)

    def leave_to_parent(self) -> None:
        """In a forked child, which has no such thread: begin again with the first use of a store."""
        files = list(self._files)
        self._files, self._lock, self._thread = weakref.WeakSet(), threading.Lock(), None
        for file in files:
            file.leave_to_parent()


_HEARTS = _Hearts()


def _after_fork() -> None:
    _HEARTS.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
