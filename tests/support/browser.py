"""Debian's Chromium, driven by Playwright's client, for the tests of the console's pages.

``GUARD_TEST_BROWSER`` decides whether those tests run:

- unset: where Chromium, Playwright and axe-core's wrapper are installed, else not at all;
- ``required``: the same, and it is an error where they are missing (as in CI);
- ``no``: not at all.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SETTING = os.environ.get("GUARD_TEST_BROWSER", "")

#: In a container there is no sandbox of its own, no graphics, and nobody to ask.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def missing() -> str | None:
    """What is not installed, or None.

    Raises:
        RuntimeError: it is required and not installed, or the setting is not known.
    """
    if SETTING not in ("", "required", "no"):
        raise RuntimeError(f"GUARD_TEST_BROWSER is 'required' or 'no', not '{SETTING}'")
    if SETTING == "no":
        return "GUARD_TEST_BROWSER is 'no'"
    found = _missing()
    if found and SETTING == "required":
        raise RuntimeError(f"GUARD_TEST_BROWSER is 'required', but {found}")
    return found


def _missing() -> str | None:
    for module in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None if shutil.which("chromium") else "there is no chromium (Debian: apt-get install chromium)"


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser without windows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An application on a free port of this machine, in a thread; its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False, proxy_headers=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
