"""What every engine inherits, on an engine whose answers are scripted."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.engines.base import BaseEngine
from guard.engines.batch import Feed, PassRow, Start
from guard.engines.detokenizer import BytesDetokenizer, Detokenizer
from guard.errors import (
    CancelledError,
    CaptureError,
    EngineError,
    EngineTimeoutError,
    InputError,
    PromptTooLongError,
)
from guard.records import Floats, Generation, Limits, ModelInfo, Prompt, Sampling

END = 256
QUESTION = Prompt.raw("why?")


class ScriptedEngine(BaseEngine):
    """Gives the bytes of a text, in pieces, whatever is asked. Tokens 0 to 255 are bytes, 256 is the end.

    ``on_feed`` runs before each pass, with the number of the pass in its request: tests wait there,
    fail there, and look around there.
    """

    capture_point = "mlp"

    def __init__(self, pieces: Sequence[bytes], *, context_tokens: int = 500) -> None:
        super().__init__()
        self.pieces = [*pieces]
        self.context_tokens = context_tokens
        self.on_feed: Callable[[int], None] = lambda number: None
        self.on_encode: Callable[[Prompt], None] = lambda prompt: None
        self.open_requests = self.passes = 0
        self.part_tokens = 10**6
        self.captured: list[bool] = []
        self.served: list[str] = []

    @property
    def model(self) -> ModelInfo:
        return ModelInfo("scripted", "test", "none", "none", "", "", "", 2, 3, self.context_tokens)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < END else self.pieces[token - END - 1]

    def encode(self, prompt: Prompt) -> list[int]:
        self.on_encode(prompt)
        return [*prompt.question.encode()]

    def encode_text(self, text: str) -> list[int]:
        return [*text.encode()]

    def _detokenizer(self) -> Detokenizer:
        return BytesDetokenizer(self.piece)

    def _is_end(self, token: int) -> bool:
        return token == END

    def _end_token(self) -> int:
        return END

    @property
    def batch_tokens(self) -> int:
        return self.part_tokens

    def _begin(self, start: Start) -> int:
        self.open_requests += 1
        assert self.open_requests == 1, "two requests at once"
        self.captured.append(start.capture)
        self.served.append(bytes(start.prompt).decode())
        self.passes = 0
        return 0

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        (feed,) = feeds
        self.on_feed(self.passes)
        self.passes += feed.chooses
        return [self] if feed.chooses else []

    def _release(self, slot: int) -> None:
        self.open_requests -= 1

    def logits(self) -> Floats:
        script = [END + 1 + number for number in range(len(self.pieces))] + [END]
        logits = np.zeros(END + 1 + len(self.pieces), np.float32)
        logits[script[min(self.passes - 1, len(script) - 1)]] = 8.0
        return logits

    def activations(self) -> Floats:
        return np.full((2, 3), self.passes, np.float32)

    def _free(self) -> None:
        """Nothing was loaded."""


class CopyObserver:
    """An observer that keeps copies."""

    def __init__(self) -> None:
        self.seen: list[Floats] = []

    def observe(self, activations: Floats) -> None:
        self.seen.append(activations.copy())


class Gate:
    """Stops an engine in its first pass until the test opens it."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        engine.on_feed = self

    def __call__(self, number: int) -> None:
        if number == 0:
            self.reached.set()
            assert self.opened.wait(20)


def queued(engine: ScriptedEngine) -> int:
    return engine._loop.waiting


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# -- one request -------------------------------------------------------------------------------


def test_an_answer_ends_with_the_end_token_and_counts_its_pass() -> None:
    engine = ScriptedEngine([b"to ", b"be", b"."])
    recording = CopyObserver()
    answer = engine.generate(QUESTION, observer=recording)
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("to be.", "stop", 4)
    assert answer.token_ids == (257, 258, 259, END)
    assert answer.completion_tokens == 4
    assert answer.logprobs.shape == answer.entropies.shape == answer.margins.shape == (4,)
    np.testing.assert_allclose(answer.margins, 8.0)
    assert [activations[0, 0] for activations in recording.seen] == [1, 2, 3, 4]
    assert engine.captured == [True]
    assert answer.capture_error is None


