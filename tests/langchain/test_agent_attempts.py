"""What an agent's guarded model call must not let by: tools beside structure, its own limits, quoted answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_agents import ABSTAIN, APPROVE, RETRY, SECRET, Around, agent, ask, last, policy, reply, thread
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from scripted_chat import ScriptedChat, said

from guard.errors import InputError
from guard.langchain import GuardMiddleware
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.policy.policy import Policy
from guard.records import Escalation, Sampling

HOW = pytest.mark.parametrize("how", ["invoke", "ainvoke"])


def run(graph: Any, how: str, config: Any = None) -> dict[str, Any]:
    if how == "invoke":
        return ask(graph, config=config)
    answer: dict[str, Any] = asyncio.run(graph.ainvoke({"messages": [("user", "hi")]}, config or thread()))
    return answer


# -- tools beside a structured response --------------------------------------------------------

SENT: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_sent() -> None:
    SENT.clear()


@tool
def send_money(amount: int) -> str:
    """Send money."""
    SENT.append(amount)
    return f"sent {amount}"


class City(BaseModel):
    """A city."""

    name: str


CAREFUL_WITH_MONEY = policy(
    "[accept: {below: 0.5}, abstain: {text: No idea.}]",
    "tools: {send_money: {rules: [accept: {below: 0.05}, escalate: {to: interrupt}]}}",
)
MONEY, CITY = ("send_money", {"amount": 5}), ("City", {"name": "Paris"})
#: Both of the ways in which an agent can be asked for structure.
STRUCTURED = pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])


@HOW
@STRUCTURED
def test_the_rules_of_a_tool_hold_where_the_agent_also_waits_for_structure(strategy: Any, how: str) -> None:
    model = ScriptedChat(script=[said("", 0.4, MONEY), said('{"name": "Paris"}', 0.1, *_city(strategy))])
    graph = agent(model, CAREFUL_WITH_MONEY, [send_money], response_format=strategy(City))
    paused = run(graph, how)
    assert SENT == [], "at p_wrong 0.4 money waits for a person"
    assert paused["__interrupt__"][0].value["action_requests"][0]["name"] == "send_money"
    assert reply(graph, APPROVE)["structured_response"] == City(name="Paris")
    assert SENT == [5]


def _city(strategy: Any) -> list[tuple[str, dict[str, Any]]]:
    return [CITY] if strategy is ToolStrategy else []


def test_a_tool_called_together_with_the_structure_is_decided_on_by_its_rules() -> None:
    model = ScriptedChat(script=[said("", 0.4, CITY, MONEY)])
    graph = agent(model, CAREFUL_WITH_MONEY, [send_money], response_format=ToolStrategy(City))
    result = ask(graph)
    assert SENT == []
    assert result.get("structured_response") is None


# -- handlers of one's own ---------------------------------------------------------------------


@HOW
def test_an_agents_own_review_handler_is_not_replaced(how: str, tmp_path: Path) -> None:
    cases: list[Escalation] = []
    store = tmp_path / "reviews.db"
    chosen = policy("[escalate: {to: review, reply: Wait.}]")
    guarded = GuardMiddleware(chosen, handlers={"review": cases.append}, store=store)
    assert last(run(agent(ScriptedChat(script=[said(SECRET, 0.9)]), guarded), how)).text == "Wait."
    assert [case.answer for case in cases] == [SECRET]
    assert not store.exists(), "no queue is opened beside it"


# -- sampling and budget of an attempt ---------------------------------------------------------


class Noted:
    """A script that notes what its attempt is told."""

    def __init__(self, *p_wrong: float) -> None:
        self.p_wrong = [*p_wrong]
        self.attempts: list[AttemptSettings] = []

    def __call__(self, messages: list[BaseMessage]) -> AIMessage:
        attempt = ATTEMPT.get()
        assert attempt is not None
        self.attempts.append(attempt)
        return said("text", self.p_wrong[len(self.attempts) - 1])


BUDGET = "budget: {tokens: 100, seconds: 50}"
TWICE = policy("[accept: {below: 0.2}, retry: {below: 0.5, seed: 3}, abstain]", BUDGET)


def attempts(how: str, outer: AttemptSettings | None = None) -> list[AttemptSettings]:
    """What the two attempts of a call are told, within a guarded chain's attempt or on its own."""
    script = Noted(0.3, 0.1)
    before = ATTEMPT.set(outer)
    try:
        run(agent(ScriptedChat(script=script), TWICE), how)
    finally:
        ATTEMPT.reset(before)
    return script.attempts


@HOW
def test_each_attempt_has_what_the_one_before_left_of_the_budget(how: str) -> None:
    started = time.monotonic()
    first, second = attempts(how)
    assert (first.max_tokens, second.max_tokens) == (100, 88), "a scripted answer costs 12 tokens"
    assert first.deadline == second.deadline
    assert first.deadline is not None
    assert 50 <= first.deadline - started <= 50 + time.monotonic() - started


