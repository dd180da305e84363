"""A console for each test, with hashes of passwords that cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from console_pages import MadeConsole

from guard.access import passwords


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_hasher", lambda: PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def console(tmp_path: Path) -> Iterator[MadeConsole]:
    made = MadeConsole.at(tmp_path / "reviews.db")
    yield made
    made.close()
