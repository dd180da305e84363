"""Agents for the tests: guarded ones, a person who answers, and every way in which an agent shows something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from guard.langchain import GuardMiddleware
from guard.policy.policy import Policy, parse_policy

#: Stands in every answer that must not be seen.
SECRET = "BADWORD"


def policy(rules: str, rest: str = "") -> Policy:
    return parse_policy(f"version: 1\nname: test\nrules: {rules}\n{rest}")


RETRY = policy("[accept: {below: 0.2}, retry: {below: 0.5, seed: 3, instruction: Think.}, abstain: {text: No idea.}]")
ABSTAIN = policy("[accept: {below: 0.2}, abstain: {text: No idea.}]")
PAUSE = policy("[accept: {below: 0.2}, escalate: {to: [interrupt], reply: Wait.}]")


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: found"


def agent(model: BaseChatModel, chosen: Policy | GuardMiddleware, tools: Any = (), **options: Any) -> Any:
    guarded = chosen if isinstance(chosen, GuardMiddleware) else GuardMiddleware(chosen)
    options.setdefault("checkpointer", InMemorySaver())
    return create_agent(model, list(tools), middleware=[guarded], **options)


class Around(GuardMiddleware):
    """A guard with a step between it and the model, such as no agent's list of middleware may have."""

    def __init__(self, step: AgentMiddleware[Any, Any], chosen: Policy) -> None:
        super().__init__(chosen)
        self.step = step

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return super().wrap_model_call(request, lambda asked: self.step.wrap_model_call(asked, handler))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        async def call(asked: Any) -> Any:
            return await self.step.awrap_model_call(asked, handler)

        return await super().awrap_model_call(request, call)


def thread(name: str = "1", **config: Any) -> dict[str, Any]:
    return {"configurable": {"thread_id": name}, **config}


def ask(graph: Any, question: str = "hi", config: Any = None) -> dict[str, Any]:
    answer: dict[str, Any] = graph.invoke({"messages": [("user", question)]}, config or thread())
    return answer


def reply(graph: Any, *decisions: Any, config: Any = None) -> dict[str, Any]:
    answer: dict[str, Any] = graph.invoke(Command(resume={"decisions": list(decisions)}), config or thread())
    return answer


def last(result: dict[str, Any]) -> BaseMessage:
    message: BaseMessage = result["messages"][-1]
    return message


APPROVE = {"type": "approve"}


# -- what an agent shows -----------------------------------------------------------------------


class Everything(BaseCallbackHandler):
    """Writes down all that any callback is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *arguments, **keywords: self.heard.append(f"{name} {arguments} {keywords}")


AgentStep = Callable[[Any, Any, dict[str, Any]], list[Any]]


def sync_channel(mode: str) -> AgentStep:
    return lambda graph, given, config: list(graph.stream(given, config, stream_mode=mode, subgraphs=True))


def async_channel(mode: str) -> AgentStep:
    async def collect(graph: Any, given: Any, config: dict[str, Any]) -> list[Any]:
        stream: AsyncIterator[Any] = graph.astream(given, config, stream_mode=mode)
        return [part async for part in stream]

    return lambda graph, given, config: asyncio.run(collect(graph, given, config))


def events(version: str) -> AgentStep:
    async def collect(graph: Any, given: Any, config: dict[str, Any]) -> list[Any]:
        return [event async for event in graph.astream_events(given, config, version=version)]

    return lambda graph, given, config: asyncio.run(collect(graph, given, config))


def invoked(graph: Any, given: Any, config: dict[str, Any]) -> list[Any]:
    return [graph.invoke(given, config)]


def third_protocol(graph: Any, given: Any, config: dict[str, Any]) -> list[Any]:
    return list(graph.stream_events(given, config, version="v3"))


MODES = ("values", "updates", "messages", "custom", "tasks", "checkpoints", "debug")
CHANNELS: dict[str, AgentStep] = {
    "invoke": invoked,
    **{f"stream {mode}": sync_channel(mode) for mode in MODES},
    **{f"astream {mode}": async_channel(mode) for mode in MODES},
    "astream_events v1": events("v1"),
    "astream_events v2": events("v2"),
    **({"stream_events v3": third_protocol} if hasattr(CompiledStateGraph, "stream_events") else {}),
}


def shown(parts: list[Any], *, pauses: Any = ()) -> str:
    """Everything as one text, but for the requests to the reviewer, who has to see the answer."""
    text = "\n".join(str(part) for part in parts)
    for request in pauses:
        assert repr(request.value) in text
        text = text.replace(repr(request.value), "REQUEST")
    return text
