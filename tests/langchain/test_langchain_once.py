"""Steps that run once in a guarded call, and those that run again."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections import Counter
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import BaseTool, tool
from langchain_fixtures import policy
from scripted_chat import ScriptedChat, said

from guard.errors import InputError
from guard.langchain import guarded, once
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings

RETRY = policy("[{accept: {below: 0.5}}, {retry: {below: 1, times: 2}}, {abstain: {text: No.}}]")
PROMPT = ChatPromptTemplate.from_messages([("human", "{found} {question}")])


class Counting(BaseRetriever):
    """Counts how often it is asked for what."""

    counts: Any

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        self.counts[query] += 1
        return [Document(f"about {query}")]


def retrieval(step: Any) -> tuple[Runnable[Any, Any], ScriptedChat]:
    """A chain whose model's first two answers are too bad."""
    model = ScriptedChat(script=[said("a", 0.9), said("b", 0.8), said("c", 0.1)] * 2)
    return RunnablePassthrough.assign(found=(lambda asked: asked["question"]) | step) | PROMPT | model, model


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_retriever_runs_once_a_call_where_the_chain_says_so(how: str, keep: bool) -> None:
    counts: Counter[str] = Counter()
    retriever = Counting(counts=counts)
    chain, model = retrieval(once(retriever) if keep else retriever)
    safe = guarded(chain, policy=RETRY)
    for call in (1, 2):
        assert run(safe, how, {"question": "x"}).strip() == "c"
        assert counts["x"] == call * (1 if keep else 3)
    prompts = [str(messages[0].content) for messages, _ in model.asked]
    assert len(set(prompts)) == 1
    assert "about x" in prompts[0]


def run(safe: Runnable[Any, Any], how: str, asked: Any) -> str:
    async def collected() -> str:
        return "".join([chunk.content async for chunk in safe.astream(asked)])

    if how == "invoke":
        return str(safe.invoke(asked).content)
    if how == "ainvoke":
        return str(asyncio.run(safe.ainvoke(asked)).content)
    if how == "stream":
        return "".join(chunk.content for chunk in safe.stream(asked))
    return asyncio.run(collected())


def test_other_inputs_and_other_steps_have_results_of_their_own() -> None:
    seen: list[Any] = []

    def note(value: Any) -> Any:
        seen.append(value)
        return len(seen)

    one, other = once(RunnableLambda(note)), once(RunnableLambda(note))
    with _attempt():
        assert [
            one.invoke(1),
            one.invoke(2),
            one.invoke(1),
            other.invoke(1),
            one.invoke({"a": [1]}),
            one.invoke({"a": [1]}),
        ] == [1, 2, 1, 3, 4, 4]
    with _attempt():
        assert one.invoke(1) == 5, "another call remembers nothing"
    assert (one.invoke(1), one.invoke(1)) == (6, 7), "outside of guarded calls the step is as it was"


def test_an_input_that_is_changed_afterwards_does_not_confuse() -> None:
    step = once(RunnableLambda(lambda value: len(value)))
    with _attempt():
        value = [1]
        assert step.invoke(value) == 1
        value.append(2)
        assert step.invoke(value) == 2
        assert step.invoke([1]) == 1


def test_inputs_that_cannot_be_copied_or_compared_still_work() -> None:
    numpy = pytest.importorskip("numpy")
    calls: list[Any] = []
    step = once(RunnableLambda(lambda value: calls.append(value) or len(calls)))
    array, lock = numpy.arange(3), {"lock": threading.Lock()}
    with _attempt():
        assert step.invoke(lock) == step.invoke(lock) == 1
        step.invoke(array)


def test_a_step_that_failed_runs_again() -> None:
    outcomes = [OSError("down"), "up"]

    def fetch(_: Any) -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    step = once(RunnableLambda(fetch))
    with _attempt():
        with pytest.raises(OSError, match="down"):
            step.invoke(1)
        assert step.invoke(1) == step.invoke(1) == "up"


def test_branches_that_ask_at_the_same_time_share_one_run() -> None:
    begun = threading.Barrier(1)
    runs: list[Any] = []

    def slow(value: Any) -> Any:
        begun.wait()
        runs.append(value)
        threading.Event().wait(0.05)
        return object()

    step = once(RunnableLambda(slow))
    branches = RunnableParallel(dict.fromkeys("abcd", step))
    with _attempt():
        results = branches.invoke(1)
    assert len({id(result) for result in results.values()}) == len(runs) == 1

    async def together() -> None:
        with _attempt():
            results = await branches.ainvoke(2)
            assert len({id(result) for result in results.values()}) == 1

    asyncio.run(together())
    assert runs == [1, 2]


def test_tools_and_functions_run_once_and_stay_what_they_are() -> None:
    sent: list[str] = []

    @tool
    def send(to: str, config: RunnableConfig, amount: int = 1) -> str:
        """Send money."""
        sent.append(to)
        return f"{amount} sent to {to} by {len(sent)}"

    safe = once(send)
    assert (safe.name, safe.description, safe.args) == (send.name, send.description, send.args)
    with _attempt():
        first = safe.invoke({"to": "ann"})
        assert safe.invoke({"to": "ann", "amount": 1}) == first
        message = safe.invoke({"type": "tool_call", "id": "c2", "name": "send", "args": {"to": "ann"}})
        assert (message.content, message.tool_call_id) == (first, "c2")
        safe.invoke({"to": "bob"})
    assert sent == ["ann", "bob"]
    send.invoke({"to": "ann"})
    assert sent == ["ann", "bob", "ann"]


def test_async_functions_run_once_too() -> None:
    calls: list[int] = []

    @once
    async def fetch(value: int) -> int:
        calls.append(value)
        await asyncio.sleep(0)
        return value * 2

    async def twice() -> tuple[int, int]:
        with _attempt():
            return tuple(await asyncio.gather(fetch(2), fetch(2)))  # type: ignore[return-value]

    assert asyncio.run(twice()) == (4, 4)
    assert calls == [2]


def test_a_pickled_step_is_the_same_step() -> None:
    step = once(PROMPT)
    twin = pickle.loads(pickle.dumps(step))  # noqa: S301
    asked = {"found": "a", "question": "b"}
    with _attempt():
        assert twin.invoke(asked) is step.invoke(asked)
    assert twin.get_input_schema().model_json_schema() == PROMPT.get_input_schema().model_json_schema()


def test_what_cannot_be_wrapped_is_refused() -> None:
    class OwnTool(BaseTool):
        name: str = "own"
        description: str = "does something"

        def _run(self) -> str:
            return "done"

    with pytest.raises(InputError, match="the tool 'own'"):
        once(OwnTool())
    with pytest.raises(InputError, match="got int"):
        once(3)  # type: ignore[call-overload]


class _attempt:
    """Within a guarded call."""

    def __enter__(self) -> None:
        self.token = ATTEMPT.set(AttemptSettings())

    def __exit__(self, *_: object) -> None:
        ATTEMPT.reset(self.token)
