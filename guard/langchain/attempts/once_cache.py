"""Results of steps that run once in a guarded call (see `guard.langchain.once`)."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import Future
from typing import Any


class OnceCache:
    """Results by step and input, for one guarded call with all its attempts. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._entries: dict[str, list[tuple[Any, Future[Any]]]] = {}

    def get_or_reserve(self, step: str, key: Any) -> tuple[Future[Any], bool]:
        """Return a step's result for an input, and whether the caller has to produce it."""
        with self._mutex:
            entries = self._entries.setdefault(step, [])
            for known, result in entries:
                if _equal(known, key):
                    return result, False
            result = Future()
            entries.append((_copied(key), result))
            return result, True

    def discard(self, step: str, result: Future[Any]) -> None:
        """Remove the result of a step that failed, so that the step can run again."""
        with self._mutex:
            self._entries[step] = [entry for entry in self._entries[step] if entry[1] is not result]


def _copied(key: Any) -> Any:
    """Return a copy, since the chain may change its input after the step has read it."""
    try:
        return copy.deepcopy(key)
    except Exception:  # noqa: BLE001 - it holds a lock or a client: compare by identity
        return key


def _equal(known: Any, key: Any) -> bool:
    try:
        return bool(known == key)
    except Exception:  # noqa: BLE001 - arrays and the like, which do not compare to one truth value
        return known is key
