"""Early decisions over HTTP: a stopped answer is an ordinary refusal to clients, and nothing of it reaches them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model, with_early
from served import Served, serving

LONG = "It is Lyon, as everybody knows"
RULES = "version: 1\nname: NAME\nrules: [{accept: {below: 0.99}}, {abstain: {text: No.}}]\n"
POLICIES = {
    "abstains": "early: {above: 0.8, then: {abstain: {text: Stopped.}}}",
    "silent": "early: {above: 0.8, then: abstain}",
    "falls": "early: {above: 0.8, then: {fallback: {text: Look it up.}}}",
    "shadow": "mode: shadow\nearly: {above: 0.8, then: abstain}",
    "lenient": "early: {above: 0.95, then: abstain}",
}
#: Of a whole answer and of a held stream.
EITHER = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = AnsweringEngine(lambda prompt, number: (LONG, 0.9), model=scripted_model(context_tokens=400))
    policies = {name: f"{RULES.replace('NAME', name)}{section}\n" for name, section in POLICIES.items()}
    with serving(engine=engine, scorer=with_early(confidence_scorer()), policies=policies) as found:
        yield found


def ask(served: Served, policy: str, *, stream: bool) -> tuple[str, list[dict[str, Any]]]:
    """Return what came, as it came, and each body of it."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}], "guard": {"policy": policy}}
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json=body | more)
    assert answer.status_code == 200, answer.text
    if not stream:
        return answer.text, [answer.json()]
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return answer.text, [json.loads(line) for line in lines[:-1]]


def read(bodies: list[dict[str, Any]]) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Return the text, the finish reason, guard's verdict and the usage."""
    choices = [choice for body in bodies for choice in body["choices"]]
    text = "".join((choice.get("message") or choice["delta"]).get("content") or "" for choice in choices)
    (ended,) = (choice["finish_reason"] for choice in choices if choice["finish_reason"])
    said, *more = (body["guard"] for body in bodies if body.get("guard"))
    assert all(each == said for each in more)
    (usage,) = (body["usage"] for body in bodies if body.get("usage"))
    return text, ended, said, usage


@EITHER
@pytest.mark.parametrize(
    ("policy", "text", "action"),
    [("abstains", "Stopped.", "abstain"), ("falls", "Look it up.", "fallback")],
)
def test_a_client_gets_the_policys_text_and_learns_why(
    served: Served, policy: str, text: str, action: str, stream: bool
) -> None:
    whole, bodies = ask(served, policy, stream=stream)
    found, ended, said, usage = read(bodies)
    assert (found, ended, said["action"], said["rule"]) == (text, "stop", action, "early")
    assert "after 2 tokens p_wrong is 0.9, above 0.8" in said["reason"]
    assert said["p_wrong"] == pytest.approx(0.9, abs=1e-3)
    assert usage["completion_tokens"] == 2
    assert "Lyon" not in whole
    assert "It" not in found


@EITHER
def test_without_a_text_nothing_is_said(served: Served, stream: bool) -> None:
    _, bodies = ask(served, "silent", stream=stream)
    text, ended, said, _ = read(bodies)
    assert (text, ended, said["action"]) == ("", "stop", "abstain")


@EITHER
def test_in_shadow_mode_and_below_the_limit_the_answer_is_complete(served: Served, stream: bool) -> None:
    for policy, would_be in (("shadow", "abstain"), ("lenient", None)):
        text, ended, said, _ = read(ask(served, policy, stream=stream)[1])
        assert (text, ended, said["would_be"]) == (LONG, "stop", would_be)
