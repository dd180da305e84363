"""Escalation to people or programs: named handlers, each with a deadline.

A handler is a callable, plain or ``async``, with one argument, a frozen `Escalation`. It accepts the case by
returning, and fails by raising or by missing its deadline. The call is escalated once one handler has accepted.
The value that it returns, such as a ticket number, is its receipt.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guard.engines.callback_errors import is_from_signal_handler
from guard.errors import EscalationError, InputError, did_you_mean, error_text
from guard.records import Escalation
from guard.review import handler_threads
from guard.review.handler_threads import MOST, HangingError

if TYPE_CHECKING:
    from guard.review.store import Store

#: Takes one case. What it returns, or an awaitable gives, is kept as its receipt unless it is None.
Handler = Callable[[Escalation], object]

_log = logging.getLogger("guard.review.handlers")


@dataclass(frozen=True, slots=True)
class PersonAnswer:
    """A person's answer, which the caller gets in place of the model's: what `Decide` and `WaitingQueue` hand back.

    Attributes:
        text: the answer; None where there is none.
        by: whose it is; None where unknown.
        review_id: the case in the review queue; None where it is in none.
    """

    text: str | None
    by: str | None = None
    review_id: str | None = None

    def __str__(self) -> str:
        return self.review_id or "answered"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Who took a case.

    Attributes:
        delivered: names of the handlers that took it, in the order they were asked for.
        errors: one sentence for each handler that did not.
        receipts: what handlers returned, by name, such as a ticket's number or URL; without those that
            returned None.
    """

    delivered: tuple[str, ...]
    errors: tuple[str, ...]
    receipts: Mapping[str, object] = field(default_factory=dict)

    @property
    def answer(self) -> PersonAnswer | None:
        """The first answer of a person among the receipts, or None."""
        return next((each for each in self.receipts.values() if isinstance(each, PersonAnswer)), None)


#: The delivery of a case that no handler gets.
NOBODY = Delivery((), ())


def log_handler(escalation: Escalation) -> None:
    """Write one line to the logger ``guard.review.handlers``; never the prompt or the answer.

    Examples:
        Built-in policies name it:

        >>> from guard import load_policy
        >>> load_policy("balanced").handler_names()
        ('log', 'review')
    """
    _log.warning(
        "escalated decision=%s route=%r p_wrong=%s rule=%r",
        escalation.decision_id,
        escalation.route,
        "unknown" if escalation.p_wrong is None else f"{escalation.p_wrong:.4f}",
        escalation.rule,
    )


@dataclass(frozen=True)
class ReviewQueue:
    """The handler that keeps cases for people, who decide them with ``guard review``.

    Attributes:
        store: where they are kept; it stays the caller's to close.
    """

    store: Store

    def __call__(self, escalation: Escalation) -> str:
        """Keep a case; it is on disk when this returns, and there once however often it is given.

        Returns:
            The review's id.

        Raises:
            StoreError: it could not be written.
        """
        return self.store.add(escalation).id


@dataclass(frozen=True)
class WaitingQueue:
    """The handler that keeps a case for people, and waits for their decision: the caller gets the person's answer.

    Give it under the name that the policy uses, with a ``handler_timeout_s`` above ``timeout_s``. Nothing is generated
    again: a call that is cut off asks later, by its decision id (`guard.review.store.Store.result`).

    Attributes:
        store: where the cases are kept; it stays the caller's to close.
        timeout_s: seconds to wait for a decision; then the receipt is the review's id, and the caller gets the
            policy's reply. A case that becomes late meanwhile gives what the policy says of late ones.

    Examples:
        >>> from guard.review import WaitingQueue
        >>> WaitingQueue(store=None, timeout_s=600.0).timeout_s  # handlers={"review": WaitingQueue(store, 600.0)}
        600.0
    """

    store: Store
    timeout_s: float

    async def __call__(self, escalation: Escalation) -> PersonAnswer | str:
        """Keep a case and wait; return the person's answer, or the review's id where nobody decided in time.

        Raises:
            StoreError: the case could not be written.
        """
        review = await asyncio.to_thread(self.store.add, escalation)
        result = await self.store.wait_async(escalation.decision_id, timeout_s=self.timeout_s)
        return PersonAnswer(result.answer, result.reviewer, review.id) if result.is_ready else review.id


