"""The budget's seconds bound callables and runnables too: a late answer is not accepted, and not waited for."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.errors import EngineTimeoutError
from guard.langchain import ChatGuard, GuardMiddleware, RetractedError, guarded, trusted
from guard.policy.policy import parse_policy
from guard.records import Outcome, Prompt
from guard.runtime.deadline import call_step
from guard.runtime.guard import Guard

POLICY = parse_policy(
    """version: 1
name: t
rules: [{accept: {below: 0.2}}, {fallback: {below: 0.9, to: other}}, {abstain: {}}]
on_error: {abstain: {text: On error.}}
budget: {seconds: 1.5}
"""
)

#: Longer than any budget here; whoever waits for it makes the test fail by its own deadline.
LONG = 30.0


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Holds blocking callables until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def engine() -> AnsweringEngine:
    return AnsweringEngine(lambda prompt, number: ("no", 0.5))


def guard_with(fallback: Any) -> Guard:
    return Guard(engine(), confidence_scorer(), POLICY, fallbacks={"other": fallback})


def blocking(stuck: threading.Event) -> Callable[[Any], str]:
    def answer(asked: Any) -> str:
        stuck.wait(LONG)
        return "late"

    return answer


async def sleeping(asked: Any) -> str:
    await asyncio.sleep(LONG)
    return "late"


class Sleeping:
    async def __call__(self, asked: Any) -> str:
        return await sleeping(asked)


ways = pytest.mark.parametrize("is_async", [False, True], ids=["ask", "aask"])


def ask(guard: Guard, is_async: bool) -> Outcome:
    return asyncio.run(guard.aask("why?")) if is_async else guard.ask("why?")


@ways
@pytest.mark.parametrize("kind", ["blocking", "async", "async object", "lambda"])
def test_a_late_callable_is_left_behind(stuck: threading.Event, kind: str, is_async: bool) -> None:
    fallbacks: dict[str, Any] = {
        "blocking": blocking(stuck),
        "async": sleeping,
        "async object": Sleeping(),
        "lambda": lambda prompt: sleeping(prompt),
    }
    outcome = ask(guard_with(fallbacks[kind]), is_async)
    assert (outcome.answer, outcome.rule) == ("On error.", "on_error")
    assert outcome.errors == (
        "'other' did not answer in time: the budget of the call is exhausted. Raise budget.seconds.",
    )
    assert not stuck.is_set(), "nobody has waited for it"


@ways
def test_a_callable_in_time_has_the_callers_context(is_async: bool) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("v", default="none")
    variable.set("mine")
    outcome = ask(guard_with(lambda prompt: variable.get()), is_async)
    assert outcome.answer == "mine"


@ways
def test_a_callables_own_timeout_error_is_its_own(is_async: bool) -> None:
    def fail(prompt: Prompt) -> str:
        raise TimeoutError("the page did not answer")

    assert ask(guard_with(fail), is_async).errors == ("TimeoutError: the page did not answer",)


async def test_a_cancelled_call_cancels_an_asynchronous_callable() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(prompt: Prompt) -> str:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "late"

    task = asyncio.create_task(call_step(answer, "q", LONG, name="other").arun())
    await asyncio.wait_for(begun.wait(), LONG)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), LONG)


async def test_a_callable_that_ignores_its_cancellation_is_not_waited_for() -> None:
    over = asyncio.Event()

    async def stubborn(asked: Any) -> str:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    with pytest.raises(EngineTimeoutError):
        await call_step(stubborn, "q", 0.05, name="other").arun()
    over.set()


def test_a_callable_that_hangs_costs_a_bounded_number_of_threads(stuck: threading.Event) -> None:
    hanging = blocking(stuck)
    before = threading.active_count()
    for _ in range(40):
        with pytest.raises((EngineTimeoutError, Exception)):
            call_step(hanging, "q", 0.001, name="other").run()
    assert threading.active_count() - before <= 16


# -- chains and agents -------------------------------------------------------------------------


def chat() -> ChatGuard:
    made = engine()
    return ChatGuard(engine=made, scorer=confidence_scorer(made.model), max_tokens=50)


@pytest.mark.parametrize(("asynchronous", "is_async"), [(False, False), (False, True), (True, True)])
def test_a_late_runnable_is_left_behind(stuck: threading.Event, asynchronous: bool, is_async: bool) -> None:
    other = RunnableLambda(sleeping) if asynchronous else RunnableLambda(blocking(stuck))
    safe = guarded(chat(), policy=POLICY, fallbacks={"other": trusted(other)}).with_outcome()

    async def ainvoke() -> Any:
        result = await asyncio.wait_for(safe.ainvoke("q"), LONG / 2)
        assert not stuck.is_set()
        stuck.set()  # LangChain's thread belongs to the loop, whose end would wait for it
        return result

    result = asyncio.run(ainvoke()) if is_async else safe.invoke("q")
    assert is_async or not stuck.is_set()
    assert (result.outcome.answer, result.outcome.rule) == ("On error.", "on_error")
    assert "'other' did not answer in time" in result.outcome.errors[0]


@ways
def test_a_runnable_in_time_is_accepted(is_async: bool) -> None:
    safe = guarded(chat(), policy=POLICY, fallbacks={"other": trusted(lambda asked: "in time")}).with_outcome()
    result = asyncio.run(safe.ainvoke("q")) if is_async else safe.invoke("q")
    assert result.output == "in time"


def sure() -> ChatGuard:
    made = AnsweringEngine(lambda prompt, number: ("yes", 0.1))
    return ChatGuard(engine=made, scorer=confidence_scorer(made.model), max_tokens=50)


def late_chain() -> Any:
    def slow(message: Any) -> Any:
        time.sleep(1.6)
        return message

    return sure() | RunnableLambda(slow)


@ways
def test_a_chains_own_answer_that_is_late_is_not_accepted(is_async: bool) -> None:
    safe = guarded(late_chain(), policy=POLICY, fallbacks={"other": trusted(str)})
    result = asyncio.run(safe.ainvoke("q")) if is_async else safe.invoke("q")
    assert (result.content if hasattr(result, "content") else result) == "On error."


@pytest.mark.parametrize("kind", ["async", "blocking"])
@pytest.mark.parametrize("stream", [False, True], ids=["ainvoke", "astream"])
async def test_on_an_event_loop_a_hanging_step_of_a_chain_is_not_waited_for(
    stuck: threading.Event, kind: str, stream: bool
) -> None:
    step = RunnableLambda(sleeping) if kind == "async" else RunnableLambda(blocking(stuck))
    safe = guarded(sure() | step, policy=POLICY, fallbacks={"other": trusted(str)}).with_outcome()

    async def streamed() -> Any:
        return [chunk async for chunk in safe.astream("q")][-1]

    try:
        result = await asyncio.wait_for(streamed() if stream else safe.ainvoke("q"), LONG / 2)
        assert not stuck.is_set()
    finally:
        stuck.set()  # LangChain's thread belongs to the loop, whose end would wait for it
    assert (result.outcome.answer, result.outcome.rule) == ("On error.", "on_error")
    assert "'model' did not answer in time" in result.outcome.errors[0]
    assert result.outcome.attempts[0].completion_tokens > 0, "the model's call before it is known"


async def test_a_cancelled_chain_cleans_up_before_its_caller_is_cancelled() -> None:
    begun, cleaned = asyncio.Event(), []

    async def step(message: Any) -> Any:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0)
            cleaned.append(message)

    safe = guarded(sure() | RunnableLambda(step), policy=POLICY, fallbacks={"other": trusted(str)})
    task = asyncio.create_task(safe.ainvoke("q"))
    await asyncio.wait_for(begun.wait(), LONG)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(cleaned) == 1


@ways
def test_a_late_answer_that_was_shown_live_is_retracted(is_async: bool) -> None:
    live = parse_policy(
        "version: 1\nname: t\nstreaming: live\nrules: [{accept: {below: 0.2}}, {abstain: {}}]\n"
        "on_error: {abstain: {text: On error.}}\nbudget: {seconds: 1.5}\n"
    )
    safe = guarded(late_chain(), policy=live)

    async def astream() -> list[Any]:
        return [chunk async for chunk in safe.astream("q")]

    with pytest.raises(RetractedError, match="on_error"):
        asyncio.run(astream()) if is_async else list(safe.stream("q"))


@ways
def test_a_policy_in_shadow_mode_has_no_deadline(is_async: bool) -> None:
    shadow = parse_policy(
        "version: 1\nname: t\nmode: shadow\nrules: [{accept: {below: 0.2}}, {abstain: {}}]\n"
        "on_error: abstain\nbudget: {seconds: 1.5}\n"
    )
    safe = guarded(late_chain(), policy=shadow)
    result = asyncio.run(safe.ainvoke("q")) if is_async else safe.invoke("q")
    assert result.content == "yes"


class HangingChat(ScriptedChat):
    async def _agenerate(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(LONG)


async def test_on_an_event_loop_an_agents_hanging_model_is_not_waited_for() -> None:
    agent = create_agent(
        HangingChat(script=[]),
        [],
        middleware=[GuardMiddleware(POLICY, fallbacks={"other": ScriptedChat(script=[])})],
    )
    result = await asyncio.wait_for(agent.ainvoke({"messages": [HumanMessage("q")]}), LONG / 2)
    assert result["messages"][-1].content == "On error."


def test_an_agents_late_answer_is_not_accepted() -> None:
    def slow(messages: Any) -> Any:
        time.sleep(1.6)
        return said("late", 0.05)

    agent = create_agent(
        ScriptedChat(script=slow),
        [],
        middleware=[GuardMiddleware(POLICY, fallbacks={"other": ScriptedChat(script=[])})],
    )
    assert agent.invoke({"messages": [HumanMessage("q")]})["messages"][-1].content == "On error."
