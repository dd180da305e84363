"""A task that is left in a closed event loop does not keep the engine from others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from scripted import AnsweringEngine

from guard.engines.protocols import Chunk
from guard.records import Limits, Prompt

LATE = Limits(timeout_s=20)


@pytest.fixture
def engine() -> AnsweringEngine:
    return AnsweringEngine(lambda prompt, number: ("Paris", 0.1))


def answer(engine: AnsweringEngine) -> str:
    return engine.generate(Prompt.raw("?"), limits=LATE).text


def leave(loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
    """Close a loop over a task that has not ended, as a program does that stops in the middle."""
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_task_that_waited_for_its_turn(engine: AnsweringEngine) -> None:
    held, go = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        held.set()
        go.wait(20)

    engine.on_feed = wait
    holder = threading.Thread(target=answer, args=(engine,))
    holder.start()
    held.wait(20)
    loop = asyncio.new_event_loop()
    task = loop.create_task(engine.agenerate(Prompt.raw("?")))
    loop.run_until_complete(asyncio.sleep(0.1))
    assert engine._loop.waiting == 1
    leave(loop, task)
    go.set()
    holder.join(20)
    assert answer(engine) == "Paris"


def test_a_task_whose_answer_was_being_generated(engine: AnsweringEngine) -> None:
    held, go = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        held.set()
        go.wait(20)

    engine.on_feed = wait
    loop = asyncio.new_event_loop()
    task = loop.create_task(engine.agenerate(Prompt.raw("?")))
    while not held.is_set():
        loop.run_until_complete(asyncio.sleep(0.01))
    leave(loop, task)
    threading.Timer(0.7, go.set).start()  # the next one waits for the token, not only for the loop
    assert answer(engine) == "Paris"


@pytest.mark.parametrize("how", ["thread", "task"])
def test_a_stream_that_was_left_between_two_pieces(engine: AnsweringEngine, how: str) -> None:
    loop = asyncio.new_event_loop()
    stream: AsyncIterator[Chunk] = engine.astream(Prompt.raw("?"))

    async def begin() -> str:
        return (await anext(stream)).text

    assert loop.run_until_complete(begin())
    loop.close()
    if how == "thread":
        assert answer(engine) == "Paris"
    else:
        generation = asyncio.run(engine.agenerate(Prompt.raw("?"), limits=LATE))
        assert generation.text == "Paris"
