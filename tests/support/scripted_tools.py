"""An engine that calls tools and fills schemas as a model that was trained to would, without weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from scripted import AnsweringEngine, scripted_model

from guard.records import Prompt

_SCHEMA = "It must follow this JSON Schema:\n"


class ToolEngine(AnsweringEngine):
    """Calls the first tool that it is offered, once a question; gives JSON where it is asked for JSON."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, number: (answer(json.loads(prompt.text or "")), 0.1), model=MODEL)

    @property
    def chat_template(self) -> str:
        return '{{ messages | tojson }}{{ tools | tojson }}<tool_call>{"name": ..., "arguments": ...}</tool_call>'

    def encode(self, prompt: Prompt) -> list[int]:
        turns = [dict(turn) for turn in prompt.messages or ()]
        return [*json.dumps({"messages": turns, "tools": [dict(tool) for tool in prompt.tools]}).encode()]


MODEL = scripted_model(context_tokens=60_000)


def answer(asked: Mapping[str, Any]) -> str:
    """What is said to messages and tools."""
    messages, tools = asked["messages"], asked["tools"]
    question = next(turn["content"] for turn in reversed(messages) if turn["role"] == "user")
    if tools and messages[-1]["role"] != "tool":
        function = tools[0]["function"]
        call = {"name": function["name"], "arguments": filled(function["parameters"], question)}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    if _SCHEMA in question:
        return json.dumps(filled(json.loads(question.partition(_SCHEMA)[2]), question))
    if "JSON" in question:
        return json.dumps({"setup": "Why did the cat sit?", "punchline": "It was tired."})
    return "Hello there, it is sunny."


def filled(schema: Mapping[str, Any], question: str) -> dict[str, Any]:
    """Arguments of the types that a schema wants, from the question where it has them."""
    return {name: _value(each, question) for name, each in (schema.get("properties") or {}).items()}


def _value(schema: Mapping[str, Any], question: str) -> Any:
    if schema.get("type") == "integer":
        return int((re.search(r"\d+", question) or ["3"])[0])
    quoted = re.search(r"named:? ?[\"'「]?([^\"'」.]+)", question)
    return quoted[1].strip() if quoted else "Paris"