def test_nothing_is_captured_without_an_observer() -> None:
    engine = ScriptedEngine([b"x"])
    engine.generate(QUESTION)
    assert engine.captured == [False]


@pytest.mark.parametrize(("context", "limit", "made"), [(500, 2, 2), (6, 100, 2), (500, 3, 3), (500, 4, 4)])
def test_limits_of_tokens_and_of_the_context(context: int, limit: int, made: int) -> None:
    engine = ScriptedEngine([b"a", b"b", b"c"], context_tokens=context)
    answer = engine.generate(QUESTION, limits=Limits(max_tokens=limit))
    assert answer.completion_tokens == made
    assert answer.finish_reason == ("stop" if made == 4 else "length")
    assert answer.text == "abc"[:made]


def test_a_prompt_must_fit_and_must_not_be_empty() -> None:
    engine = ScriptedEngine([b"a"], context_tokens=4)
    with pytest.raises(PromptTooLongError, match="4 tokens, the context holds 4"):
        engine.generate(QUESTION)
    with pytest.raises(InputError, match="empty"):
        engine.generate(Prompt.raw(""))
    assert engine.generate(Prompt.raw("ok?")).text == "a"


@settings(max_examples=150, deadline=None)
@given(
    st.text("abé€", max_size=14),
    st.lists(st.text("abé€", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 3), min_size=40, max_size=40),
)
def test_stop_strings_wherever_the_tokens_are_cut(text: str, stop: list[str], sizes: list[int]) -> None:
    data, pieces = text.encode(), []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    engine = ScriptedEngine([piece for piece in pieces if piece])
    limits = Limits(stop=tuple(stop))

    # The stop string that is complete first ends the answer, from where it begins.
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(tuple(stop))] if stop else []
    answer = engine.generate(QUESTION, limits=limits)
    if ends:
        assert answer.finish_reason == "stop_string"
        assert not any(string in answer.text for string in stop)
        assert any(text.startswith(answer.text + string) for string in stop)
        assert len(answer.text) < ends[0] + max(map(len, stop))
    else:
        assert (answer.finish_reason, answer.text) == ("stop", text)

    chunks = list(engine.stream(QUESTION, limits=limits))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert [chunk.generation is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


@pytest.mark.parametrize("pieces", [["the e", "nd?"], ["the ", "e", "n", "d", "?"], ["the end?"], ["th", "e en", "d?"]])
@pytest.mark.parametrize("stop", [("end",), ("xyz", "end"), ("end", "nd?")])
def test_no_part_of_a_stop_string_is_shown_however_it_is_cut(pieces: list[str], stop: tuple[str, ...]) -> None:
    engine = ScriptedEngine([piece.encode() for piece in pieces])
    chunks = [chunk.text for chunk in engine.stream(QUESTION, limits=Limits(stop=stop))]
    assert "".join(chunks) == "the "
    assert engine.generate(QUESTION, limits=Limits(stop=stop)).text == "the "


def test_an_end_that_only_begins_a_stop_string_is_shown() -> None:
    engine = ScriptedEngine([b"the e", b"n"])
    assert "".join(chunk.text for chunk in engine.stream(QUESTION, limits=Limits(stop=("end",)))) == "the en"


def test_text_is_held_back_only_while_it_could_be_a_stop_string() -> None:
    engine = ScriptedEngine([b"one", b"\n", b"two", b"\n", b"\nthree"])
    chunks = [chunk.text for chunk in engine.stream(QUESTION, limits=Limits(stop=("\n\n",)))]
    assert chunks == ["one", "\ntwo", ""]


def test_a_character_cut_short_becomes_a_replacement_character() -> None:
    engine = ScriptedEngine([b"caf", b"\xc3"])
    assert engine.generate(QUESTION).text == "caf\N{REPLACEMENT CHARACTER}"


def test_replay_runs_a_given_answer_and_its_end() -> None:
    engine = ScriptedEngine([b"a", b"b"])
    recording = CopyObserver()
    answer = engine.generate(QUESTION, completion="b!", observer=recording, limits=Limits(stop=("!",), max_tokens=1))
    assert answer.token_ids == (ord("b"), ord("!"), END)
    assert (answer.text, answer.finish_reason, len(recording.seen)) == ("b!", "stop", 3)
    # Passes 1 and 2 would have chosen the script; in pass 3 the end is what the model would have said.
    np.testing.assert_allclose(answer.margins, 8.0)
    assert answer.logprobs[0] == answer.logprobs[1] < answer.logprobs[2]


def test_a_replay_that_does_not_fit_is_refused_whole() -> None:
    engine = ScriptedEngine([b"a"], context_tokens=len(QUESTION.question) + 4)
    fitting = engine.generate(QUESTION, completion="abc")
    assert (fitting.text, fitting.finish_reason, fitting.completion_tokens) == ("abc", "stop", 4)
    with pytest.raises(PromptTooLongError, match=r"completion has 5 tokens.*8 tokens has room for 4"):
        engine.generate(QUESTION, completion="abcd")
    assert engine.captured == [False], "nothing of the long answer was run"
    assert engine.generate(QUESTION).text == "a", "the engine is free"


def test_a_failing_observer_costs_the_capture_not_the_answer() -> None:
    class FailingObserver(CopyObserver):
        def observe(self, activations: Floats) -> None:
            super().observe(activations)
            if len(self.seen) == 2:
                raise CaptureError("layer 1 is missing")

    failing = FailingObserver()
    answer = ScriptedEngine([b"a", b"b", b"c"]).generate(QUESTION, observer=failing)
    assert answer.text == "abc"
    assert answer.capture_error == "layer 1 is missing."
    assert len(failing.seen) == 2


def test_the_seed_that_was_drawn_repeats_the_answer() -> None:
    engine = ScriptedEngine([b"a", b"b", b"c", b"d"])
    hot = Sampling(temperature=20.0)
    first, second = (engine.generate(QUESTION, sampling=hot, limits=Limits(max_tokens=12)) for _ in range(2))
    assert first.sampling.seed is not None
    assert first.sampling.seed != second.sampling.seed
    again = engine.generate(QUESTION, sampling=first.sampling, limits=Limits(max_tokens=12))
    assert again.token_ids == first.token_ids != second.token_ids


def test_a_failing_engine_serves_the_next_request() -> None:
    engine = ScriptedEngine([b"a"])

    def fail(number: int) -> None:
        raise EngineError("no electricity")

    engine.on_feed = fail
    with pytest.raises(EngineError, match="no electricity"):
        engine.generate(QUESTION)
    engine.on_feed = lambda number: None
    assert engine.generate(QUESTION).text == "a"
    assert engine.open_requests == 0


# -- deadlines and cancellation ----------------------------------------------------------------


def test_a_deadline_ends_a_generation() -> None:
    engine = ScriptedEngine([b"x"] * 400)
    engine.on_feed = lambda number: time.sleep(0.01)
    with pytest.raises(EngineTimeoutError, match=r"No answer within 0\.1 s"):
        engine.generate(QUESTION, limits=Limits(max_tokens=400, timeout_s=0.1))
    assert engine.open_requests == 0


def test_cancelling_ends_a_generation() -> None:
    engine = ScriptedEngine([b"x"] * 400)
    cancel = threading.Event()
    engine.on_feed = lambda number: cancel.set() if number == 5 else None
    with pytest.raises(CancelledError):
        engine.generate(QUESTION, cancel=cancel)
    assert engine.open_requests == 0


def test_a_closed_stream_ends_its_request_at_the_next_step() -> None:
    engine = ScriptedEngine([b"a"] * 400)
    engine.on_feed = lambda number: time.sleep(0.002)
    stream = engine.stream(QUESTION, limits=Limits(max_tokens=400))
    assert next(stream).text == "a"
    assert engine.open_requests == 1
    stream.close()  # type: ignore[attr-defined]
    assert engine.open_requests == 0
    assert engine.passes < 400
    assert engine.generate(QUESTION, limits=Limits(max_tokens=3)).text == "aaa"


def test_streams_that_nobody_reads_hold_up_nobody() -> None:
    engine = ScriptedEngine([b"a", b"b", b"c"])
    left = [engine.stream(QUESTION) for _ in range(3)]
    assert [next(stream).text for stream in left] == ["a"] * 3
    assert engine.generate(QUESTION).text == "abc"
    assert ["".join(chunk.text for chunk in stream) for stream in left] == ["bc"] * 3


def test_a_request_that_cannot_begin_ends_alone_and_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)

    def fail(start: Start) -> int:
        raise EngineError("no room at the inn")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.generate, QUESTION)
        assert gate.reached.wait(20)
        second = pool.submit(engine.generate, Prompt.raw("second"))
        until(lambda: queued(engine) == 1)
        monkeypatch.setattr(engine, "_begin", fail)
        gate.opened.set()
        assert first.result(20).text == "a"
        with pytest.raises(EngineError, match="no room"):
            second.result(20)
    monkeypatch.undo()
    engine.open_requests = 0  # `_release` has counted one that never began
    assert engine.generate(QUESTION).text == "a"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_what_on_token_raises_ends_its_own_request_only(error: BaseException) -> None:
    def fail(_: object) -> None:
        raise error

    engine = ScriptedEngine([b"a"])
    with pytest.raises(type(error)):
        list(engine.stream(QUESTION, on_token=fail))
    assert engine.open_requests == 0
    assert engine.generate(QUESTION).text == "a"


