"""The engine's thread with many slots, on a model whose next token depends on all tokens of its own sequence."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scripted import END, ByteEngine

from guard.engines.batch import Feed, PassRow, Start
from guard.engines.request import Request
from guard.errors import CancelledError, EngineError, EngineTimeoutError
from guard.records import Floats, Generation, Limits, ModelInfo, Prompt, Sampling

TWENTY = Limits(max_tokens=20)


class RememberingEngine(ByteEngine):
    """Keeps the tokens of each slot as llama.cpp does, and refuses what does not fit them."""

    capture_point = "mlp"
    reuse = "copy"

    def __init__(self, slots: int = 4, *, cells: int = 400, endless: bool = False) -> None:
        super().__init__()
        self.endless = endless
        self.slots, self.cells = slots, cells
        self.memory: dict[int, list[int]] = {number: [] for number in range(slots)}
        self.passes: list[list[Feed]] = []
        self.fail_at = -1
        self.before_pass: Callable[[], object] = lambda: None

    @property
    def model(self) -> ModelInfo:
        return ModelInfo("remembering", "test", "none", "none", "", "", "", 2, 3, 200)

    @property
    def cache_tokens(self) -> int:
        return self.cells

    @property
    def batch_tokens(self) -> int:
        return 16

    def _begin(self, start: Start) -> int:
        held = self.memory[start.slot if start.source is None else start.source][: start.keep]
        assert held == list(start.prompt[: start.keep])
        self.memory[start.slot] = list(held)
        return start.keep

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        self.before_pass()
        self.passes.append(list(feeds))
        if len(self.passes) == self.fail_at:
            raise EngineError("no electricity")
        assert len({feed.slot for feed in feeds}) == len(feeds)
        assert sum(len(feed.tokens) for feed in feeds) <= self.batch_tokens
        for feed in feeds:
            assert len(self.memory[feed.slot]) == feed.position
            self.memory[feed.slot] += feed.tokens
        return [SequenceRow(self.memory[feed.slot], self.endless) for feed in feeds if feed.chooses]

    def _forget(self, slot: int | None) -> None:
        for number in self.memory if slot is None else [slot]:
            self.memory[number] = []

    def _free(self) -> None:
        """Nothing was loaded."""


class SequenceRow:
    def __init__(self, tokens: list[int], endless: bool) -> None:
        self.endless = endless
        self.rng = np.random.default_rng(zlib.crc32(bytes(token % 256 for token in tokens)))

    def logits(self) -> Floats:
        logits = self.rng.normal(size=END + 1).astype(np.float32)
        logits[END] -= 100.0 * self.endless
        return logits

    def activations(self) -> Floats:
        return self.rng.normal(size=(2, 3)).astype(np.float32)


class SumObserver:
    reads_layers = True

    def __init__(self) -> None:
        self.total = 0.0

    def observe(self, activations: Floats) -> None:
        self.total += float(activations.sum())


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("it never happened")


def question(number: int) -> Prompt:
    """Some begin alike, some are longer than a pass, some have a key."""
    return Prompt.raw(f"{'common instruction, ' * (number % 3)}question {number}", cache_key=(None, "ann")[number % 2])


def settings(number: int) -> dict[str, Any]:
    sampling = Sampling(temperature=1.0, seed=number) if number % 2 else Sampling()
    return {"sampling": sampling, "limits": Limits(max_tokens=3 + number, stop=("e",) if number % 5 == 0 else ())}


def alone(number: int) -> tuple[tuple[int, ...], str, float]:
    seen = SumObserver()
    answer = RememberingEngine(1).generate(question(number), observer=seen, **settings(number))
    return answer.token_ids, answer.text, seen.total


@pytest.mark.parametrize("slots", [1, 2, 4, 16])
@pytest.mark.parametrize("how", ["threads", "tasks"])
def test_sixteen_at_once_get_the_answers_and_layers_of_one(how: str, slots: int) -> None:
    engine, seen = RememberingEngine(slots), [SumObserver() for _ in range(16)]
    if how == "threads":
        with ThreadPoolExecutor(16) as pool:
            ask = lambda n: engine.generate(question(n), observer=seen[n], **settings(n))  # noqa: E731
            answers = list(pool.map(ask, range(16)))
    else:

        async def tasks() -> list[Generation]:
            return await asyncio.gather(
                *(engine.agenerate(question(n), observer=seen[n], **settings(n)) for n in range(16))
            )

        answers = asyncio.run(tasks())
    found = [(a.token_ids, a.text, s.total) for a, s in zip(answers, seen, strict=True)]
    assert found == [alone(n) for n in range(16)]


@pytest.mark.parametrize("seed", range(5))
def test_whoever_comes_and_goes_the_others_get_their_answers(seed: int) -> None:
    """Streams that are left, cancelled and late requests, a pass that fails: memory and answers stay right."""
    engine, draw = RememberingEngine(4, cells=250), random.Random(seed)
    engine.fail_at = 40
    kinds = [draw.choice(["answer", "leave", "cancel", "late"]) for _ in range(40)]

    def ask(number: int) -> Generation | None:
        with contextlib.suppress(CancelledError, EngineTimeoutError, EngineError):
            if kinds[number] == "leave":
                stream = engine.stream(question(number), limits=TWENTY)
                next(stream)
                stream.close()  # type: ignore[attr-defined]
            elif kinds[number] == "cancel":
                cancel = threading.Event()
                cancel.set()
                engine.generate(question(number), limits=TWENTY, cancel=cancel)
            elif kinds[number] == "late":
                engine.generate(question(number), limits=Limits(max_tokens=20, timeout_s=0.001))
            else:
                return engine.generate(question(number), **settings(number))
        return None

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    for number, answer in enumerate(answers):
        assert answer is None or answer.token_ids == alone(number)[0]
    assert sum(answer is not None for answer in answers) >= kinds.count("answer") - 4, (
        "one pass failed, of four at most"
    )
    table = engine._loop._table
    assert table is not None
    assert not any(slot.busy for slot in table.slots)
    assert all(not slot.tokens or slot.tokens == engine.memory[slot.number] for slot in table.slots)
    engine.fail_at = -1  # where the others took fewer passes
    assert engine.generate(question(1), **settings(1)).token_ids == alone(1)[0]


#: When each of some requests comes, and how much later it is cancelled, in passes of the model.
VISITS = st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(0, 12)), min_size=1, max_size=16)


@hypothesis_settings(max_examples=40, deadline=None)
@given(visits=VISITS)
def test_whenever_they_come_and_leave_those_who_stay_get_the_answers_of_one(
    visits: list[tuple[int, int | None]],
) -> None:
    """The engine's thread itself lets them in and cancels them, between two passes beside one long answer."""
    engine, cancels = RememberingEngine(4, cells=250, endless=True), [threading.Event() for _ in visits]
    asked, came, submit = dict[int, Any](), list[object](), engine._loop.submit

    def come(request: Request) -> None:
        submit(request)
        if threading.current_thread() is not threading.main_thread():
            came.append(request)

    engine._loop.submit = come  # type: ignore[method-assign]

    def ask(number: int) -> tuple[int, ...] | None:
        with contextlib.suppress(CancelledError):
            return engine.generate(question(number), cancel=cancels[number], **settings(number)).token_ids
        return None

    def come_and_leave() -> None:
        passes = len(engine.passes)
        for number, (comes, stays) in enumerate(visits):
            if comes == passes and number not in asked:
                asked[number] = pool.submit(ask, number)
                wait_until(lambda: len(came) == len(asked))
            if stays is not None and comes + stays == passes:
                cancels[number].set()

    with ThreadPoolExecutor(16) as pool:
        engine.before_pass = come_and_leave
        first = engine.generate(Prompt.raw("the long one"), limits=Limits(max_tokens=60)).token_ids
        found = {number: answer.result() for number, answer in asked.items()}
    engine.before_pass = lambda: None
    assert len(found) == len(visits)
    for number, (_, stays) in enumerate(visits):
        single = RememberingEngine(1, endless=True).generate(question(number), **settings(number)).token_ids
        assert found[number] in ([single] if stays is None else [single, None])
    single = RememberingEngine(1, endless=True).generate(Prompt.raw("the long one"), limits=Limits(max_tokens=60))
    assert first == single.token_ids
    table = engine._loop._table
    assert table is not None
    assert not any(slot.busy for slot in table.slots)
    assert all(not slot.tokens or slot.tokens == engine.memory[slot.number] for slot in table.slots)


