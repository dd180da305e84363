"""A review store of each kind, empty, and a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgresql_server
import pytest
import sqlalchemy as sa
from moved_clock import MovedClock

from guard.review.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reviews.db"


@pytest.fixture(params=["sqlite", "postgresql"] if postgresql_server.is_available() else ["sqlite"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(path)
    scratch = postgresql_server.url()
    engine = sa.create_engine(scratch.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return scratch


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def clock(store: Store) -> MovedClock:
    """The store's clock, which stands still until it is moved."""
    return MovedClock(store)
