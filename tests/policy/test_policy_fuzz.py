"""Fuzzing policies: whatever the text, there is a policy that works or an InvalidPolicyError."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from guard.errors import PolicyError
from guard.policy.explanation import explain
from guard.policy.policy import (
    InvalidPolicyError,
    Policy,
    Usage,
    builtin_policies,
    decide,
    decide_error,
    load_policy,
    parse_policy,
)
from guard.records import Action

SEED = """\
version: 1
name: seed
mode: shadow
rules:
  - accept: {below: 0.25}
  - retry: {below: 0.45, times: 2, seed: 1}
  - fallback:
      below: 0.6
      to: bigger
  - escalate: {below: .85, to: [review, log], reply: "Wait."}
  - abstain
on_error: {escalate: {to: review}}
budget: {attempts: 4, tokens: 4000}
fallbacks:
  bigger: {model: m.gguf}
routes:
  medical:
    rules: [accept: {below: 5e-2}, abstain: {raise: true}]
tools:
  send_money: {rules: [accept: {below: 0.1}, escalate: ], on_error: abstain}
"""

#: Pieces that mean something to YAML or to policies.
PIECES = [
    *"\t\n\r \x00\x07\x85\u2028\ufeff'\"[]{},:-?!&*|>%@`#~=\\0157.éß日😀",
    *("\n  ", ": ", "- ", "\n- ", "---\n", "...\n", "%YAML 1.2\n---\n", "%YAML 9999999999.1\n---\n", "%TAG ! x\n"),
    *("&a ", "*a", "<<: *a", "!!int ", "!x ", "!<y> ", "? ", "|\n", ">+\n", "|9\n", '"\\uD800"', '"\\U00110000"'),
    *('"\\x', "'", "yes", "null", "~", "true", ".nan", ".inf", "-.inf", "1e999", "1:30", "010", "0x1F", "1_0", "-1"),
    *("9" * 30, "9" * 5000, "1.", ".5", "1e-1", "2020-01-01", "[" * 50, "{a: " * 50, "below: ", "accept", "retry: {}"),
    *("abstain", "escalate: ", "to: ", "text: x", "raise: true", "rules:", "routes:", "x: ", "version: 1\n", "name: "),
]
KEYS = [
    *("version", "name", "description", "mode", "rules", "on_error", "budget", "fallbacks", "routes", "medical"),
    *("tools", "send_money", "default"),
    *("accept", "retry", "fallback", "escalate", "abstain", "below", "times", "temperature", "top_p", "top_k", "seed"),
    *("instruction", "to", "text", "reply", "raise", "attempts", "tokens", "seconds", "model", "scorer", "bigger"),
]

many = settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])


def check(text: str) -> Policy | None:
    """Reading the text ends in a policy that works, or in an error that says where and what."""
    try:
        policy = parse_policy(text, where="p.yaml")
    except InvalidPolicyError as error:
        tells(error, text)
        return None
    works(policy)
    return policy


def tells(error: InvalidPolicyError, text: str) -> None:
    """The error has problems, all of them within the text and fit to be printed."""
    lines = 2 + sum(text.count(end) for end in "\n\r\x85\u2028\u2029")
    assert error.problems
    for problem in error.problems:
        assert 1 <= problem.line <= lines
        assert 1 <= problem.column <= len(text) + 1
        assert problem.message
        assert str(problem).startswith(f"p.yaml:{problem.line}:{problem.column}: ")
        assert str(problem).isprintable()
        str(problem).encode()
    assert str(error).startswith(str(error.problems[0]).rstrip("."))


def works(policy: Policy) -> None:
    """The risk guarantees that hold for every policy that is read."""
    policy.name.encode()
    for route in (None, *policy.routes):
        lines = policy.plan(route).rules
        assert lines[-1].below == math.inf
        assert all(low.below < high.below for low, high in pairwise(lines))
        if any(line.is_uncertified for line in lines):
            with pytest.raises(PolicyError, match="has no threshold yet"):
                decide(policy, p_wrong=0.3, route=route)
            continue
        for score in (0.0, 0.3, 0.5, 1.0):
            for usage in (Usage(), Usage(retries=99, exhausted=True)):
                decision = decide(policy, p_wrong=score, route=route, usage=usage)
                assert sum(step.decides for step in explain(policy, score, route, usage=usage)) == 1
                assert not (usage.exhausted and decision.action is Action.RETRY)
        assert decide(policy, p_wrong=math.nan, route=route).action is not Action.RETRY
        assert decide_error(policy, error="x", route=route, usage=Usage(exhausted=True)).p_wrong is None
        for tool in (*policy.tools, "other"):
            assert decide(policy, p_wrong=0.3, route=route, tools=[tool]).reason
            assert decide_error(policy, error="x", route=route, tools=[tool]).action is not Action.RETRY


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """The seed after a few cuts, repetitions and insertions."""
    text = SEED
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=3), st.just(text[start:end] * 2)))
        text = text[:start] + piece + text[draw(st.sampled_from((start, end))) :]
    return text


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.floats(),
    st.floats(0, 1),
    st.sampled_from(KEYS),
    st.text(max_size=8),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=5))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a value with another one at a path; None takes a list's item or a key away."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is None and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def test_the_seed_is_a_policy() -> None:
    assert check(SEED) is not None


@many
@given(mutations())
def test_mutated_texts(text: str) -> None:
    check(text)


@settings(many, max_examples=1000)
@given(st.data())
def test_documents_with_another_value_somewhere(data: st.DataObject) -> None:
    document = yaml.safe_load(SEED)
    for _ in range(data.draw(st.integers(1, 3))):
        document = put(document, data.draw(st.sampled_from(places(document))), data.draw(values))
        assume(isinstance(document, dict))
    check(json.dumps(document))


@settings(many, max_examples=1000)
@given(st.dictionaries(keys, values, max_size=8), st.booleans())
def test_random_documents(document: dict[str, Any], flow: bool) -> None:
    check(yaml.safe_dump({"version": 1, "name": "x", **document}, default_flow_style=flow, allow_unicode=flow))


@settings(many, max_examples=500)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_random_texts(text: str) -> None:
    check(text)


@settings(many, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), whole=st.booleans())
def test_random_bytes(tmp_path: Path, content: bytes, whole: bool) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content if whole else SEED.encode()[:-20] + content)
    try:
        policy = load_policy(path)
    except PolicyError as error:
        told = str(error)
    else:
        works(policy)
        told = str(path)
    assert "p.yaml" in told


@settings(many, max_examples=300)
@given(st.sampled_from(sorted(builtin_policies())), st.integers(0, 3000), st.integers(1, 40))
def test_builtin_policies_with_a_piece_cut_out(name: str, start: int, length: int) -> None:
    text = builtin_policies()[name].read_text()
    check(text[:start] + text[start + length :])


@settings(many, max_examples=300)
@given(st.text(max_size=20))
def test_random_names(name: str) -> None:
    assume(name not in builtin_policies())
    with pytest.raises(PolicyError, match="policy"):
        load_policy(name)
