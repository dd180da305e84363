"""What a Python signal handler raises ends a guarded chain or agent and reaches its caller: no policy decides."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest
from alarm import AlarmError, raising_handler  # noqa: F401 - a fixture
from langchain.agents.middleware import AgentMiddleware
from langchain_agents import Around, ask, thread
from langchain_agents import agent as agent_of
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_fixtures import policy
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.langchain import ChatGuard, guarded
from guard.records import Escalation

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("raising_handler")]

RULES = "[{accept: {below: 0.5}}, {abstain: {text: No.}}]"
FAILED = "on_error: {abstain: {text: failed}}"


def interrupt() -> None:
    signal.raise_signal(signal.SIGALRM)


def interrupted(value: Any) -> Any:
    interrupt()
    return value


async def ainterrupted(value: Any) -> Any:
    return interrupted(value)


def hidden(value: Any) -> Any:
    try:
        return interrupted(value)
    except AlarmError as error:
        raise ValueError(f"cannot parse {value}") from error


async def ahidden(value: Any) -> Any:
    return hidden(value)


#: A step that a signal interrupts, and one that turns the exception into an error of its own.
STEPS = {"plain": RunnableLambda(interrupted, ainterrupted), "wrapped": RunnableLambda(hidden, ahidden)}

HOW = pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])


def run(safe: Runnable[Any, Any], how: str) -> Any:
    async def collected() -> list[Any]:
        return [chunk async for chunk in safe.astream("q")]

    match how:
        case "invoke":
            return safe.invoke("q")
        case "ainvoke":
            return asyncio.run(safe.ainvoke("q"))
        case "stream":
            return [*safe.stream("q")]
    return asyncio.run(collected())


@HOW
@pytest.mark.parametrize("streaming", ["hold", "live"])
@pytest.mark.parametrize("step", STEPS)
def test_an_exception_of_a_signal_handler_after_an_answer_ends_a_chain(how: str, streaming: str, step: str) -> None:
    """Before, it counted as a failure of the chain once a model had answered, and the policy's `on_error` answered."""
    chain = ScriptedChat(script=[said("ANSWER", 0.9)]) | StrOutputParser() | STEPS[step]
    with pytest.raises(AlarmError, match="time is up") as caught:
        run(guarded(chain, policy=policy(RULES, FAILED, f"streaming: {streaming}")), how)
    assert "ANSWER" not in f"{caught.value}{caught.value.__cause__}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@HOW
def test_an_error_that_no_signal_handler_raised_is_still_the_policys(how: str) -> None:
    def fail(_: Any) -> Any:
        raise AlarmError("by the chain itself")

    async def afail(value: Any) -> Any:
        fail(value)

    chain = ScriptedChat(script=[said("ANSWER", 0.9)]) | StrOutputParser() | RunnableLambda(fail, afail)
    given = run(guarded(chain, policy=policy(RULES, FAILED)), how)
    assert given in ("No.", ["No."])


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_an_exception_of_a_signal_handler_while_chat_guard_scores_ends_the_call(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the message said that scoring had failed, and a guarded chain around the model decided."""
    engine = AnsweringEngine(lambda _prompt, _number: ("yes", 0.1))
    scorer = confidence_scorer(engine.model)
    monkeypatch.setattr(scorer, "score", interrupted)
    chat = ChatGuard(engine=engine, scorer=scorer, max_tokens=20)
    for model in (chat, guarded(chat, policy=policy(RULES, FAILED))):
        with pytest.raises(AlarmError, match="time is up"):
            run(model, how)


class Interrupted(AgentMiddleware[Any, Any]):
    """Stands between the model and its guard."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return interrupted(handler(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return interrupted(await handler(request))


async def aask(graph: Any) -> Any:
    return await graph.ainvoke({"messages": [("user", "hi")]}, thread())


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_an_exception_of_a_signal_handler_after_an_answer_ends_an_agent(how: str) -> None:
    model = ScriptedChat(script=[said("ANSWER", 0.9)])
    graph = agent_of(model, Around(Interrupted(), policy(RULES, FAILED)))
    with pytest.raises(AlarmError, match="time is up"):
        ask(graph) if how == "invoke" else asyncio.run(aask(graph))


def test_an_exception_of_a_signal_handler_in_an_async_escalation_handler_ends_the_call() -> None:
    """Before, it was recorded as the escalation handler's failure."""

    async def desk(_: Escalation) -> None:
        interrupt()

    async def team(_: Escalation) -> None:
        await asyncio.sleep(0)

    rules = policy("[{escalate: {to: [desk, team]}}]")
    safe = guarded(ScriptedChat(script=[said("ANSWER", 0.9)]), policy=rules, handlers={"desk": desk, "team": team})
    with pytest.raises(AlarmError, match="time is up"):
        run(safe, "ainvoke")


@pytest.mark.parametrize("streaming", ["hold", "live"])
def test_a_step_that_catches_its_own_signal_continues(streaming: str) -> None:
    def bounded(value: str) -> str:
        try:
            interrupt()
        except AlarmError:
            return f"{value}, cut"
        return value

    chain = ScriptedChat(script=[said("ANSWER", 0.05)]) | StrOutputParser() | RunnableLambda(bounded)
    assert guarded(chain, policy=policy(RULES, f"streaming: {streaming}")).invoke("q") == "ANSWER, cut"
