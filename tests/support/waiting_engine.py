"""An engine that stops in the middle of an answer until a test lets it go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from scripted import AnsweringEngine
from served import said

from guard.serve import ServeSettings

#: Comment lines come soon.
QUICK = ServeSettings(comment_seconds=0.05)


def waiting_engine(text: str, p_wrong: float) -> tuple[AnsweringEngine, threading.Event]:
    """An engine that stops before its third token until the event is set."""
    engine, release = AnsweringEngine(said(text, p_wrong)), threading.Event()
    engine.on_feed = lambda number: None if number < 2 else _waited(release)
    return engine, release


def _waited(release: threading.Event) -> None:
    assert release.wait(20)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
