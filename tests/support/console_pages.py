"""A console over a store of its own, and browsers without a browser that are signed in to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.testclient import TestClient

from guard.access import Access
from guard.access.records import parse_grants
from guard.console import ConsoleSettings, create_app
from guard.review.store import Store

PASSWORD = "three plain words"


@dataclass
class MadeConsole:
    """A store, its accounts, and the application over both."""

    store: Store
    access: Access
    settings: ConsoleSettings = field(default_factory=ConsoleSettings)

    @classmethod
    def at(cls, path: Path, settings: ConsoleSettings | None = None) -> MadeConsole:
        return cls(Store.open(path), Access.open(path), settings or ConsoleSettings())

    def __post_init__(self) -> None:
        self.app = create_app(self.store, self.access, self.settings)

    def close(self) -> None:
        self.store.close()
        self.access.close()

    def visitor(self) -> TestClient:
        """A browser that nobody has signed in with; it says where its requests come from, as browsers do."""
        scheme = "https" if self.settings.secure_cookie else "http"
        headers = {"sec-fetch-site": "same-origin"}
        return TestClient(self.app, base_url=f"{scheme}://testserver", headers=headers, raise_server_exceptions=False)

    def add(self, login: str, *roles: str, name: str = "") -> None:
        self.access.users.add(login, name=name, grants=parse_grants(roles))

    def signed_in(self, login: str, roles: Sequence[str] = ("reviewer",), name: str = "") -> TestClient:
        """A browser of a user with these roles, who is made where there is none."""
        if login not in [user.id for user in self.access.users.all()]:
            self.add(login, *roles, name=name)
        visitor = self.visitor()
        visitor.cookies.set(self.settings.cookie, self.access.sessions.begin(login))
        return visitor
