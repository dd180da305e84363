"""A policy's ``calls`` and ``streaming``, and policies as objects that are copied and pickled."""

from __future__ import annotations

import copy
import pickle

import pytest

from guard.policy.policy import Calls, InvalidPolicyError, json_schema, load_policy, parse_policy


def policy_text(*lines: str) -> str:
    return "\n".join(["version: 1", "name: p", "rules: [{accept: {below: 0.5}}, abstain]", *lines])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("worst", Calls()),
        ("last", Calls(join="last")),
        ("{join: last}", Calls(join="last")),
        ("{tag: answer}", Calls(tag="answer")),
        ("{tag: answer, join: last}", Calls(tag="answer", join="last")),
    ],
)
def test_calls_say_which_scores_decide(written: str, meant: Calls) -> None:
    assert parse_policy(policy_text(f"calls: {written}")).calls == meant


def test_the_defaults_are_the_careful_ones() -> None:
    policy = parse_policy(policy_text())
    assert (policy.calls, policy.streaming) == (Calls(join="worst", tag=None), "hold")
    assert policy.sha256 == parse_policy(policy_text("calls: worst", "streaming: hold")).sha256
    assert policy.sha256 != parse_policy(policy_text("streaming: live")).sha256


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("calls: wrst", "calls.join must be 'worst' or 'last', got 'wrst'. Did you mean 'worst'?"),
        ("calls: {tgs: x}", "unknown key 'tgs' in calls. Did you mean 'tag'?"),
        ("calls: [worst]", "calls must be a mapping, got a list"),
        ("calls: {tag: ''}", "calls.tag must not be empty, got ''"),
        ("calls:", "there is no value after 'calls'"),
        ("streaming: life", "streaming must be 'hold' or 'live', got 'life'. Did you mean 'live'?"),
        ("streaming: true", "streaming must be 'hold' or 'live', got true"),
    ],
)
def test_mistakes_are_reported_with_their_place(line: str, message: str) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(policy_text(line))
    (problem,) = caught.value.problems
    assert (problem.line, problem.message) == (4, message)


def test_the_schema_takes_what_is_read() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    plain = {"version": 1, "name": "p", "rules": ["abstain"]}
    for calls in ("worst", "last", {"tag": "a"}, {"join": "last", "tag": "a"}):
        validator.validate({**plain, "calls": calls})
    for calls in ("wrst", {}, {"tags": "a"}, ["worst"], None):
        assert not validator.is_valid({**plain, "calls": calls})
    assert not validator.is_valid({**plain, "streaming": "life"})


def test_policies_can_be_copied_and_pickled() -> None:
    policy = load_policy("balanced")
    for twin in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy), copy.copy(policy)):  # noqa: S301
        assert twin == policy
        with pytest.raises(TypeError):
            twin.plans[None] = None