@dataclass(frozen=True)
class Decide:
    """The handler whose return value is the caller's answer: ask the pharmacist now.

    Attributes:
        function: takes one case, plain or ``async``; a text is the answer, None means that there is none.
        by: whose answers these are.

    Examples:
        >>> from guard.review import Decide
        >>> Decide(lambda case: "Ask your doctor.", by="pharmacist").by  # handlers={"pharmacist": Decide(...)}
        'pharmacist'
    """

    function: Handler
    by: str | None = None

    async def __call__(self, escalation: Escalation) -> PersonAnswer:
        """Ask, and return the answer.

        Raises:
            InputError: the function gave something else than a text or None.
        """
        plain = not _is_async(self.function)
        answer = await asyncio.to_thread(self.function, escalation) if plain else self.function(escalation)
        text = await answer if inspect.isawaitable(answer) else answer
        if text is not None and not isinstance(text, str):
            raise InputError(f"A decision must be a text or None, got a {type(text).__name__}")
        return PersonAnswer(text, self.by)


def check_handlers(names: Iterable[str], handlers: Mapping[str, Handler]) -> None:
    """Check the handlers that a policy names, before the first case needs them.

    Raises:
        InputError: they are not a mapping, a name has no handler, or a handler cannot be called.
    """
    given = as_named("handlers", handlers, HANDLERS)
    for name in names:
        if name not in given:
            near = did_you_mean(name, handlers)
            fix = f"Give it under this name: handlers={{'{name}': ...}}, or guard ask --handler {name}=MODULE:FUNCTION"
            raise InputError(f"There is no escalation handler '{name}'", fix=f"{near} {fix}".strip())
        if not callable(given[name]):
            kind = type(given[name]).__name__
            raise InputError(f"The escalation handler '{name}' cannot be called", why=f"it is a {kind}")


#: What handlers are, for errors.
HANDLERS = "functions of one Escalation"