def test_an_observer_that_asks_its_own_engine_is_refused_and_waits_for_nobody() -> None:
    engine = ScriptedEngine([b"a"])

    class Asking(CopyObserver):
        def observe(self, activations: Floats) -> None:
            engine.generate(QUESTION)

    answer = engine.generate(QUESTION, observer=Asking())
    assert answer.text == "a"
    assert "asks the engine that calls it" in str(answer.capture_error)


def test_observers_and_on_token_run_in_the_callers_context() -> None:
    engine, tenant = ScriptedEngine([b"a"]), ContextVar("tenant", default="nobody")
    seen: list[str] = []

    class Looking(CopyObserver):
        def observe(self, activations: Floats) -> None:
            seen.append(tenant.get())

    def ask(name: str) -> None:
        tenant.set(name)
        list(engine.stream(QUESTION, observer=Looking(), on_token=lambda _: seen.append(tenant.get())))

    for name in ("ann", "bob"):
        copy_context().run(ask, name)
    assert seen == ["ann"] * 3 + ["bob"] * 3


def test_closing_ends_what_runs_and_what_waits() -> None:
    engine = ScriptedEngine([b"a"] * 50)
    gate = Gate(engine)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(engine.generate, QUESTION, limits=Limits(max_tokens=50)) for _ in range(3)]
        assert gate.reached.wait(20)
        until(lambda: queued(engine) == 2)
        closing = pool.submit(engine.close)
        gate.opened.set()
        closing.result(20)
        for answer in asked:
            with pytest.raises(EngineError, match="closed"):
                answer.result(20)
    with pytest.raises(EngineError, match="closed"):
        engine.generate(QUESTION)
    assert engine.open_requests == 0


