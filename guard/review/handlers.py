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
    """A person's answer, which the caller gets instead of the model's; the result of `Decide` and `WaitingQueue`.

    Attributes:
        text: the answer, or None.
        by: the person, or None if unknown.
        review_id: id of the case in the review queue, or None.
    """

    text: str | None
    by: str | None = None
    review_id: str | None = None

    def __str__(self) -> str:
        return self.review_id or "answered"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The result of an escalation.

    Attributes:
        delivered: names of the handlers that accepted the case, in the order of the policy.
        errors: one sentence for each handler that did not accept it.
        receipts: results of the handlers by name, such as the number or URL of a ticket; without None.
    """

    delivered: tuple[str, ...]
    errors: tuple[str, ...]
    receipts: Mapping[str, object] = field(default_factory=dict)

    @property
    def answer(self) -> PersonAnswer | None:
        """The first person's answer among the receipts, or None."""
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
    """The handler that adds cases to the review store, for ``guard review`` and the console.

    Attributes:
        store: the review store; the caller closes it.
    """

    store: Store

    def __call__(self, escalation: Escalation) -> str:
        """Add a case; it is committed when this returns. Adding it again has no effect.

        Returns:
            the id of the review.

        Raises:
            StoreError: the case could not be written.
        """
        return self.store.add(escalation).id


@dataclass(frozen=True)
class WaitingQueue:
    """The handler that adds a case to the review store and waits for the decision: the caller gets the person's answer.

    Pass it under the name in the policy, with a ``handler_timeout_s`` above ``timeout_s``. A caller that is interrupted
    can get the result later by the decision id (`guard.review.store.Store.result`).

    Attributes:
        store: the review store; the caller closes it.
        timeout_s: seconds to wait for a decision. After that the receipt is the id of the review, and the caller gets
            the policy's reply. If the case becomes late meanwhile, the policy's rule for late cases applies.

    Examples:
        >>> from guard.review import WaitingQueue
        >>> WaitingQueue(store=None, timeout_s=600.0).timeout_s  # handlers={"review": WaitingQueue(store, 600.0)}
        600.0
    """

    store: Store
    timeout_s: float

    async def __call__(self, escalation: Escalation) -> PersonAnswer | str:
        """Add a case and wait; return the person's answer, or the id of the review if nobody decides in time.

        Raises:
            StoreError: the case could not be written.
        """
        review = await asyncio.to_thread(self.store.add, escalation)
        result = await self.store.wait_async(escalation.decision_id, timeout_s=self.timeout_s)
        return PersonAnswer(result.answer, result.reviewer, review.id) if result.is_ready else review.id


@dataclass(frozen=True)
class Decide:
    """The handler whose result is the caller's answer, to ask a person right now.

    Attributes:
        function: a function of one case, plain or ``async``, that returns the answer, or None for no answer.
        by: the person who answers.

    Examples:
        >>> from guard.review import Decide
        >>> Decide(lambda case: "Ask your doctor.", by="pharmacist").by  # handlers={"pharmacist": Decide(...)}
        'pharmacist'
    """

    function: Handler
    by: str | None = None

    async def __call__(self, escalation: Escalation) -> PersonAnswer:
        """Call the function and return the answer.

        Raises:
            InputError: the function returned something other than a string or None.
        """
        plain = not _is_async(self.function)
        answer = await asyncio.to_thread(self.function, escalation) if plain else self.function(escalation)
        text = await answer if inspect.isawaitable(answer) else answer
        if text is not None and not isinstance(text, str):
            raise InputError(f"A decision must be a text or None, got a {type(text).__name__}")
        return PersonAnswer(text, self.by)


def check_handlers(names: Iterable[str], handlers: Mapping[str, Handler]) -> None:
    """Check the handlers that a policy names.

    Raises:
        InputError: the handlers are not a mapping, a name has no handler, or a handler is not callable.
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


#: Description of handlers, for errors.
HANDLERS = "functions of one Escalation"


def as_named(argument: str, given: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """Check and copy a mapping from names in a policy to objects; None is an empty mapping.

    Args:
        argument: name of the argument, such as ``handlers``.
        given: value of the argument.
        what: description of the objects.

    Raises:
        InputError: the value is not a mapping with string keys.
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
    """Pass a case to all handlers at the same time, and wait for them.

    Each handler runs in a daemon thread, an ``async`` one on its own event loop. A plain handler that misses its
    deadline cannot be stopped: its thread continues and may still accept the case, but does not keep the process alive.
    Once all threads of a handler (`guard.review.handler_threads.MOST`) are late, further cases fail at once. An
    ``async`` handler is cancelled.

    Args:
        escalation: the case.
        handlers: all handlers by name.
        to: names of the handlers that get it.
        timeout_s: deadline of each handler in seconds.

    Returns:
        the handlers that accepted the case, and the errors of the others.

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

    ``async`` handlers run on the caller's loop, so they can use clients that are bound to it. They are cancelled at
    their deadline, or with the caller. Plain handlers run in daemon threads.

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
    """A handler missed its deadline, or could not run; distinct from exceptions of the handler itself."""


def _late(timeout_s: float) -> _NotDone:
    return _NotDone(f"not done within {timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class _End:
    """The result of a handler: an error, or the receipt of the accepted case."""

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
    """Start a handler; its future is never cancelled."""

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


#: Cancelled tasks that have not ended, with their handlers; asyncio keeps no reference to them.
_ENDING: dict[asyncio.Future[object], Handler] = {}


def _abandon(run: asyncio.Future[object], handler: Handler) -> None:
    """Cancel a handler without waiting: it may ignore the cancellation."""
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
    """Return the delivery. A name without a handler is an error like any other, so that the case is not lost."""
    unknown = _End(_NotDone("there is no such handler"))
    results = {name: ended.get(name, unknown) for name in to}
    delivered = tuple(name for name, end in results.items() if end.error is None)
    errors = tuple(_sentence(name, end.error) for name, end in results.items() if end.error is not None)
    if not delivered:
        raise EscalationError(
            f"No handler accepted case {escalation.decision_id}",
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
