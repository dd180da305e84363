"""A sample of the kill tests: SIGKILL at random moments in enqueue, claim, decide, undo and notify, on each kind."""

from __future__ import annotations

from pathlib import Path

import killed_reviews
import pytest


@pytest.mark.slow
def test_killing_reviewers_and_workers_loses_nothing_and_decides_nothing_twice(url: str, tmp_path: Path) -> None:
    counts = killed_reviews.run(url, tmp_path, kills=6, seed=20260101)
    assert counts["added"] >= 6
    assert counts["cases"] >= counts["added"]
