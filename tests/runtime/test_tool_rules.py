"""A guard's own call applies a policy's rules for tools: the caller's program carries out what the answer calls."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer

from guard.engines.instructions import demanded_call
from guard.engines.tool_calls import tool_format
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


class FamilyEngine(AnsweringEngine):
    """Its chat template is that of a family of models."""

    family = ""

    @property
    def chat_template(self) -> str:
        return self.family


@pytest.mark.parametrize("sign", ["[TOOL_CALLS]", "<arg_key>", "<function=", "<|tool_call|>", "<tool_call>"])
def test_a_demanded_call_has_its_rule_whatever_form_the_models_own_calls_have(sign: str) -> None:
    """Its grammar is JSON for every family, and so it is carried out."""
    tools = [tool("look"), tool("pay")]
    form = tool_format(sign)
    assert form is not None
    tags = ("<tool_call>", "</tool_call>") if sign == "<tool_call>" else ("", "")
    answer = f"{tags[0]}{json.dumps({'name': 'pay', 'arguments': {}})}{tags[1]}"
    engine = FamilyEngine(lambda prompt, number: (answer, 0.2))
    engine.family = sign
    prompt = replace(Prompt.chat("Pay Ann", tools=tools), response_format=demanded_call("required", tools, form))
    outcome = Guard(engine, confidence_scorer(), parse_policy(POLICY)).ask(prompt, limits=Limits(200))
    assert outcome.attempts[0].answer == answer
    assert outcome.rule == "tools.pay.rules[1] (abstain)"
