"""Handlers in real threads and on real event loops: each has its deadline, none is swallowed."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_cases import make_escalation

from guard.errors import EscalationError, InputError
from guard.records import Escalation
from guard.review.handler_threads import MOST
from guard.review.handlers import (
    Delivery,
    Handler,
    ReviewQueue,
    aescalate,
    check_handlers,
    escalate,
    log_handler,
)
from guard.review.store import Store

CASE = make_escalation(3)

Deliver = Callable[..., Delivery]


def escalate_async(
    escalation: Escalation, *, handlers: Mapping[str, Handler], to: Sequence[str], timeout_s: float = 10.0
) -> Delivery:
    return asyncio.run(aescalate(escalation, handlers=handlers, to=to, timeout_s=timeout_s))


def escalate_within_a_loop(
    escalation: Escalation, *, handlers: Mapping[str, Handler], to: Sequence[str], timeout_s: float = 10.0
) -> Delivery:
    """The sync function, called where an event loop is running already (as in a notebook)."""

    async def main() -> Delivery:
        return escalate(escalation, handlers=handlers, to=to, timeout_s=timeout_s)

    return asyncio.run(main())


@pytest.fixture(params=[escalate, escalate_async, escalate_within_a_loop])
def call(request: pytest.FixtureRequest) -> Deliver:
    function: Deliver = request.param
    return function


class Keeper:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.cases: list[Escalation] = []

    def __call__(self, escalation: Escalation) -> None:
        self.cases.append(escalation)


class AsyncRecorder(Keeper):
    async def __call__(self, escalation: Escalation) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.cases.append(escalation)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets handlers that wait for it end after the test."""
    event = threading.Event()
    yield event
    event.set()


def fail(_: Escalation) -> None:
    raise ConnectionError("the pager is down.")


async def fail_async(_: Escalation) -> None:
    raise ConnectionError("the pager is down.")


def test_a_handler_gets_the_one_record(call: Deliver) -> None:
    taken = Keeper()
    assert call(CASE, handlers={"a": taken}, to=["a"]) == Delivery(("a",), ())
    assert taken.cases == [CASE]


def test_only_the_named_handlers_run_each_once_in_order(call: Deliver) -> None:
    handlers = {name: Keeper() for name in "abc"}
    assert call(CASE, handlers=handlers, to=["c", "a", "c"]).delivered == ("c", "a")
    assert [len(handlers[name].cases) for name in "abc"] == [1, 0, 1]


@pytest.mark.parametrize("make", ["function", "partial", "object", "lambda"])
def test_async_handlers_of_all_kinds_are_awaited(call: Deliver, make: str) -> None:
    taken = AsyncRecorder()

    async def function(escalation: Escalation, _: int = 0) -> None:
        await taken(escalation)

    kinds: dict[str, Handler] = {
        "function": function,
        "partial": functools.partial(function, _=1),
        "object": taken,
        "lambda": lambda escalation: function(escalation),
    }
    assert call(CASE, handlers={"a": kinds[make]}, to=["a"]).delivered == ("a",)
    assert taken.cases == [CASE]


@pytest.mark.parametrize("failing", [fail, fail_async])
def test_a_failure_is_reported_and_the_others_still_run(call: Deliver, failing: Handler) -> None:
    taken = Keeper()
    delivery = call(CASE, handlers={"pager": failing, "a": taken}, to=["pager", "a"])
    assert delivery == Delivery(("a",), ("pager: ConnectionError: the pager is down",))
    assert taken.cases == [CASE]