def test_of_an_observer_that_reads_no_layers_none_are_recorded() -> None:
    engine, unread, reading = RememberingEngine(), SumObserver(), SumObserver()
    unread.reads_layers = False
    answer = engine.generate(question(1), observer=unread, **settings(1))
    assert not any(feed.capture for feeds in engine.passes for feed in feeds)
    assert (unread.total, answer.capture_error) == (0.0, None)
    assert engine.generate(question(1), observer=reading, **settings(1)).token_ids == answer.token_ids
    assert any(feed.capture for feeds in engine.passes for feed in feeds)
    assert reading.total != 0.0


def test_answers_that_may_become_long_are_answered_together() -> None:
    """A limit far beyond what is written keeps no room from others."""
    engine, free = RememberingEngine(4, cells=500), threading.Event()
    engine.before_pass = lambda: free.wait(20)
    limits = Limits(max_tokens=10**6, stop=("e", "a", "7"))
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(engine.generate, question(n), limits=limits) for n in range(3)]
        wait_until(lambda: engine._loop.waiting + len(engine._loop._running) == 3)
        free.set()
        found = [answer.result(20).token_ids for answer in answers]
    assert max(map(len, engine.passes)) == 3, "three that could fill the whole context would not fit"
    assert found == [RememberingEngine(1).generate(question(n), limits=limits).token_ids for n in range(3)]


