"""A guard's own call applies a policy's rules for tools: the caller's program carries out what the answer calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer

from guard.policy.policy import parse_policy
from guard.records import Action, Limits, Outcome, Prompt
from guard.runtime.guard import Guard

POLICY = """
version: 1
name: test
rules: [{accept: {below: 0.5}}, {abstain: {text: No.}}]
tools:
  pay: {rules: [{accept: {below: 0.05}}, {abstain: {text: Not that.}}]}
"""


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


def call(name: str, arguments: Any = None) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments or {}})}</tool_call>"


def asked(answer: str, *, tools: tuple[str, ...] = ("look", "pay")) -> Outcome:
    engine = AnsweringEngine(lambda prompt, number: (answer, 0.2))
    guard = Guard(engine, confidence_scorer(), parse_policy(POLICY))
    return guard.ask(Prompt.chat("Pay Ann", tools=map(tool, tools)), limits=Limits(200))


def test_an_answer_that_calls_a_tool_is_decided_by_that_tools_rules() -> None:
    assert asked(call("look")).action is Action.ACCEPT
    outcome = asked(call("pay"))
    assert (outcome.action, outcome.answer) == (Action.ABSTAIN, "Not that.")
    assert outcome.rule == "tools.pay.rules[1] (abstain)"


@pytest.mark.parametrize(
    "answer",
    [
        call("look") + call("pay"),
        f"Done: {call('pay')} Thank you.",
        f"```json\n{json.dumps({'name': 'pay', 'arguments': {}})}\n```",
        call("pay", [1]),
    ],
)
def test_no_way_to_write_a_call_escapes_its_rule(answer: str) -> None:
    assert asked(answer).action is Action.ABSTAIN


def test_a_tool_that_was_not_offered_has_no_rule() -> None:
    assert asked(call("pay"), tools=("look",)).action is Action.ACCEPT