class Unspeakable(Exception):
    """An error that fails when it is asked what it says."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(("error", "said"), [(Unspeakable(), "Unspeakable"), (StopIteration(5), "StopIteration")])
def test_an_odd_error_of_a_handler_is_its_own_and_the_case_is_delivered(
    call: Deliver, error: Exception, said: str
) -> None:
    """Before, the first ended the call, though another handler had taken the case; asyncio waited out the second."""

    def odd(_: Escalation) -> None:
        raise error

    delivery = call(CASE, handlers={"odd": odd, "good": lambda _: "taken"}, to=("odd", "good"), timeout_s=60)
    assert delivery.delivered == ("good",)
    (sentence,) = delivery.errors
    assert said in sentence
    assert "not done" not in sentence


def test_a_handler_that_exits_does_not_end_the_caller() -> None:
    delivery = escalate(CASE, handlers={"x": lambda _: sys.exit(3), "a": Keeper()}, to=["x", "a"])
    assert delivery == Delivery(("a",), ("x: SystemExit: 3",))


def test_a_slow_handler_is_late_and_the_others_are_not_held_up(call: Deliver, release: threading.Event) -> None:
    taken, together = Keeper(), threading.Barrier(2)
    met: list[int] = []

    def slow(_: Escalation) -> None:
        met.append(together.wait(20))  # one after the other they would wait for each other in vain
        release.wait(20)

    delivery = call(CASE, handlers={"slow": slow, "a": taken, "slower": slow}, to=["slow", "slower", "a"], timeout_s=1)
    assert delivery == Delivery(("a",), ("slow: not done within 1 s", "slower: not done within 1 s"))
    assert sorted(met) == [0, 1]


def test_a_late_async_handler_is_cancelled(call: Deliver) -> None:
    cancelled = threading.Event()

    async def slow(_: Escalation) -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    delivery = call(CASE, handlers={"slow": slow, "a": Keeper()}, to=["slow", "a"], timeout_s=0.2)
    assert delivery.errors == ("slow: not done within 0.2 s",)
    assert cancelled.wait(5)


def test_a_handlers_own_timeout_is_distinguished_from_its_deadline(call: Deliver) -> None:
    def times_out(_: Escalation) -> None:
        raise TimeoutError("no answer from the pager")

    async def times_out_async(_: Escalation) -> None:
        raise TimeoutError

    delivery = call(CASE, handlers={"s": times_out, "c": times_out_async, "a": Keeper()}, to=["s", "c", "a"])
    assert delivery.errors == ("s: TimeoutError: no answer from the pager", "c: TimeoutError")


def test_when_nobody_takes_it_the_error_says_what_each_said(call: Deliver, release: threading.Event) -> None:
    handlers = {"pager": fail, "slow": lambda _: release.wait(20)}
    with pytest.raises(EscalationError) as caught:
        call(CASE, handlers=handlers, to=["pager", "slow", "mail"], timeout_s=0.2)
    said = str(caught.value)
    for part in ("decision-3", "pager: ConnectionError: the pager is down", "slow: not done", "mail: there is no"):
        assert part in said
    assert "Question" not in said


def test_no_handler_at_all(call: Deliver) -> None:
    with pytest.raises(EscalationError, match="the policy names none"):
        call(CASE, handlers={"a": Keeper()}, to=[])


def test_an_unknown_name_does_not_lose_the_case(call: Deliver) -> None:
    delivery = call(CASE, handlers={"a": Keeper()}, to=["b", "a"])
    assert delivery == Delivery(("a",), ("b: there is no such handler",))


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_deadline_that_makes_no_sense(call: Deliver, timeout_s: float) -> None:
    with pytest.raises(InputError, match="timeout_s"):
        call(CASE, handlers={"a": Keeper()}, to=["a"], timeout_s=timeout_s)


def test_context_variables_go_along(call: Deliver) -> None:
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")
    seen = []
    token = trace.set("trace-1")
    call(CASE, handlers={"a": lambda _: seen.append(trace.get())}, to=["a"])
    trace.reset(token)
    assert seen == ["trace-1"]


def test_no_more_threads_is_that_handlers_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(EscalationError, match="can't start new thread"):
        escalate(CASE, handlers={"a": Keeper()}, to=["a"])


# -- receipts ----------------------------------------------------------------------------------


def test_what_a_handler_returns_is_its_receipt(call: Deliver) -> None:
    async def ticket(_: Escalation) -> str:
        return "OPS-17"

    handlers: dict[str, Handler] = {
        "ticket": ticket,
        "plain": lambda _: {"url": "x"},
        "a": Keeper(),
        "bad": fail,
    }
    delivery = call(CASE, handlers=handlers, to=list(handlers))
    assert delivery.receipts == {"ticket": "OPS-17", "plain": {"url": "x"}}
    assert delivery.delivered == ("ticket", "plain", "a")


# -- handlers that hang ------------------------------------------------------------------------


def threads_of_handlers() -> int:
    return sum(thread.name == "guard-escalation" for thread in threading.enumerate())


def test_a_handler_that_hangs_costs_a_few_threads_and_no_other_handler(call: Deliver, release: threading.Event) -> None:
    taken = Keeper()
    handlers = {"hangs": lambda _: release.wait(60), "a": taken}
    before = threads_of_handlers()
    deliveries = [
        call(make_escalation(number), handlers=handlers, to=["hangs", "a"], timeout_s=0.02) for number in range(60)
    ]
    assert threads_of_handlers() - before <= MOST + 1
    assert all(delivery.delivered == ("a",) for delivery in deliveries)
    assert len(taken.cases) == 60
    assert deliveries[0].errors == ("hangs: not done within 0.02 s",)
    assert deliveries[-1].errors == (f"hangs: {MOST} earlier cases are still running in it, past their deadlines",)
    with pytest.raises(EscalationError, match="earlier cases are still running in it"):
        call(CASE, handlers=handlers, to=["hangs"], timeout_s=5)  # closed, and at once


def test_a_handler_that_recovers_takes_cases_again(call: Deliver) -> None:
    gate, taken = threading.Event(), []

    def slow(escalation: Escalation) -> None:
        gate.wait(60)
        taken.append(escalation.decision_id)

    for number in range(MOST + 3):
        with pytest.raises(EscalationError):
            call(make_escalation(number), handlers={"slow": slow}, to=["slow"], timeout_s=0.02)
    gate.set()
    for _ in range(500):
        if len(taken) == MOST:
            break
        time.sleep(0.01)
    assert call(make_escalation(99), handlers={"slow": slow}, to=["slow"]).delivered == ("slow",)
    assert sorted(taken) == sorted([*(f"decision-{number}" for number in range(MOST)), "decision-99"])


def test_more_cases_than_threads_wait_for_one(release: threading.Event) -> None:
    """A burst is no hang: each case has its turn within its deadline."""
    at_once, most, lock = 0, 0, threading.Lock()

    def work(_: Escalation) -> str:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
        return "done"

    async def main() -> list[Delivery]:
        cases = (make_escalation(number) for number in range(5 * MOST))
        return await asyncio.gather(*(aescalate(case, handlers={"w": work}, to=["w"]) for case in cases))

    deliveries = asyncio.run(main())
    assert [delivery.receipts for delivery in deliveries] == [{"w": "done"}] * (5 * MOST)
    assert most <= MOST


def test_a_case_that_was_given_up_is_never_begun(release: threading.Event) -> None:
    begun = []

    def hangs(escalation: Escalation) -> None:
        begun.append(escalation.decision_id)
        release.wait(60)

    async def main() -> None:
        first = [aescalate(make_escalation(n), handlers={"h": hangs}, to=["h"], timeout_s=30) for n in range(MOST)]
        running = [asyncio.ensure_future(each) for each in first]
        while len(begun) < MOST:
            await asyncio.sleep(0.005)
        with pytest.raises(EscalationError, match=r"not done within 0.05 s"):
            await aescalate(make_escalation(99), handlers={"h": hangs}, to=["h"], timeout_s=0.05)
        release.set()
        await asyncio.gather(*running)

    asyncio.run(main())
    assert "decision-99" not in begun


async def test_an_async_handler_that_ignores_its_cancellation_is_bounded_too() -> None:
    stop, begun = asyncio.Event(), []

    async def stubborn(escalation: Escalation) -> None:
        begun.append(escalation)
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()

    for number in range(MOST + 5):
        with pytest.raises(EscalationError):
            await aescalate(make_escalation(number), handlers={"s": stubborn}, to=["s"], timeout_s=0.01)
    assert len(begun) == MOST
    stop.set()
    await asyncio.sleep(0.01)
    assert (await aescalate(CASE, handlers={"s": stubborn}, to=["s"])).delivered == ("s",)


def test_handlers_work_in_a_forked_child(release: threading.Event) -> None:
    handlers = {"hangs": lambda _: release.wait(60), "a": lambda _: "taken"}
    for number in range(MOST + 1):
        escalate(make_escalation(number), handlers=handlers, to=["hangs", "a"], timeout_s=0.02)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            release.set()  # the child's own
            delivery = escalate(CASE, handlers=handlers, to=["hangs", "a"], timeout_s=20)
            code = 0 if delivery.delivered == ("hangs", "a") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- on an event loop --------------------------------------------------------------------------


async def test_the_event_loop_is_not_blocked(release: threading.Event) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    handlers = {"slow": lambda _: release.wait(20), "a": lambda _: time.sleep(0.3)}
    delivery = await aescalate(CASE, handlers=handlers, to=["slow", "a"], timeout_s=0.6)
    ticking.cancel()
    assert delivery.delivered == ("a",)
    assert ticks > 10


async def test_async_handlers_run_on_the_callers_loop() -> None:
    loops = []

    async def handler(_: Escalation) -> None:
        loops.append(asyncio.get_running_loop())

    await aescalate(CASE, handlers={"a": handler}, to=["a"])
    assert loops == [asyncio.get_running_loop()]


@pytest.mark.parametrize("kind", ["function", "partial", "object", "bound method"])
async def test_async_handlers_of_every_kind_run_on_the_callers_loop_and_are_cancelled_with_it(kind: str) -> None:
    loops, cancelled = list[Any](), asyncio.Event()

    async def function(_: Escalation, wait: float = 30) -> None:
        loops.append(asyncio.get_running_loop())
        try:
            await asyncio.sleep(wait)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    class Object:
        async def __call__(self, escalation: Escalation) -> None:
            await function(escalation)

    kinds: dict[str, Handler] = {
        "function": function,
        "partial": functools.partial(function, wait=20),
        "object": Object(),
        "bound method": Object().__call__,
    }
    with pytest.raises(EscalationError, match="not done within"):
        await aescalate(CASE, handlers={"a": kinds[kind]}, to=["a"], timeout_s=0.05)
    await asyncio.wait_for(cancelled.wait(), 20)
    assert loops == [asyncio.get_running_loop()], "clients that are bound to the loop can be used"


async def test_a_handler_that_ignores_its_cancellation_does_not_keep_us() -> None:
    stop = asyncio.Event()

    async def stubborn(_: Escalation) -> None:
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue

    handlers = {"stubborn": stubborn, "a": Keeper()}
    delivery = await asyncio.wait_for(aescalate(CASE, handlers=handlers, to=["stubborn", "a"], timeout_s=0.2), 20)
    assert delivery.errors == ("stubborn: not done within 0.2 s",)
    stop.set()
    await asyncio.sleep(0)


async def test_a_cancelled_caller_cancels_its_async_handlers() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(_: Escalation) -> None:
        started.set()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.ensure_future(aescalate(CASE, handlers={"slow": slow}, to=["slow"]))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_handler_that_is_cancelled_from_outside_is_an_error() -> None:
    async def cancels_itself(_: Escalation) -> None:
        raise asyncio.CancelledError

    delivery = await aescalate(CASE, handlers={"c": cancels_itself, "a": Keeper()}, to=["c", "a"])
    assert delivery == Delivery(("a",), ("c: cancelled",))


async def test_many_cases_at_once(tmp_path: Path) -> None:
    with Store.open(tmp_path / "reviews.db") as store:
        handlers: dict[str, Handler] = {"review": ReviewQueue(store), "log": log_handler}
        calls: list[Awaitable[Delivery]] = [
            aescalate(make_escalation(number), handlers=handlers, to=["review", "log"]) for number in range(40)
        ]
        deliveries = await asyncio.gather(*calls)
        assert {delivery.delivered for delivery in deliveries} == {("review", "log")}
        assert store.count() == 40


def test_a_handler_that_never_ends_does_not_keep_the_process() -> None:
    code = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from made_cases import make_escalation
from guard.review.handlers import escalate
forever = threading.Event()
handlers = {"slow": lambda _: forever.wait(), "a": lambda _: None}
print(escalate(make_escalation(), handlers=handlers, to=["slow", "a"], timeout_s=0.1).delivered)
"""
    arguments = [sys.executable, "-c", code, str(Path(__file__).parents[1] / "support")]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.strip() == "('a',)"