def test_an_engine_that_nobody_uses_is_freed_with_its_thread() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(engine.generate, QUESTION)
        gate.reached.wait(20)
        thread, there = engine._loop._thread, weakref.ref(engine)
        gate.opened.set()
        asked.result(20)
        del asked
    assert thread is not None
    del engine, gate
    for _ in range(200):  # the thread lets go of it after it has handed over the answer
        gc.collect()
        thread.join(0.1)
        if there() is None:
            break
    assert there() is None
    thread.join(20)
    assert not thread.is_alive()


def test_the_thread_ends_soon_after_the_last_request_and_the_next_request_starts_another() -> None:
    engine, seen = ScriptedEngine([b"a"]), list[threading.Thread]()
    engine.on_feed = lambda _: seen.append(threading.current_thread())
    for _ in range(3):
        engine.generate(QUESTION)
        seen[-1].join(20)
        assert not seen[-1].is_alive()
    assert len({id(thread) for thread in seen}) == 3
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(QUESTION)


# -- the queue ---------------------------------------------------------------------------------


def test_threads_are_served_in_the_order_of_their_arrival() -> None:
    engine = ScriptedEngine([b"a", b"b"])
    gate = Gate(engine)
    with ThreadPoolExecutor(13) as pool:
        answers = [pool.submit(engine.generate, Prompt.raw("first"))]
        assert gate.reached.wait(20)
        for number in range(12):
            answers.append(pool.submit(engine.generate, Prompt.raw(f"q{number}")))
            until(lambda: queued(engine) == number + 1)  # noqa: B023 - called at once
        gate.opened.set()
        results = [answer.result(20) for answer in answers]
    assert engine.served == ["first", *(f"q{number}" for number in range(12))]
    assert {result.text for result in results} == {"ab"}
    assert all(result.queue_s > 0 for result in results[1:])


