"""A review store in an empty database of each kind, and a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moved_clock import MovedClock

from guard.review.store import Store


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def clock(store: Store) -> MovedClock:
    """The store's clock, which stands still until it is moved."""
    return MovedClock(store)
