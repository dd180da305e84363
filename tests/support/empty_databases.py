"""An empty database of each kind for the tests of what is kept in one: reviews, users and keys, the audit log."""

from __future__ import annotations

from pathlib import Path

import postgresql_server
import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of a SQLite database, not there yet; the one that `url` leads to where it names a file."""
    return tmp_path / "reviews.db"


@pytest.fixture(params=["sqlite", "postgresql"] if postgresql_server.is_available() else ["sqlite"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """Place of an empty database: a file's path, and where there is a server a PostgreSQL URL."""
    return str(path) if request.param == "sqlite" else postgresql_server.emptied()
