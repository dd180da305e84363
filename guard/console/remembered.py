"""Figures that are dear to count, kept for a while in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")

#: Seconds for which a figure is kept, and figures that are kept at most.
FOR_S, MOST = 60.0, 100


class Remembered(Generic[Value]):
    """Values by key, each for a minute. Safe under threads; two that ask at once may both count."""

    def __init__(self, for_s: float = FOR_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._for_s, self._clock = for_s, clock
        self._lock = Lock()
        self._kept: dict[Hashable, tuple[float, Value]] = {}

    def get(self, key: Hashable, make: Callable[[], Value], *, dear_s: float = 0.0) -> Value:
        """Return the value of a key, made where it is not known or too old.

        Args:
            key: names it.
            make: makes it.
            dear_s: a value that took fewer seconds than this to make is not kept, so that it is always the present one.

        Examples:
            >>> remembered = Remembered()
            >>> remembered.get("a", lambda: 1), remembered.get("a", lambda: 2)
            (1, 1)
        """
        now = self._clock()
        with self._lock:
            known = self._kept.get(key)
        if known is not None and known[0] > now:
            return known[1]
        value = make()
        if self._clock() - now < dear_s:
            return value
        with self._lock:
            self._kept = {name: each for name, each in list(self._kept.items())[-MOST:] if each[0] > now}
            self._kept[key] = (now + self._for_s, value)
        return value

    def forget(self) -> None:
        """Forget all values."""
        with self._lock:
            self._kept = {}
