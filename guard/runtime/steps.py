"""Describes a procedure once, as a generator of steps, and runs it with or without an event loop.

    def answer() -> Steps[str]:
        text = yield Step(fetch, afetch)
        return text.strip()

    drive(answer())  # calls fetch()
    await adrive(answer())  # awaits afetch()

The generator decides; a step is one thing that it waits for. What a step raises, the generator sees where it waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a procedure waits for.

    Attributes:
        run: does it, and blocks.
        arun: does it without blocking the event loop.
    """

    run: Callable[[], Any]
    arun: Callable[[], Awaitable[Any]]


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
        steps.close()  # what was interrupted cleans up now, not when it is collected


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