@pytest.mark.parametrize("way", ["generate", "stream", "agenerate", "astream"])
async def test_a_prompt_is_rendered_and_tokenized_outside_the_engines_turn(way: str) -> None:
    """A chat template that takes its time delays its own request only, and never the event loop."""
    engine = ScriptedEngine([b"a"])
    rendering, rendered = threading.Event(), threading.Event()

    def slow(prompt: Prompt) -> None:
        if prompt.question == "slow":
            rendering.set()
            assert rendered.wait(20)

    engine.on_encode = slow

    async def answered(text: str) -> None:
        if way == "agenerate":
            await engine.agenerate(Prompt.raw(text))
        elif way == "astream":
            assert [chunk async for chunk in engine.astream(Prompt.raw(text))]
        elif way == "generate":
            await asyncio.to_thread(engine.generate, Prompt.raw(text))
        else:
            await asyncio.to_thread(lambda: [*engine.stream(Prompt.raw(text))])

    waiting = asyncio.ensure_future(answered("slow"))
    while not rendering.is_set():
        await asyncio.sleep(0.002)
    await asyncio.to_thread(engine.generate, Prompt.raw("quick"))
    assert engine.served == ["quick"]
    rendered.set()
    await waiting
    assert engine.served == ["quick", "slow"]


async def test_tasks_and_threads_share_one_queue_and_the_loop_stays_free() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    with ThreadPoolExecutor(4) as pool:
        answers: list[asyncio.Future[Generation]] = []
        for number in range(6):
            prompt = Prompt.raw(f"q{number}")
            if number % 2:
                answers.append(asyncio.wrap_future(pool.submit(engine.generate, prompt)))
            else:
                answers.append(asyncio.ensure_future(engine.agenerate(prompt)))
            while not gate.reached.is_set() or queued(engine) < number:
                await asyncio.sleep(0.002)  # only a free loop comes back from here
        gate.opened.set()
        await asyncio.gather(*answers)
    assert engine.served == [f"q{number}" for number in range(6)]


async def test_waiting_threads_of_the_loops_own_pool_do_not_starve_the_task_whose_turn_it_is() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    with ThreadPoolExecutor(1) as pool:
        first = asyncio.wrap_future(pool.submit(engine.generate, Prompt.raw("q0")))
        while not gate.reached.is_set():
            await asyncio.sleep(0.002)
        task = asyncio.ensure_future(engine.agenerate(Prompt.raw("q1")))
        while queued(engine) < 1:
            await asyncio.sleep(0.002)
        # Takes the pool's only thread and waits there, behind the task.
        late = asyncio.ensure_future(
            asyncio.to_thread(engine.generate, Prompt.raw("q2"), limits=Limits(max_tokens=4, timeout_s=5))
        )
        while queued(engine) < 2:
            await asyncio.sleep(0.002)
        gate.opened.set()
        await asyncio.gather(first, task, late)
    assert engine.served == ["q0", "q1", "q2"]


def test_cancelled_while_queued() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    cancel = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(engine.generate, Prompt.raw("first"))
        assert gate.reached.wait(20)
        second = pool.submit(engine.generate, Prompt.raw("second"), cancel=cancel)
        until(lambda: queued(engine) == 1)
        third = pool.submit(engine.generate, Prompt.raw("third"))
        until(lambda: queued(engine) == 2)
        cancel.set()
        with pytest.raises(CancelledError):
            second.result(20)
        assert queued(engine) == 1, "only its own place is given up"
        gate.opened.set()
        assert first.result(20).text == third.result(20).text == "a"
    assert engine.served == ["first", "third"]


def test_deadline_while_queued() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(engine.generate, Prompt.raw("first"))
        assert gate.reached.wait(20)
        with pytest.raises(EngineTimeoutError):
            engine.generate(Prompt.raw("second"), limits=Limits(timeout_s=0.05))
        gate.opened.set()
        assert first.result(20).text == "a"
    assert engine.generate(Prompt.raw("third")).text == "a"
    assert engine.served == ["first", "third"]


