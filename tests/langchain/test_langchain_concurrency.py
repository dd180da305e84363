"""Many calls at once on one guarded chain: right answers to right callers, nothing crosses over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_fixtures import chat, policy
from scripted_chat import ScriptedChat, said

from guard.langchain import GuardedOutcome, guarded

MANY = 64
PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
RETRY = (
    "[{accept: {below: 0.5}}, {retry: {below: 0.95, times: 1, seed: 1, instruction: Again.}}, {abstain: {text: No.}}]"
)


class CallersListener(BaseCallbackHandler):
    """One caller's listener."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.answers: list[str] = []
        self.decisions: list[float] = []
        self.users: set[Any] = set()

    def on_chat_model_start(self, _: Any, messages: Any, *, metadata: Any = None, **__: Any) -> None:
        self.prompts.append(messages[0][-1].content)
        self.users.add(metadata["user"])

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.answers.append(response.generations[0][0].text.strip())

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.decisions.append(data["p_wrong"])


def score_generation(number: int) -> float:
    return (number % 10) / 10


def by_question(messages: Any) -> Any:
    """An answer and a score that follow from the question; a retry says so."""
    number = int(messages[-1].content.split()[0])
    return said(f"answer {number}", score_generation(number))


def callers() -> tuple[list[dict[str, str]], list[RunnableConfig], list[CallersListener]]:
    listeners = [CallersListener() for _ in range(MANY)]
    configs: list[RunnableConfig] = [
        {"callbacks": [listener], "metadata": {"user": number}, "tags": [f"t{number}"]}
        for number, listener in enumerate(listeners)
    ]
    return [{"q": f"{number} apples"} for number in range(MANY)], configs, listeners


async def abatch(safe: Runnable[Any, Any], asked: Any, configs: Any) -> list[Any]:
    return await safe.abatch(asked, configs)


async def astreams(safe: Runnable[Any, Any], asked: Any, configs: Any) -> list[Any]:
    async def one(number: int) -> Any:
        return [chunk async for chunk in safe.astream(asked[number], configs[number])][-1]

    return list(await asyncio.gather(*(one(number) for number in range(len(asked)))))


@pytest.mark.parametrize("how", ["batch", "abatch", "astream"])
def test_sixty_four_calls_do_not_mix(how: str) -> None:
    model = ScriptedChat(script=by_question, seconds=0.01)
    safe = guarded(PROMPT | model | StrOutputParser(), policy=policy(RETRY), return_outcome=True)
    asked, configs, listeners = callers()
    if how == "batch":
        results = safe.batch(asked, configs)
    else:
        results = asyncio.run((abatch if how == "abatch" else astreams)(safe, asked, configs))
    assert len({result.outcome.decision_id for result in results}) == MANY
    for number, (result, listener) in enumerate(zip(results, listeners, strict=True)):
        check_own(number, result, listener)


def check_own(number: int, result: GuardedOutcome, listener: CallersListener) -> None:
    accepted = score_generation(number) < 0.5
    assert result.output.strip() == (f"answer {number}" if accepted else "No.")
    assert result.outcome.p_wrong == score_generation(number)
    assert listener.decisions == [score_generation(number)] * (1 if accepted else 2)
    assert listener.answers == ([f"answer {number}"] if accepted else [])
    assert listener.prompts == ([f"{number} apples"] if accepted else [])
    assert listener.users == ({number} if accepted else set())


@pytest.mark.model
@pytest.mark.slow
def test_sixty_four_calls_of_the_real_model_do_not_mix() -> None:
    safe = guarded(PROMPT | chat(max_tokens=4), policy=policy("[accept]"))
    asked, configs, listeners = callers()
    results = asyncio.run(abatch(safe, asked, configs))
    for number, (message, listener) in enumerate(zip(results, listeners, strict=True)):
        assert listener.answers == [message.content.strip()]
        assert listener.prompts == [f"{number} apples"]
        assert listener.decisions == [message.response_metadata["guard"]["p_wrong"]]
    for number in (0, 17, 63):
        alone = safe.invoke(asked[number])
        assert results[number].content == alone.content
        assert results[number].response_metadata["guard"]["p_wrong"] == alone.response_metadata["guard"]["p_wrong"]


def test_a_cancelled_call_leaves_the_others_alone() -> None:
    model = ScriptedChat(script=by_question, seconds=0.05)
    safe = guarded(PROMPT | model | StrOutputParser(), policy=policy(RETRY))

    async def some_cancelled() -> list[Any]:
        tasks = [asyncio.create_task(safe.ainvoke({"q": f"{number} apples"})) for number in range(8)]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = asyncio.run(some_cancelled())
    for number, result in enumerate(results):
        if number % 2 == 0:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert str(result).strip() == (f"answer {number}" if score_generation(number) < 0.5 else "No.")
