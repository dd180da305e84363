"""A Python signal handler that raises, as deadlines by SIGALRM do."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from typing import Any

import pytest


class AlarmError(Exception):
    """What the handler raises."""


@pytest.fixture
def raising_handler() -> Iterator[None]:
    """Let SIGALRM raise `AlarmError` during a test."""

    def handler(*_: Any) -> None:
        raise AlarmError("time is up")

    # Python drops what is raised while it calls a weak reference's callback, as libraries of other tests have.
    gc.collect()
    gc.disable()
    before = signal.signal(signal.SIGALRM, handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.enable()
