"""Handing a case to people or programs: named handlers, each with a deadline.

A handler is any callable, plain or ``async``, on one frozen `Escalation`. It has taken the case when
it returns; it has not when it raises or is late. The call counts as escalated when one has taken it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guard.errors import EscalationError, InputError, did_you_mean
from guard.records import Escalation

if TYPE_CHECKING:
    from guard.store import Review, Store

#: Takes one case. What it returns is ignored, but an awaitable is awaited.
Handler = Callable[[Escalation], object]

_log = logging.getLogger("guard.escalation")


@dataclass(frozen=True, slots=True)
class Delivery:
    """Who took a case.

    Attributes:
        delivered: names of the handlers that took it, in the order they were asked for.
        errors: one sentence for each handler that did not.
    """

    delivered: tuple[str, ...]
    errors: tuple[str, ...]


def log_handler(escalation: Escalation) -> None:
    """Write one line to the logger ``guard.escalation``; never the prompt or the answer."""
    _log.warning(
        "escalated decision=%s route=%r p_wrong=%s rule=%r",
        escalation.decision_id,
        escalation.route,
        "unknown" if escalation.p_wrong is None else f"{escalation.p_wrong:.4f}",
        escalation.rule,
    )


class ReviewQueue:
    """The handler that keeps cases for people, who decide them with ``guard review``.

    Args:
        store: where they are kept; it stays the caller's to close.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, escalation: Escalation) -> Review:
        """Keep a case; it is on disk when this returns, and there once however often it is given.

        Raises:
            StoreError: it could not be written.
        """
        return self._store.add(escalation)


def check_handlers(names: Iterable[str], handlers: Mapping[str, Handler]) -> None:
    """Check the handlers that a policy names, before the first case needs them.

    Raises:
        InputError: a name without a handler, or a handler that cannot be called.
    """
    for name in names:
        if name not in handlers:
            hint = did_you_mean(name, handlers) or "Give the handler to the guard under this name"
            raise InputError(f"There is no escalation handler '{name}'", fix=hint)
        if not callable(handlers[name]):
            kind = type(handlers[name]).__name__
            raise InputError(f"The escalation handler '{name}' cannot be called", why=f"it is a {kind}")


def escalate(
    escalation: Escalation, *, handlers: Mapping[str, Handler], to: Sequence[str], timeout_s: float = 10.0
) -> Delivery:
    """Hand a case to handlers, all at the same time, and wait for them.

    Each handler runs in a daemon thread of its own, an ``async`` one on an event loop of its own.
    A plain handler that is late cannot be stopped: its thread goes on, and may still take the case
    after it was reported as late, but it does not keep the process from ending. An ``async`` one is
    cancelled.

    Args:
        escalation: the case.
        handlers: all handlers by name.
        to: names of those that shall take it.
        timeout_s: seconds that each has.

    Returns:
        Who took it and who did not. A failure of some, while others took it, is not raised.

    Raises:
        EscalationError: none took it; says what became of each.
        InputError: ``timeout_s`` is not above 0.
    """
    _check_timeout(timeout_s)
    known = _known(to, handlers)
    running = {name: _in_thread(handlers[name], escalation, timeout_s) for name in known}
    wait(running.values(), timeout=timeout_s)
    ended = {name: run.exception() if run.done() else _late(timeout_s) for name, run in running.items()}
    return _delivery(escalation, to, ended)


async def aescalate(
    escalation: Escalation, *, handlers: Mapping[str, Handler], to: Sequence[str], timeout_s: float = 10.0
) -> Delivery:
    """`escalate` without blocking the event loop.

    ``async`` handlers run on the caller's loop, so they can use clients that are bound to it; they
    are cancelled when they are late, or when the caller is. Plain ones run in daemon threads.

    Raises:
        EscalationError, InputError: as for `escalate`.
    """
    _check_timeout(timeout_s)
    running: dict[str, asyncio.Future[None]] = {}
    for name in _known(to, handlers):
        handler = handlers[name]
        if _is_async(handler):
            running[name] = asyncio.ensure_future(_await(handler, escalation))
        else:
            running[name] = asyncio.wrap_future(_in_thread(handler, escalation, timeout_s))
    try:
        if running:
            await asyncio.wait(running.values(), timeout=timeout_s)
        ended = {name: _exception(run) if run.done() else _late(timeout_s) for name, run in running.items()}
    finally:
        for run in running.values():
            _abandon(run)
    return _delivery(escalation, to, ended)


# -- running one handler -----------------------------------------------------------------------


class _NotDone(Exception):
    """What befell a handler from outside, as against an error of its own (such as its TimeoutError)."""


def _late(timeout_s: float) -> _NotDone:
    return _NotDone(f"not done within {timeout_s:g} s")


def _in_thread(handler: Handler, escalation: Escalation, timeout_s: float) -> Future[None]:
    """Start a handler; the future ends when it does, and is never cancelled."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = handler(escalation)
            if inspect.isawaitable(result):
                asyncio.run(_finish(result, timeout_s))
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the caller
            future.set_exception(error)
        else:
            future.set_result(None)

    context = contextvars.copy_context()  # so that traces and log fields go along
    thread = threading.Thread(
        target=context.run, args=(run,), name=f"guard-escalation-{escalation.decision_id}", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:  # no more threads: this handler's failure, not everybody's
        future.set_exception(error)
    return future


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


async def _await(handler: Handler, escalation: Escalation) -> None:
    result = handler(escalation)
    if inspect.isawaitable(result):
        await result


async def _finish(result: Awaitable[object], timeout_s: float) -> None:
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            await result
    except TimeoutError:
        if deadline.expired():
            raise _late(timeout_s) from None
        raise


def _exception(run: asyncio.Future[None]) -> BaseException | None:
    return _NotDone("cancelled") if run.cancelled() else run.exception()


#: Cancelled tasks that have not ended yet; asyncio itself keeps no reference to them.
_ENDING: set[asyncio.Future[None]] = set()


def _abandon(run: asyncio.Future[None]) -> None:
    """Cancel a handler without waiting for it: one that ignores its cancellation would keep us."""
    if run.done():
        return
    _ENDING.add(run)
    run.add_done_callback(_ENDING.discard)
    run.add_done_callback(lambda done: done.cancelled() or done.exception())
    run.cancel()


# -- the sum of it -----------------------------------------------------------------------------


def _check_timeout(timeout_s: float) -> None:
    if not timeout_s > 0:
        raise InputError(f"timeout_s must be above 0, got {timeout_s}")


def _known(to: Sequence[str], handlers: Mapping[str, Handler]) -> list[str]:
    return [name for name in dict.fromkeys(to) if name in handlers]


def _delivery(escalation: Escalation, to: Sequence[str], ended: Mapping[str, BaseException | None]) -> Delivery:
    """Sum up; a name without a handler is an error like others, so that it cannot lose the case."""
    unknown = _NotDone("there is no such handler")
    results = {name: ended.get(name, unknown) for name in to}
    delivered = tuple(name for name, error in results.items() if error is None)
    errors = tuple(_sentence(name, error) for name, error in results.items() if error is not None)
    if not delivered:
        raise EscalationError(
            f"No handler took case {escalation.decision_id}",
            why="; ".join(errors) or "the policy names none",
            fix="Check the handlers; the case is not in any queue",
        )
    return Delivery(delivered, errors)


def _sentence(name: str, error: BaseException) -> str:
    text = str(error).rstrip(".")
    if isinstance(error, _NotDone):
        return f"{name}: {text}"
    kind = type(error).__name__
    return f"{name}: {kind}: {text}" if text else f"{name}: {kind}"