def as_named(argument: str, given: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """Check and copy a mapping from names in a policy to what they stand for; None is an empty one.

    Args:
        argument: of the function that got them, such as ``handlers``.
        given: what it got.
        what: what they are.

    Raises:
        InputError: it is no mapping from names.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return dict(given)
    kind = "one with other keys" if isinstance(given, Mapping) else f"a {type(given).__name__}"
    raise InputError(
        f"{argument}= must be a mapping from names to {what}, got {kind}",
        why="the policy names them",
        fix=f"Write {argument}={{'NAME': ...}} with the names in the policy",
    )


def escalate(
    escalation: Escalation, *, handlers: Mapping[str, Handler], to: Sequence[str], timeout_s: float = 10.0
) -> Delivery:
    """Hand a case to handlers, all at the same time, and wait for them.

    Each handler runs in its own daemon thread, an ``async`` one on its own event loop. A plain handler that is late
    cannot be stopped: its thread continues and may accept the case after it was reported as late, but it does not
    keep the process alive. Once all its threads
    (`guard.review.handler_threads.MOST`) are late, further cases fail at once for it. An ``async`` one is cancelled.

    Args:
        escalation: the case.
        handlers: all handlers by name.
        to: names of the handlers that get it.
        timeout_s: seconds that each has.

    Returns:
        The handlers that accepted the case, and the errors of the others. An error is raised only if none accepted.

    Raises:
        EscalationError: no handler accepted the case; the message has the error of each.
        InputError: ``timeout_s`` is not above 0.
    """
    _check_timeout(timeout_s)
    known = _known(to, handlers)
    running = {name: _in_thread(handlers[name], escalation, timeout_s) for name in known}
    wait(running.values(), timeout=timeout_s)
    ended = {name: _ended(run, timeout_s) for name, run in running.items()}
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
    running: dict[str, asyncio.Future[object]] = {}
    for name in _known(to, handlers):
        handler = handlers[name]
        if _is_async(handler):
            running[name] = asyncio.ensure_future(_await(handler, escalation))
        else:
            running[name] = asyncio.wrap_future(_in_thread(handler, escalation, timeout_s))
    try:
        if running:
            await asyncio.wait(running.values(), timeout=timeout_s)
        ended = {name: _ended(run, timeout_s) for name, run in running.items()}
    finally:
        for name, run in running.items():
            _abandon(run, handlers[name])
    return _delivery(escalation, to, ended)


# -- running one handler -----------------------------------------------------------------------


class _NotDone(Exception):
    """A failure from outside of a handler, unlike an exception that it raises itself (such as its TimeoutError)."""


def _late(timeout_s: float) -> _NotDone:
    return _NotDone(f"not done within {timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class _End:
    """What became of a handler: an error, or the case is taken and this is the receipt."""

    error: BaseException | None = None
    receipt: object = None


def _ended(run: Future[object] | asyncio.Future[object], timeout_s: float) -> _End:
    if not run.done():
        return _End(_late(timeout_s))
    if run.cancelled():
        return _End(_NotDone("cancelled"))
    error = run.exception()
    if error is not None and is_from_signal_handler(error):
        raise error
    return _End(error) if error is not None else _End(receipt=run.result())


def _in_thread(handler: Handler, escalation: Escalation, timeout_s: float) -> Future[object]:
    """Start a handler; the future ends when it does, and is never cancelled."""

    def work() -> object:
        result = handler(escalation)
        return asyncio.run(_finish(result, timeout_s)) if inspect.isawaitable(result) else result

    return handler_threads.start(handler, work, timeout_s)


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


async def _await(handler: Handler, escalation: Escalation) -> object:
    if sum(other == handler and not task.get_loop().is_closed() for task, other in _ENDING.items()) >= MOST:
        raise HangingError
    result = handler(escalation)
    return await result if inspect.isawaitable(result) else result


async def _finish(result: Awaitable[object], timeout_s: float) -> object:
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            return await result
    except TimeoutError:
        if deadline.expired():
            raise _late(timeout_s) from None
        raise


#: Cancelled tasks that have not ended yet, with their handlers; asyncio itself keeps no reference to them.
_ENDING: dict[asyncio.Future[object], Handler] = {}


def _abandon(run: asyncio.Future[object], handler: Handler) -> None:
    """Cancel a handler without waiting for it: one that ignores its cancellation would keep us."""
    if run.done():
        return
    _ENDING[run] = handler
    run.add_done_callback(lambda done: _ENDING.pop(done, None))
    run.add_done_callback(lambda done: done.cancelled() or done.exception())
    run.cancel()


# -- the sum of it -----------------------------------------------------------------------------


def _check_timeout(timeout_s: float) -> None:
    if not timeout_s > 0:
        raise InputError(f"timeout_s must be above 0, got {timeout_s}")


def _known(to: Sequence[str], handlers: Mapping[str, Handler]) -> list[str]:
    return [name for name in dict.fromkeys(to) if name in handlers]


def _delivery(escalation: Escalation, to: Sequence[str], ended: Mapping[str, _End]) -> Delivery:
    """Sum up; a name without a handler is an error like others, so that it cannot lose the case."""
    unknown = _End(_NotDone("there is no such handler"))
    results = {name: ended.get(name, unknown) for name in to}
    delivered = tuple(name for name, end in results.items() if end.error is None)
    errors = tuple(_sentence(name, end.error) for name, end in results.items() if end.error is not None)
    if not delivered:
        raise EscalationError(
            f"No handler took case {escalation.decision_id}",
            why="; ".join(errors) or "the policy names none",
            fix="Check the handlers; the case is not in any queue",
        )
    receipts = {name: results[name].receipt for name in delivered}
    return Delivery(delivered, errors, {name: receipt for name, receipt in receipts.items() if receipt is not None})


def _sentence(name: str, error: BaseException) -> str:
    text, kind = error_text(error).rstrip("."), type(error).__name__
    return (
        f"{name}: {text}" if text == kind or isinstance(error, _NotDone | HangingError) else f"{name}: {kind}: {text}"
    )
