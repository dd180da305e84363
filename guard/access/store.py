"""Users, keys, sessions and links in the review store's database."""

from __future__ import annotations

from pathlib import Path

from guard.access.clock import Clock, utc_now
from guard.access.keys import Keys
from guard.access.links import Links
from guard.access.sessions import Sessions
from guard.access.users import Users
from guard.review import database


class Access:
    """Users, keys and sessions. Safe under threads; open one in each process.

    Attributes:
        users: user accounts.
        keys: API keys of programs.
        sessions: sessions of signed-in users.
        links: one-time links, to make the first account or to set a password.
    """

    def __init__(self, connected: database.Database, clock: Clock = utc_now) -> None:
        self._database = connected
        self.users = Users(connected, clock)
        self.keys = Keys(connected, clock)
        self.sessions = Sessions(connected, clock)
        self.links = Links(connected, clock)

    @classmethod
    def open(
        cls, url: str | Path | None = None, *, create: bool = True, timeout_s: float = database.TIMEOUT_S
    ) -> Access:
        """Open the users and keys of a review store; arguments and errors as in `guard.review.store.Store.open`."""
        return cls(database.connect(url, create=create, timeout_s=timeout_s))

    @property
    def place(self) -> str:
        """The file, or the URL without its password."""
        return self._database.place

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Access:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
