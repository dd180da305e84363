"""Several served models behind one name: whom a request goes to, and who stands by.

Each back end has guards of its own, with its own scorer: an answer is scored by the scorer of the model that gave it,
or not at all. A request that a back end cannot answer is asked again from its beginning at another one; until a policy
has decided, nobody has seen anything of it. The last one has nobody behind it: there, the policy decides about the
failure, as it does for any engine.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from guard.engines.remote.client import UnavailableError
from guard.engines.remote.standby import HEALTH_S, StandbyEngine, others_stand_by
from guard.errors import GuardError, HandOverError
from guard.runtime.guard import Guard

_log = logging.getLogger("guard.serve")

_T = TypeVar("_T")

#: Seconds between two looks at a back end.
HEALTH_EVERY_S = 5.0


class Backend:
    """One served model with its guards.

    Args:
        name: of the server, as its operator wrote it.
        connect: loads the engine and makes a guard for each policy, by the name that clients may give.
    """

    def __init__(self, name: str, connect: Callable[[], tuple[StandbyEngine, Mapping[str, Guard]]]) -> None:
        self.name, self._connect = name, connect
        self.engine: StandbyEngine | None = None
        self.guards: Mapping[str, Guard] = {}
        self.up = False
        self.running = 0

    def connect(self) -> bool:
        """Load the engine; return whether the server is there.

        Raises:
            GuardError: it is there, and cannot be used.
        """
        try:
            self.engine, self.guards = self._connect()
        except UnavailableError as error:
            _log.warning("the back end %s is not there: %s", self.name, error)
            return False
        self.up = True
        return True

    def check(self) -> None:
        """Look whether the server is there, and load the engine if it was not at the beginning."""
        before = self.up
        if self.engine is None:
            self._connect_late()
        else:
            self.up = self.engine.is_up()
        if self.up != before:
            _log.warning("the back end %s is %s", self.name, "there" if self.up else "gone")

    def _connect_late(self) -> None:
        try:
            self.connect()
        except GuardError as error:
            _log.error("the back end %s cannot be used: %s", self.name, error)

    @property
    def is_full(self) -> bool:
        """Whether requests would wait for each other."""
        return self.engine is not None and self.running >= self.engine.at_once


class BackendPool:
    """The back ends of one model, watched by a thread each until the pool is closed.

    Args:
        backends: of which one at least is connected.
        every_s: seconds between two looks at each.
    """

    def __init__(self, backends: Sequence[Backend], *, every_s: float = HEALTH_EVERY_S) -> None:
        self.backends, self._every_s = tuple(backends), every_s
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(each,), name="guard-backend", daemon=True) for each in backends
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> BackendPool:
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads; engines are closed by whoever loaded them."""
        self._ended.set()
        for thread in self._threads:
            thread.join(HEALTH_S)

    @property
    def is_up(self) -> bool:
        """Whether a back end is there."""
        return any(each.up for each in self.backends)

    def order(self, key: str) -> list[Backend]:
        """Return the back ends in the order in which a request goes to them.

        The same key leads to the same one as long as that is there and has room, since it has read the beginning of the
        prompt before; if it goes, only its own keys move. Back ends that are not there come last.
        """

        def rank(each: Backend) -> tuple[bool, bool, bytes]:
            return not each.up, each.is_full, hashlib.sha256(f"{each.name}\0{key}".encode()).digest()

        return sorted((each for each in self.backends if each.engine is not None), key=rank)

    async def ask(self, key: str, policy: str, ask: Callable[[Guard], Awaitable[_T]]) -> _T:
        """Ask one back end after another until one can answer.

        Args:
            key: of prompts that begin alike.
            policy: that decides.
            ask: a guarded call.

        Raises:
            Exception: as for the call.
        """
        *others, last = self.order(key)
        for each in others:
            try:
                with others_stand_by():
                    return await self._ask(each, policy, ask)
            except HandOverError as error:
                each.up = False
                _log.warning("the back end %s hands a request over: %s", each.name, error)
        return await self._ask(last, policy, ask)

    async def _ask(self, backend: Backend, policy: str, ask: Callable[[Guard], Awaitable[_T]]) -> _T:
        backend.running += 1
        try:
            return await ask(backend.guards[policy])
        finally:
            backend.running -= 1

    def _watch(self, backend: Backend) -> None:
        while not self._ended.wait(self._every_s):
            backend.check()
