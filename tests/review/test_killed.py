"""A sample of the kill tests: SIGKILL at random moments in enqueue, claim, decide, notify and audit, on each kind."""

from __future__ import annotations

from pathlib import Path

import killed_reviews
import pytest


@pytest.mark.slow
def test_killing_reviewers_and_workers_loses_nothing_and_decides_nothing_twice(url: str, tmp_path: Path) -> None:
    counts = killed_reviews.run(url, tmp_path, kills=len(killed_reviews.STEPS), seed=20260101)
    assert counts["cases"] >= counts["added"] > 0
    assert counts["entries"] > counts["cases"] + counts["logged"] > counts["cases"]
