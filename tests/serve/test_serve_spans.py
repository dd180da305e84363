"""Spans over HTTP: in the verdict of an accepted answer, cut on request, and in no response to a rejected one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer, with_spans
from served import Served, serving

RULES = "version: 1\nname: NAME\nrules: [{accept: {below: 0.99}}, {abstain: {text: No.}}]\n"
TEXT = "Norway:\n- Capital: Bergen\n- Founded: 1040"
THEN = {"mark": "mark", "cut": "cut", "ask": "retry"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = AnsweringEngine(lambda prompt, number: (TEXT, 0.1))
    engine.unsure = ("Bergen",)
    policies = {
        name: f"{RULES.replace('NAME', name)}spans: {{above: 0.6, then: {then}}}\n" for name, then in THEN.items()
    }
    with serving(engine=engine, scorer=with_spans(confidence_scorer()), policies=policies) as found:
        yield found


def ask(served: Served, policy: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Facts?"}], "max_tokens": 99}
    with served.client() as client:
        answer: dict[str, Any] = client.post(
            "/v1/chat/completions", json={**body, "guard": {"policy": policy}, **more}
        ).json()
    return answer


def test_the_verdict_has_the_spans_of_an_accepted_answer(served: Served) -> None:
    answer = ask(served, "mark")
    assert answer["choices"][0]["message"]["content"] == TEXT
    spans = answer["guard"]["spans"]
    assert [(span["text"], span["p_wrong"] > 0.6) for span in spans][1] == ("Capital: Bergen", True)
    assert answer["guard"]["p_any_wrong"] > spans[1]["p_wrong"]


def test_a_cut_answer_has_the_spans_that_are_left(served: Served) -> None:
    answer = ask(served, "cut")
    text = answer["choices"][0]["message"]["content"]
    assert text == "Norway:\n- Founded: 1040"
    assert [text[span["start"] : span["end"]] for span in answer["guard"]["spans"]] == ["Norway:", "Founded: 1040"]
    assert "Bergen" not in str(answer)


def test_a_held_stream_is_cut_as_well(served: Served) -> None:
    messages = [{"role": "user", "content": "Facts?"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 99, "stream": True, "guard": {"policy": "cut"}}
    with served.client() as client:
        out = client.post("/v1/chat/completions", json=body).text
    assert "Founded: 1040" in out
    assert "Bergen" not in out


def test_a_rejected_answers_spans_are_not_in_the_response(served: Served) -> None:
    answer = ask(served, "ask")
    assert answer["guard"]["action"] == "abstain"
    assert answer["guard"]["spans"] is None
    assert "Bergen" not in str(answer)


def test_a_given_answers_score_has_its_spans(served: Served) -> None:
    with served.client() as client:
        found = client.post("/v1/score", json={"model": "tiny", "question": "Facts?", "answer": TEXT}).json()
    assert len(found["spans"]) == 3
    assert found["p_any_wrong"] > max(span["p_wrong"] for span in found["spans"])


def test_litellms_guardrail_blocks_what_would_be_cut(served: Served) -> None:
    call = {"litellm_call_id": "1", "additional_provider_specific_params": {"model": "tiny", "policy": "cut"}}
    path = "/beta/litellm_basic_guardrail_api"
    asked = {**call, "input_type": "request", "structured_messages": [{"role": "user", "content": "Facts?"}]}
    with served.client() as client:
        client.post(path, json=asked)
        found = client.post(path, json={**call, "input_type": "response", "texts": [TEXT]}).json()
    assert found["action"] == "BLOCKED"
    assert "does not accept the answer as it is" in found["blocked_reason"]
