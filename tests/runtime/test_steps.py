"""One description of a procedure runs with and without an event loop, in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from guard.runtime.steps import Step, Steps, adrive, drive

Drive = Callable[[Steps[Any]], Any]


def adriven(steps: Steps[Any]) -> Any:
    return asyncio.run(adrive(steps))


DRIVERS = pytest.mark.parametrize("driven", [drive, adriven])


def step(function: Callable[[], Any]) -> Step:
    async def arun() -> Any:
        return function()

    return Step(function, arun)


@DRIVERS
def test_a_procedure_gets_what_its_steps_give_and_ends_with_its_value(driven: Drive) -> None:
    def procedure() -> Steps[int]:
        one = yield step(lambda: 1)
        two = yield step(lambda: one + 1)
        return one + two

    assert driven(procedure()) == 3


@DRIVERS
@pytest.mark.parametrize("error", [ValueError("x"), StopIteration(7)])
def test_what_a_step_raises_is_raised_where_the_procedure_waits(driven: Drive, error: Exception) -> None:
    def fails() -> Any:
        raise error

    def procedure() -> Steps[str]:
        try:
            yield step(fails)
        except (ValueError, StopIteration, RuntimeError) as caught:
            return type(caught).__name__
        return "nothing"

    # A coroutine cannot raise StopIteration: Python makes it a RuntimeError.
    assert driven(procedure()) in (type(error).__name__, "RuntimeError")


@DRIVERS
def test_what_a_procedure_raises_itself_reaches_the_caller(driven: Drive) -> None:
    def procedure() -> Steps[None]:
        yield step(lambda: None)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        driven(procedure())


@DRIVERS
def test_an_interrupted_procedure_cleans_up_at_once(driven: Drive) -> None:
    done = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    def procedure() -> Steps[None]:
        try:
            yield step(interrupt)
        except Exception:  # noqa: BLE001 - an interruption is none
            done.append("caught")
        finally:
            done.append("cleaned up")

    waiting = procedure()
    with pytest.raises(KeyboardInterrupt):
        driven(waiting)
    assert done == ["cleaned up"]
    assert waiting.gi_frame is None  # type: ignore[attr-defined]


async def test_a_cancelled_procedure_is_not_continued() -> None:
    done = []

    def procedure() -> Steps[None]:
        yield Step(lambda: None, lambda: asyncio.sleep(60))
        done.append("continued")

    task = asyncio.create_task(adrive(procedure()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not done
