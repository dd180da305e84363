"""An agent with two tools, whose payments wait for a person.

    python agent_review.py

SmolLM2 was not trained to call tools, and its chat template does not support them. A few lines of Python (`ToolCaller`)
write the tool calls here, and SmolLM2 does the rest: it scores each call, and it writes and scores the final answer.
With a model that calls tools, such as Qwen, pass `ChatGuard` to `create_agent` and leave `ToolCaller` out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from guard import Guard, parse_policy
from guard.langchain import ChatGuard, GuardMiddleware, score_metadata

POLICY = """
version: 1
name: payments
rules:
  - accept                          # words do no harm here
tools:
  balance:
    rules: [accept]                 # looking is free
  send_money:
    rules:
      - accept: {below: 0.01}       # paying is not: unless it is next to certain, a person decides
      - escalate: {to: [interrupt], reply: Waiting for approval.}
"""

ACCOUNT = {"balance": 200}


@tool
def balance() -> str:
    """How much money there is."""
    return f"The balance is {ACCOUNT['balance']} euros."


@tool
def send_money(to: str, amount: int) -> str:
    """Send money to somebody."""
    ACCOUNT["balance"] -= amount
    return f"{amount} euros were sent to {to}."


class ToolCaller(BaseChatModel):
    """Stands in for a model that calls tools; see the top of this file."""

    guard: Any
    model: Any

    @property
    def _llm_type(self) -> str:
        return "tool-caller"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(**kwargs)

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            message = self.model.invoke(f"Say this in other words: {last.text}")
        else:
            message = self._call(str(last.text), f"call_{len(messages)}")
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _call(self, question: str, call_id: str) -> AIMessage:
        payment = re.search(r"send (\w+) (\d+)", question, re.IGNORECASE)
        name, args = "balance", {}
        if payment:
            name, args = "send_money", {"to": payment[1], "amount": int(payment[2])}
        score = self.guard.score(question, json.dumps({"name": name, "arguments": args}))
        return AIMessage(
            content="",
            tool_calls=[{"name": name, "args": args, "id": call_id}],
            response_metadata={"guard": score_metadata(model="smollm2", score=score)},
        )


def show(result: dict[str, Any]) -> None:
    """Print what the user of the agent would see."""
    for message in result["messages"]:
        called = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
        print(f"  {message.type}: {message.text or ', '.join(called)}")


def main(scorer: Any = None) -> dict[str, Any]:
    """Ask for a payment; a person makes it smaller, and the agent continues."""
    guard = Guard.load("smollm2", scorer=scorer)
    model = ToolCaller(guard=guard, model=ChatGuard.from_guard(guard, decides=False, max_tokens=24))
    agent = create_agent(
        model,
        [balance, send_money],
        middleware=[GuardMiddleware(parse_policy(POLICY))],
        checkpointer=InMemorySaver(),  # in memory: see langgraph_review.py for one that outlives the process
    )
    thread = {"configurable": {"thread_id": "1"}}

    print("How much money is there?")
    show(agent.invoke({"messages": [("user", "How much money is there?")]}, thread))

    print("Send Anna 150 euros.")
    result = agent.invoke({"messages": [("user", "Send Anna 150 euros.")]}, thread)
    (pause,) = result["__interrupt__"]
    (action,) = pause.value["action_requests"]
    print(f"  the agent waits: {action['name']}({action['args']})\n  {action['description']}")

    smaller = {"name": "send_money", "args": {"to": "Anna", "amount": 15}}
    result = agent.invoke(Command(resume={"decisions": [{"type": "edit", "edited_action": smaller}]}), thread)
    show(result)
    guard.close()
    return result


if __name__ == "__main__":
    main()