# -- the handlers that come with guard ---------------------------------------------------------


def test_the_log_line_has_no_prompt_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="guard.review.handlers"):
        log_handler(make_escalation(3, route="a\nfaked line"))
        log_handler(make_escalation(4, p_wrong=None, route=None))
    assert [record.getMessage() for record in caplog.records] == [
        "escalated decision=decision-3 route='a\\nfaked line' p_wrong=0.7500 rule='rules[1]'",
        "escalated decision=decision-4 route=None p_wrong=unknown rule='rules[1]'",
    ]


def test_the_review_queue_keeps_each_case_once(call: Deliver, tmp_path: Path) -> None:
    with Store.open(tmp_path / "reviews.db") as store:
        handlers = {"review": ReviewQueue(store)}
        for _ in range(2):
            delivery = call(CASE, handlers=handlers, to=["review"])
            assert delivery.delivered == ("review",)
            assert delivery.receipts == {"review": store.review("decision-3").id}
        assert [review.decision_id for review in store.reviews()] == ["decision-3"]


def test_a_store_that_fails_is_an_error_of_the_call(call: Deliver, tmp_path: Path) -> None:
    path = tmp_path / "reviews.db"
    with Store.open(path) as store:
        with store._database.write() as connection:
            connection.exec_driver_sql("DROP TABLE review_events")
        with pytest.raises(EscalationError, match=f"review: StoreError: The review store '{path}' failed"):
            call(CASE, handlers={"review": ReviewQueue(store)}, to=["review"])


# -- checking names ----------------------------------------------------------------------------


def test_known_handlers_pass() -> None:
    check_handlers(["a", "b"], {"a": fail, "b": fail_async, "c": fail})


@pytest.mark.parametrize(
    ("handlers", "says"),
    [
        ({"review": fail}, "no escalation handler 'reveiw'. Did you mean 'review'?"),
        ({"pager": fail, "mail": fail}, "Known: mail, pager"),
        ({}, "Give it under this name: handlers={'reveiw': ...}, or guard ask --handler reveiw=MODULE:FUNCTION"),
        ([fail], "handlers= must be a mapping from names to functions of one Escalation, got a list"),
        ({1: fail}, "a mapping from names to functions of one Escalation, got one with other keys"),
        ({"reveiw": "http://example.org"}, "cannot be called: it is a str"),
    ],
)
def test_unknown_handlers_are_refused(handlers: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        check_handlers(["reveiw"], handlers)
    assert says in str(caught.value)


def test_escalation_itself_loads_no_database() -> None:
    code = "import sys, guard.review.handlers; print('sqlalchemy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
