"""The policy's ``tools``: rules of their own for answers that call tools."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.policy.document import SEVERITY
from guard.policy.policy import InvalidPolicyError, Usage, decide, decide_error, json_schema, parse_policy
from guard.records import Action

POLICY = parse_policy("""\
version: 1
name: agent
rules:
  - accept: {below: 0.5}
  - retry: {below: 0.7}
  - abstain
on_error: accept
tools:
  default:
    rules: [accept: {below: 0.3}, escalate: {to: [interrupt]}]
  look_up:
    rules: [accept]
  send_money:
    rules: [accept: {below: 0.1}, fallback: {below: 0.2, to: bigger}, escalate: {to: [interrupt, log]}]
    on_error: {escalate: {to: [interrupt, doctor]}}
routes:
  medical:
    rules: [accept: {below: 0.05}, abstain]
""")


@pytest.mark.parametrize(
    ("tools", "p_wrong", "action", "rule"),
    [
        ((), 0.4, Action.ACCEPT, "rules[0] (accept)"),
        (("look_up",), 0.9, Action.ACCEPT, "tools.look_up.rules[0] (accept)"),
        (("other",), 0.2, Action.ACCEPT, "tools.default.rules[0] (accept)"),
        (("other",), 0.4, Action.ESCALATE, "tools.default.rules[1] (escalate)"),
        (("send_money",), 0.15, Action.FALLBACK, "tools.send_money.rules[1] (fallback)"),
        (("send_money",), 0.4, Action.ESCALATE, "tools.send_money.rules[2] (escalate)"),
        (("look_up", "send_money"), 0.15, Action.FALLBACK, "tools.send_money.rules[1] (fallback)"),
        (("send_money", "look_up"), 0.15, Action.FALLBACK, "tools.send_money.rules[1] (fallback)"),
        (("other", "send_money"), 0.4, Action.ESCALATE, "tools.default.rules[1] (escalate)"),
    ],
)
def test_the_strictest_of_the_called_tools_decides(
    tools: tuple[str, ...], p_wrong: float, action: Action, rule: str
) -> None:
    decision = decide(POLICY, p_wrong=p_wrong, tools=tools)
    assert (decision.action, decision.rule, decision.p_wrong) == (action, rule, p_wrong)


def test_on_error_is_the_tools_own_or_that_of_other_answers() -> None:
    assert decide(POLICY, p_wrong=None, tools=["look_up"]).rule == "on_error"
    assert decide(POLICY, p_wrong=float("nan"), tools=["send_money"]).rule == "tools.send_money.on_error"
    decision = decide_error(POLICY, error="no layers", tools=["look_up", "send_money"])
    assert decision.settings.to == ("interrupt", "doctor")


def test_a_tool_without_a_section_or_a_default_is_treated_as_other_answers() -> None:
    policy = parse_policy("version: 1\nname: x\nrules: [accept: {below: 0.5}, abstain]\ntools: {a: {rules: [abstain]}}")
    assert decide(policy, p_wrong=0.4, tools=["b"]) == decide(policy, p_wrong=0.4)
    assert decide(policy, p_wrong=0.4, tools=["b", "a"]).action is Action.ABSTAIN


def test_what_tools_leave_out_is_the_routes() -> None:
    policy = parse_policy(
        "version: 1\nname: x\nrules: [accept]\ntools: {a: {on_error: escalate}}\nroutes: {r: {rules: [abstain]}}"
    )
    assert decide(policy, p_wrong=0.4, route="r", tools=["a"]).action is Action.ABSTAIN
    assert decide(policy, p_wrong=0.4, tools=["a"]).action is Action.ACCEPT


def test_what_is_used_up_is_passed_over_in_tools_too() -> None:
    decision = decide(POLICY, p_wrong=0.15, tools=["send_money"], usage=Usage(fallbacks=frozenset({"bigger"})))
    assert decision.action is Action.ESCALATE
    assert "'bigger' was already used" in decision.reason


def test_handlers_and_fallbacks_of_tools_are_known() -> None:
    assert POLICY.handler_names() == ("doctor", "interrupt", "log")
    assert POLICY.fallback_names() == ("bigger",)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["look_up", "send_money", "other", "default"]), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_another_call_or_a_worse_score_never_makes_it_less_careful(tools: list[str], one: float, other: float) -> None:
    low, high = sorted((one, other))
    care = SEVERITY[decide(POLICY, p_wrong=low, tools=tools).action]
    assert care <= SEVERITY[decide(POLICY, p_wrong=high, tools=tools).action]
    assert care <= SEVERITY[decide(POLICY, p_wrong=low, tools=[*tools, "send_money"]).action]
    assert care == max(SEVERITY[decide(POLICY, p_wrong=low, tools=[tool]).action] for tool in tools)


@pytest.mark.parametrize(
    ("tools", "line", "message"),
    [
        ("tools: {a: {rule: []}}", 4, "unknown key 'rule' in tools.a. Did you mean 'rules'?"),
        ("tools: {a: {budget: {attempts: 1}}}", 4, "unknown key 'budget' in tools.a"),
        ("tools: {a: {rules: [accept: {below: 0.5}]}}", 4, "the last rule must take every answer"),
        ("tools:\n  a:\n    rules:\n    - accept: {below: 0.5}\n    - accept: {below: 0.4}\n    - abstain", 8, "rise"),
        ("tools: {a: {rules: [retry: {below: 0.5, times: 9}, abstain]}}", 4, "leaves room for 3"),
        ("tools: {a: }", 4, "there is no value after 'a'"),
        ("tools: {a: {rules: []}}", 4, "must not be empty"),
        ("tools: {a: {on_error: {retry: {}}}}", 4, "retry is not allowed in on_error"),
        ("tools: [a]", 4, "tools must be a mapping"),
        ("tool: {}", 4, "Did you mean 'tools'?"),
    ],
)
def test_mistakes_in_tools_are_found_at_their_place(tools: str, line: int, message: str) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(f"version: 1\nname: x\nrules: [abstain]\n{tools}")
    assert any(problem.line == line and message in problem.message for problem in caught.value.problems), caught.value


def test_bare_actions_may_stand_in_tools() -> None:
    policy = parse_policy(
        "version: 1\nname: x\nrules: [accept]\ntools:\n  a:\n    rules: [abstain: ]\n    on_error:\n      escalate:\n"
    )
    assert decide(policy, p_wrong=0.1, tools=["a"]).action is Action.ABSTAIN
    assert decide(policy, p_wrong=None, tools=["a"]).action is Action.ESCALATE


def test_the_hash_and_the_schema_know_tools() -> None:
    text = "version: 1\nname: x\nrules: [accept]\n"
    assert parse_policy(text).sha256 != parse_policy(text + "tools: {a: {rules: [abstain]}}").sha256
    assert "tools" in json_schema()["properties"]