@pytest.mark.parametrize("how", ["threads", "tasks"])
def test_for_want_of_room_who_came_last_waits_and_all_get_their_own_answers(how: str) -> None:
    engine, free, seen = (
        RememberingEngine(4, cells=300, endless=True),
        threading.Event(),
        [SumObserver() for _ in range(6)],
    )
    engine.before_pass = lambda: free.wait(20)
    ended: list[int] = []

    def settings_of(number: int) -> dict[str, Any]:
        return {"sampling": Sampling(temperature=1.0, seed=number + 20), "limits": Limits(max_tokens=10**6)}

    def ask(number: int) -> Generation:
        answer = engine.generate(question(number), observer=seen[number], **settings_of(number))
        ended.append(number)
        return answer

    paused: list[int] = []
    pause = engine._loop._pause
    engine._loop._pause = lambda engine, running: (paused.append(running.turn), pause(engine, running))[1]  # type: ignore[method-assign, func-returns-value]
    if how == "threads":
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask, number) for number in range(6)]
            wait_until(lambda: engine._loop.waiting + len(engine._loop._running) == 6)
            free.set()
            answers = [each.result(60) for each in asked]
    else:
        free.set()

        async def tasks() -> list[Generation]:
            each = (engine.agenerate(question(n), observer=seen[n], **settings_of(n)) for n in range(6))
            return list(await asyncio.gather(*each))

        answers = asyncio.run(tasks())
    assert paused
    assert 0 not in paused, "who came first is held up by nobody"
    for number, answer in enumerate(answers):
        alone_seen = SumObserver()
        expected = RememberingEngine(1, endless=True).generate(
            question(number), observer=alone_seen, **settings_of(number)
        )
        assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
        assert seen[number].total == alone_seen.total, "each token's layers are handed over once"


def test_an_answer_that_waits_for_room_can_be_cancelled() -> None:
    engine, limits = RememberingEngine(4, cells=300, endless=True), Limits(max_tokens=10**6)
    stopped, free = threading.Event(), threading.Event()
    waiting: list[int] = []

    def hold() -> None:
        if engine._loop._paused and not free.is_set():
            waiting.append(len(engine._loop._paused))
            free.wait(20)

    engine.before_pass = hold
    draw = Sampling(temperature=1.0, seed=22)
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(engine.generate, question(n), limits=limits, sampling=draw, cancel=stopped) for n in range(2)
        ]
        wait_until(lambda: bool(waiting))
        stopped.set()
        free.set()
        for each in asked:
            with pytest.raises(CancelledError):
                each.result(20)
    assert not engine._loop._paused
    assert engine._loop._table is not None
    assert not any(slot.busy for slot in engine._loop._table.slots)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no signal masks here")
def test_signals_are_left_to_other_threads_and_faults_are_not() -> None:
    masks: list[set[int]] = []

    class MaskObserver:
        def observe(self, activations: Floats) -> None:
            masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    RememberingEngine().generate(question(1), observer=MaskObserver(), limits=Limits(max_tokens=1))
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM} <= masks[0]
    assert not {signal.SIGSEGV, signal.SIGABRT} & masks[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_long_prompt_does_not_keep_answers_waiting() -> None:
    """The answer can end before the other thread has asked, so there are several tries."""
    shared = (passes_shared_with_a_long_prompt() for _ in range(50))
    assert any(number >= 2 for number in shared), "the prompt is read in parts beside the answer"


def passes_shared_with_a_long_prompt() -> int:
    engine = RememberingEngine(4)
    with ThreadPoolExecutor(2) as pool:
        stream = engine.stream(Prompt.raw("short"), limits=Limits(max_tokens=60), sampling=Sampling(1.0, seed=4))
        next(stream)
        long = pool.submit(engine.generate, Prompt.raw("long " * 30), limits=Limits(max_tokens=1))
        pieces = 1 + len(list(stream))
        long.result(20)
    assert pieces > 20, "this seed has a short answer: choose another"
    return sum(len(feeds) == 2 for feeds in engine.passes)
