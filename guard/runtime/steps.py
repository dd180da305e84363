"""Runs a procedure, described once as a generator of steps, with or without an event loop.

    def answer() -> Steps[str]:
        text = yield Step(fetch, afetch)
        return text.strip()

    drive(answer())  # calls fetch()
    await adrive(answer())  # awaits afetch()

The generator decides, and each step is one operation that it waits for. An exception of a step is raised in the
generator at its ``yield``.

A procedure that streams yields `Emit` steps too, and reads other streams as `Pieces`:

    def shout(words: Pieces) -> Stream:
        yield words.open
        try:
            while (word := (yield words.next)) is not END:
                yield Emit(word.upper())
        finally:
            yield words.close

    drive_stream(shout(words))  # an iterator
    adrive_stream(shout(words))  # an asynchronous one

If the consumer leaves early, the procedure gets `ConsumerLeft` and can still take steps to clean up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Step:
    """One operation that a procedure waits for.

    Attributes:
        run: carries out the operation, blocking.
        arun: carries out the operation without blocking the event loop.
    """

    run: Callable[[], Any]
    arun: Callable[[], Awaitable[Any]]


def step_in(context: Context | None, run: Callable[[], Any], arun: Callable[[], Coroutine[Any, Any, Any]]) -> Step:
    """Return a step that runs in a context; None is the procedure's own."""
    if context is None:
        return Step(run, arun)
    return Step(partial(context.run, run), lambda: asyncio.create_task(arun(), context=context))


#: A procedure that ends with a value of type ``_R``.
Steps = Generator[Step, Any, _R]


def drive(steps: Steps[_R]) -> _R:
    """Run a procedure, blocking in each step, and return its value."""
    resume: Callable[[], Step] = partial(next, steps)
    try:
        while True:
            step = resume()
            try:
                resume = partial(steps.send, step.run())
            except Exception as error:  # noqa: BLE001 - the procedure decides about it
                resume = partial(steps.throw, error)
    except StopIteration as end:
        return cast(_R, end.value)
    finally:
        steps.close()  # an interrupted procedure cleans up now, not at garbage collection


async def adrive(steps: Steps[_R]) -> _R:
    """`drive` without blocking the event loop; a cancellation ends the procedure."""
    resume: Callable[[], Step] = partial(next, steps)
    try:
        while True:
            step = resume()
            try:
                resume = partial(steps.send, await step.arun())
            except Exception as error:  # noqa: BLE001 - as above
                resume = partial(steps.throw, error)
    except StopIteration as end:
        return cast(_R, end.value)
    finally:
        steps.close()


# -- streams -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Emit:
    """A value for the consumer of a stream."""

    value: Any


class ConsumerLeft(BaseException):
    """The consumer has closed the stream. Unlike GeneratorExit it lets the procedure yield steps that clean up."""


#: A procedure that emits its values one by one.
Stream = Generator[Step | Emit, Any, None]

#: Returned by `Pieces.next` after the last piece.
END = object()


def drive_stream(steps: Stream) -> Generator[Any, None, None]:
    """Run a procedure, blocking in each step, and yield its values."""
    resume: Callable[[], Step | Emit] = partial(next, steps)
    while True:
        try:
            step = resume()
        except (StopIteration, ConsumerLeft):
            return
        try:
            if isinstance(step, Emit):
                yield step.value
            resume = partial(steps.send, None if isinstance(step, Emit) else step.run())
        except GeneratorExit:
            resume = partial(steps.throw, ConsumerLeft())
        except BaseException as error:  # noqa: BLE001 - the procedure cleans up, and raises it again
            resume = partial(steps.throw, error)


async def adrive_stream(steps: Stream) -> AsyncGenerator[Any, None]:
    """`drive_stream` without blocking the event loop."""
    resume: Callable[[], Step | Emit] = partial(next, steps)
    while True:
        try:
            step = resume()
        except (StopIteration, ConsumerLeft):
            return
        try:
            if isinstance(step, Emit):
                yield step.value
            resume = partial(steps.send, None if isinstance(step, Emit) else await step.arun())
        except GeneratorExit:
            resume = partial(steps.throw, ConsumerLeft())
        except BaseException as error:  # noqa: BLE001 - as above
            resume = partial(steps.throw, error)


@dataclass(slots=True)
class Pieces:
    """Another stream, read in steps: `open` once, `next` until it returns `END`, then `close`.

    Attributes:
        start: opens it as an iterator.
        astart: opens it as an asynchronous iterator.
        context: context in which it runs; None for the reader's.
    """

    start: Callable[[], Iterator[Any]]
    astart: Callable[[], AsyncIterator[Any]]
    context: Context | None = None
    _stream: Any = None

    @property
    def open(self) -> Step:
        """Open the stream."""
        return step_in(self.context, self._open, self._aopen)

    @property
    def next(self) -> Step:
        """Return the next piece, or `END`."""
        return step_in(self.context, self._next, self._anext)

    @property
    def close(self) -> Step:
        """Close the stream; a plain iterator needs no closing."""
        return step_in(self.context, self._close, self._aclose)

    def _open(self) -> None:
        self._stream = self.start()

    async def _aopen(self) -> None:
        self._stream = self.astart()

    def _next(self) -> Any:
        return next(self._stream, END)

    async def _anext(self) -> Any:
        return await anext(self._stream, END)

    def _close(self) -> None:
        if isinstance(self._stream, Generator):
            self._stream.close()

    async def _aclose(self) -> None:
        if isinstance(self._stream, AsyncGenerator):
            await self._stream.aclose()