@HOW
def test_an_attempt_stays_within_the_budget_of_the_chain_around_the_agent(how: str) -> None:
    deadline = time.monotonic() + 20
    first, second = attempts(how, AttemptSettings(max_tokens=90, deadline=deadline))
    assert (first.max_tokens, second.max_tokens) == (90, 88)
    assert first.deadline == second.deadline == deadline
    later = AttemptSettings(max_tokens=5000, deadline=time.monotonic() + 5000)
    first, second = attempts(how, later)
    assert (first.max_tokens, second.max_tokens) == (100, 88)
    assert first.deadline == second.deadline < later.deadline  # type: ignore[operator]


@HOW
def test_a_retry_of_the_chain_samples_the_first_attempt_and_the_agents_own_rule_its_retry(how: str) -> None:
    outer = AttemptSettings(sampling=Sampling(temperature=1.5, seed=9), instruction="Think.")
    first, second = attempts(how, outer)
    assert first.sampling == outer.sampling
    assert second.sampling is None, "the request's own settings decide"
    assert first.instruction == second.instruction == "Think."
    assert first.once_cache is second.once_cache is outer.once_cache


@HOW
def test_retries_count_their_seeds_up(how: str) -> None:
    chosen = policy("[accept: {below: 0.2}, retry: {below: 0.5, times: 2, seed: 3, temperature: 0.4}, abstain]")
    model = ScriptedChat(script=[said(SECRET, 0.3), said(SECRET, 0.3), said("Fine.", 0.1)])
    assert last(run(agent(model, chosen), how)).text == "Fine."
    settings = [asked for _, asked in model.asked]
    assert [asked.get("seed") for asked in settings] == [None, 3, 4]
    assert [asked.get("temperature") for asked in settings] == [None, 0.4, 0.4]


# -- errors that quote the answer --------------------------------------------------------------


def raising(make: Callable[[str], Exception]) -> Any:
    """Middleware within the guard's that reads the answer and fails with it."""

    class Inner(AgentMiddleware[Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            raise make(handler(request).result[0].text)

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            raise make((await handler(request)).result[0].text)

    return Inner()


MAKE = pytest.mark.parametrize("make", [InputError, ValueError], ids=["InputError", "ValueError"])


def failing(make: Callable[[str], Exception], chosen: Policy, *p_wrong: float) -> Any:
    """An agent whose answers a step after the model fails on, and quotes."""
    model = ScriptedChat(script=[said(SECRET, one) for one in p_wrong])
    return agent(model, Around(raising(make), chosen))


@HOW
@MAKE
def test_an_error_that_quotes_the_answer_is_reported_only_where_the_answer_is(
    make: Callable[[str], Exception], how: str
) -> None:
    result = run(failing(make, ABSTAIN, 0.9), how)
    assert last(result).text == "No idea."
    assert SECRET not in str(result)
    noted = last(result).response_metadata["guard"]
    assert (noted["error"], noted["decision"]["rule"]) == (
        f"{make.__name__} after the model had answered",
        "rules[1] (abstain)",
    )
    with pytest.raises(make, match=SECRET):
        run(failing(make, ABSTAIN, 0.1), how)


@HOW
@MAKE
def test_on_error_accept_does_not_tell_an_answer_that_the_rules_reject(
    make: Callable[[str], Exception], how: str
) -> None:
    chosen = policy("[accept: {below: 0.2}, abstain: {text: No idea.}]", "on_error: accept")
    result = run(failing(make, chosen, 0.9), how)
    assert (last(result).text, SECRET in str(result)) == ("No idea.", False)


@HOW
@MAKE
def test_a_failed_attempts_tokens_count_in_the_budget(make: Callable[[str], Exception], how: str) -> None:
    chosen = policy("[accept: {below: 0.2}, retry: {below: 1, times: 3}, abstain]", "budget: {tokens: 20}")
    graph = failing(make, chosen, 0.9, 0.9, 0.9, 0.9)
    result = run(graph, how)
    assert "budget is exhausted" in last(result).response_metadata["guard"]["decision"]["reason"]


@HOW
def test_structure_that_cannot_be_parsed_does_not_tell_the_answer(how: str) -> None:
    model = ScriptedChat(script=[said(f'{{"nam": "{SECRET}"}}', 0.9)])
    result = run(agent(model, ABSTAIN, response_format=ProviderStrategy(City)), how)
    assert SECRET not in str(result)
    assert result.get("structured_response") is None


@HOW
def test_a_bad_question_is_still_the_callers(how: str) -> None:
    with pytest.raises(InputError, match="bad question"):
        run(agent(ScriptedChat(script=[InputError("bad question")]), RETRY), how)