async def test_a_task_gives_up_its_place_when_cancelled_or_late() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    first = asyncio.ensure_future(engine.agenerate(Prompt.raw("first")))
    await asyncio.to_thread(gate.reached.wait, 20)
    cancelled = asyncio.ensure_future(engine.agenerate(Prompt.raw("cancelled")))
    last = asyncio.ensure_future(engine.agenerate(Prompt.raw("last")))
    with pytest.raises(EngineTimeoutError):
        await engine.agenerate(Prompt.raw("late"), limits=Limits(timeout_s=0.05))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.opened.set()
    assert (await first).text == (await last).text == "a"
    assert engine.served == ["first", "last"]


async def test_a_cancelled_task_holds_the_engine_until_its_pass_is_over() -> None:
    engine = ScriptedEngine([b"a"])
    gate = Gate(engine)
    first = asyncio.ensure_future(engine.agenerate(Prompt.raw("first")))
    await asyncio.to_thread(gate.reached.wait, 20)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.ensure_future(engine.agenerate(Prompt.raw("second")))
    await asyncio.sleep(0.05)
    assert engine.served == ["first"]
    gate.opened.set()
    assert (await asyncio.wait_for(second, 20)).text == "a"


async def test_a_cancelled_task_computes_no_further_token() -> None:
    engine = ScriptedEngine([b"a"] * 200)
    gate, passes = Gate(engine), list[tuple[str, int]]()

    def counted(number: int) -> None:
        passes.append((engine.served[-1], number))
        gate(number)

    engine.on_feed = counted
    task = asyncio.ensure_future(engine.agenerate(Prompt.raw("first"), limits=Limits(max_tokens=200)))
    await asyncio.to_thread(gate.reached.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.opened.set()
    assert (await asyncio.wait_for(engine.agenerate(Prompt.raw("second"), limits=Limits(2)), 20)).text == "aa"
    assert passes == [("first", 0), ("second", 0), ("second", 1)], "the pass that was running is the last"


async def test_streams_give_the_same_pieces_with_and_without_a_loop() -> None:
    engine = ScriptedEngine([b"to ", b"be ", b"or"])
    streamed = [chunk async for chunk in engine.astream(QUESTION)]
    assert [chunk.text for chunk in streamed] == [chunk.text for chunk in engine.stream(QUESTION)]
    assert streamed[-1].generation is not None
    assert streamed[-1].generation.text == (await engine.agenerate(QUESTION)).text == "to be or"


async def test_a_closed_astream_lets_the_next_request_in() -> None:
    engine = ScriptedEngine([b"a", b"b", b"c"])
    stream = engine.astream(QUESTION)
    assert (await anext(stream)).text == "a"
    await stream.aclose()  # type: ignore[attr-defined]
    assert (await asyncio.wait_for(engine.agenerate(QUESTION), 20)).text == "abc"
    assert engine.open_requests == 0


async def test_an_astream_cancelled_within_a_long_prompt_lets_the_next_request_in() -> None:
    engine = ScriptedEngine([b"a", b"b", b"c"])
    engine.part_tokens = 4
    gate, parts = Gate(engine), list[int]()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    def counted(number: int) -> None:
        parts.append(number)
        gate(number)

    async def consume() -> None:
        async for _ in engine.astream(Prompt.raw("first" * 20)):
            pass

    engine.on_feed = counted
    task = asyncio.ensure_future(consume())
    await asyncio.to_thread(gate.reached.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.opened.set()
    assert (await asyncio.wait_for(engine.agenerate(Prompt.raw("2nd")), 20)).text == "abc"
    assert parts[:2] == [0, 0]
    assert len(parts) == 5, "the part that was running is the last of the first prompt"
    assert engine.open_requests == 0
    assert complaints == []


def test_a_stream_cancelled_in_a_loop_that_ends_frees_the_engine() -> None:
    engine = ScriptedEngine([b"a", b"b"])
    engine.on_feed = lambda number: time.sleep(0.05)

    async def give_up() -> None:
        async for _ in engine.astream(QUESTION):
            pass

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(give_up(), 0.02))
    assert engine.generate(QUESTION, limits=Limits(timeout_s=20)).text == "ab"
    assert engine.open_requests == 0
