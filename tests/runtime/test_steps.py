"""One description of a procedure runs with and without an event loop, in the same way."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from guard.runtime.steps import END, Emit, Pieces, Step, Steps, Stream, adrive, adrive_stream, drive, drive_stream

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


# -- streams -----------------------------------------------------------------------------------

Consume = Callable[[Stream], list[Any]]


def agathered(steps: Stream) -> list[Any]:
    async def gather() -> list[Any]:
        return [value async for value in adrive_stream(steps)]

    return asyncio.run(gather())


def gathered(steps: Stream) -> list[Any]:
    return list(drive_stream(steps))


CONSUMERS = pytest.mark.parametrize("consumed", [gathered, agathered])


def letters(closed: list[str], *, fail: bool = False, context: Context | None = None) -> Pieces:
    """Two letters, perhaps followed by an error."""

    def start() -> Iterator[str]:
        try:
            yield from "ab"
            if fail:
                raise ValueError("the source failed")
        finally:
            closed.append(CITY.get())

    async def astart() -> AsyncIterator[str]:
        for letter in start():
            yield letter

    return Pieces(start, astart, context)


CITY: ContextVar[str] = ContextVar("city", default="Paris")


def shouted(pieces: Pieces) -> Stream:
    yield pieces.open
    try:
        while (piece := (yield pieces.next)) is not END:
            yield Emit(piece.upper())
    except ValueError as error:
        yield Emit(str(error))
    finally:
        yield pieces.close


def nested(pieces: Pieces) -> Stream:
    """A procedure that has another one in it: closing it must reach the inner one's steps."""
    yield Emit("first")
    yield from shouted(pieces)


@CONSUMERS
def test_a_stream_emits_what_it_reads_and_closes_its_source(consumed: Consume) -> None:
    closed: list[str] = []
    assert consumed(nested(letters(closed))) == ["first", "A", "B"]
    assert closed == ["Paris"]


@CONSUMERS
def test_an_error_of_the_source_is_raised_where_the_procedure_reads(consumed: Consume) -> None:
    assert consumed(nested(letters([], fail=True))) == ["first", "A", "B", "the source failed"]


@CONSUMERS
def test_pieces_are_read_in_their_context(consumed: Consume) -> None:
    closed: list[str] = []
    context = copy_context()
    context.run(CITY.set, "Lyon")
    assert consumed(shouted(letters(closed, context=context))) == ["A", "B"]
    assert closed == ["Lyon"]


def test_a_consumer_that_leaves_closes_the_source_of_a_nested_procedure() -> None:
    closed: list[str] = []
    stream = drive_stream(nested(letters(closed)))
    assert [next(stream), next(stream)] == ["first", "A"]
    stream.close()
    assert closed == ["Paris"]


async def test_an_asynchronous_consumer_that_leaves_closes_the_source_of_a_nested_procedure() -> None:
    closed: list[str] = []
    stream = adrive_stream(nested(letters(closed)))
    assert [await anext(stream), await anext(stream)] == ["first", "A"]
    await stream.aclose()
    gc.collect()
    assert closed == ["Paris"]


async def test_a_cancelled_stream_takes_its_last_steps() -> None:
    reading, closed = asyncio.Event(), []

    async def hang() -> AsyncIterator[str]:
        try:
            reading.set()
            await asyncio.sleep(3600)
            yield "never"
        finally:
            closed.append("closed")

    task = asyncio.create_task(anext(adrive_stream(shouted(Pieces(lambda: iter(""), hang)))))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == ["closed"]
