"""From the one-time link to twenty decided cases by keys, as somebody who has never seen the console."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import browser as chromium
import pytest
from console_pages import PASSWORD, MadeConsole
from made_cases import make_escalation

MISSING = chromium.missing()

pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"no browser: {MISSING}")

#: A person reads; this program waits that long before each verdict, by default as long as keys are ignored.
READ_MS = int(os.environ.get("GUARD_TEST_READING_MS", "350"))


@pytest.fixture
def address(console: MadeConsole) -> Iterator[str]:
    now = datetime.now(UTC)
    for number in range(20):
        at = (now - timedelta(minutes=60 - number)).isoformat()
        console.store.add(make_escalation(number, answer=f"It is {number}.", created_at=at))
    with chromium.served(console.app) as started:
        yield started


def test_a_new_reviewer_decides_twenty_cases_from_the_link(console: MadeConsole, address: str) -> None:
    began = time.perf_counter()
    with chromium.launched() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/welcome/{console.access.links.for_first_user()}")
        page.get_by_label("User name").fill("nova")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Start reviewing").click()
        for number in range(20):
            page.locator("main h1", has_text=f"Question {number}?").wait_for()
            page.wait_for_timeout(READ_MS)
            if number % 5 == 4:  # every fifth answer is corrected
                page.keyboard.press("e")
                page.get_by_label("What the caller gets in its place").fill(f"It is {number + 1}.")
                page.get_by_label("wrong", exact=True).check()
                page.keyboard.press("Control+Enter")
            else:
                page.keyboard.press("r" if number % 5 == 3 else "a")
        page.get_by_text("No case waits for you").wait_for()
        browser.close()
    print(f"twenty cases in {time.perf_counter() - began:.1f} s, {READ_MS} ms of reading each")
    tally = console.store.insights(days=2).total
    assert (tally.approved, tally.rejected, tally.edited, tally.pending) == (12, 4, 4, 0)
