"""Notices answers of guard's models that no callback reports to the guarded call around them.

A guarded call learns of the model calls in it from callbacks and context variables. Neither reaches a thread
that is started without its context (``ThreadPoolExecutor.submit``, ``loop.run_in_executor``), and callbacks
can be cut off on purpose (``config={"callbacks": []}``). So each model that guard scores reports its answers
here as well, and each guarded call that is open meanwhile learns of those that nobody has accounted for.

Whose such an answer is can be known in one case: where the context variable is there, it is of that call. In
a thread without a context it may be of any call that was open when it began. It is of none of them if

- callbacks reported it to some guarded call,
- a policy of its own has decided on it (`Guard.ask`, a ``ChatGuard`` with a policy, but not in shadow mode), or
- the code says so (`unguarded`).

That it runs on the same event loop says nothing: a task that was started before may serve a queue.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

_mutex = threading.Lock()
_open: list[OpenCall] = []
#: Runs that callbacks reported to some guarded call and that have not begun to answer, with what they ask.
_announced: dict[UUID, str] = {}
_outside: ContextVar[bool] = ContextVar("guard_outside", default=False)


@dataclass(eq=False, slots=True)
class OpenCall:
    """One attempt of a guarded call, while it runs.

    Attributes:
        own: how many answers are surely of this call and were not accounted for.
        possible: texts of answers that may be of this call, in pieces; None is a text that is not known.
    """

    own: int = 0
    possible: list[list[str] | None] = field(default_factory=list)

    def close(self) -> None:
        """Stop listening; harmless when done twice."""
        with _mutex:
            if self in _open:
                _open.remove(self)


#: The attempt that the running code is part of.
OPEN_CALL: ContextVar[OpenCall | None] = ContextVar("guard_open_call", default=None)


def open_call() -> OpenCall:
    """Begin to listen for an attempt; `OpenCall.close` ends it. Its context variable is set by the caller."""
    opened = OpenCall()
    with _mutex:
        _open.append(opened)
    return opened


def expect(run: UUID, asked: str) -> None:
    """Note that callbacks reported to a guarded call that a model will answer in this run."""
    with _mutex:
        _announced[run] = asked


def forget(run: UUID) -> None:
    """Note that the run has ended, perhaps from a cache, so that no model has answered."""
    with _mutex:
        _announced.pop(run, None)


@dataclass(slots=True)
class AnswerWitness:
    """A model that is about to answer, and the guarded calls that would not know of it."""

    own: OpenCall | None = None
    possible: tuple[OpenCall, ...] = ()
    _pieces: list[str] = field(default_factory=list)
    _reported: bool = False

    def say(self, text: str | None) -> None:
        """Note a piece of the answer that is out; None is a text that is not known."""
        if text:
            self._pieces.append(text)
        if self._reported:
            return
        self._reported = True
        with _mutex:
            if self.own is not None:
                self.own.own += 1
            for opened in self.possible:
                opened.possible.append(None if text is None else self._pieces)


def begin(run: UUID | None, asked: str | None = None, *, decided: bool = False) -> AnswerWitness:
    """Note that a model begins to answer.

    Args:
        run: its id for callbacks; None where it is not known: LangChain does not pass it to streams.
        asked: what the model is asked, by which such a run is found among the reported ones. Where
            two ask the same, it does not matter which is taken for which: one remains if one was not reported.
        decided: whether a policy of its own decides on the answer.
    """
    with _mutex:
        if run is None and asked is not None:
            run = next((each for each, prompt in _announced.items() if prompt == asked), None)
        if run in _announced:
            del _announced[run]
            return AnswerWitness()
        possible = tuple(_open)
    own = OPEN_CALL.get()
    if own is not None:
        return AnswerWitness(own)
    if decided or _outside.get():
        return AnswerWitness()
    return AnswerWitness(None, possible)


@contextmanager
def unguarded() -> Iterator[None]:
    """Say that model calls in this block are part of no guarded call that runs elsewhere.

    A server needs it where it asks a ``ChatGuard`` without a policy while guarded chains whose output is
    parsed run elsewhere. Inside of a guarded call it changes nothing.

    Examples:
        >>> with unguarded():
        ...     pass  # model.invoke(question)
    """
    token = _outside.set(True)
    try:
        yield
    finally:
        _outside.reset(token)


@contextmanager
def accounted() -> Iterator[None]:
    """Say that the model calls in this block are known to the guarded call around them, by a call of their own."""
    opened, outside = OPEN_CALL.set(None), _outside.set(True)
    try:
        yield
    finally:
        _outside.reset(outside)
        OPEN_CALL.reset(opened)
