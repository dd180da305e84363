"""guard's own routes: scores of given answers, and LiteLLM's guardrail, which blocks what it cannot score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import Served, serving

from guard.serve import ServeSettings
from guard.serve.asked import Bounds

GUARDRAIL = "/beta/litellm_basic_guardrail_api"
MESSAGES = [{"role": "user", "content": "Which city?"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    def script(prompt: Any, number: int) -> tuple[str, float]:
        return ("x" * 300, 0.8) if "doubtful" in prompt.question else ("Paris", 0.1)

    with serving(script) as running:
        yield running


def post(served: Served, path: str, **body: Any) -> Any:
    with served.client() as client:
        return client.post(path, json=body).json()


def test_a_given_answer_is_scored_and_decided_on(served: Served) -> None:
    scored = post(served, "/v1/score", model="tiny", question="Which city?", answer="Paris")
    assert scored["object"] == "guard.score"
    assert scored["p_wrong"] == pytest.approx(0.1, abs=1e-2)
    assert scored["decision"]["action"] == "accept"
    strict = post(served, "/v1/score", model="tiny:strict", messages=MESSAGES, answer="Paris")
    assert strict["decision"]["action"] == "abstain"


@pytest.mark.parametrize("body", [{}, {"question": "a", "messages": MESSAGES}])
def test_a_score_needs_one_question(served: Served, body: dict[str, Any]) -> None:
    assert "error" in post(served, "/v1/score", model="tiny", answer="Paris", **body)


@pytest.mark.parametrize("asked", [{"question": "a" * 50}, {"messages": [{"role": "user", "content": "a" * 50}]}])
def test_a_question_that_is_longer_than_the_server_takes_is_not_scored(asked: dict[str, Any]) -> None:
    settings = ServeSettings(bounds=Bounds(prompt_characters=40))
    with serving(lambda prompt, number: ("Paris", 0.1), settings=settings) as small:
        assert post(small, "/v1/score", model="tiny", answer="a", **asked)["error"]["code"] == "context_length_exceeded"


def test_a_decision_is_found_by_its_id_and_has_no_text(served: Served) -> None:
    decision_id = post(served, "/v1/chat/completions", model="tiny", messages=MESSAGES)["guard"]["decision_id"]
    with served.client() as client:
        found = client.get(f"/v1/guard/decisions/{decision_id}").json()
        for path in ("x", "..%2f..%2fetc%2fpasswd", "%00", "a" * 3000):
            assert client.get(f"/v1/guard/decisions/{path}").status_code == 404
            assert client.get(f"/v1/guard/reviews/{path}").status_code == 404
    assert (found["object"], found["action"]) == ("guard.decision", "accept")
    assert "Paris" not in str(found)


def test_a_wait_that_is_no_number_is_refused_by_its_name(served: Served) -> None:
    with served.client() as client:
        error = client.get("/v1/guard/reviews/x?wait=long").json()["error"]
    assert (error["param"], error["message"].startswith("wait: ")) == ("wait", True)


def test_litellm_gets_none_for_what_is_accepted_and_the_policys_text_for_the_rest(served: Served) -> None:
    for call_id, question, expected in (
        ("1", "Which city?", {"action": "NONE"}),
        ("2", "A doubtful city?", {"action": "GUARDRAIL_INTERVENED", "texts": ["I cannot say."]}),
    ):
        asked = [{"role": "user", "content": question}]
        first = post(
            served,
            GUARDRAIL,
            texts=[question],
            structured_messages=asked,
            input_type="request",
            litellm_call_id=call_id,
        )
        assert first == {"action": "NONE"}
        assert post(served, GUARDRAIL, texts=["Paris"], input_type="response", litellm_call_id=call_id) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"litellm_call_id": "unknown"},
        {"texts": []},
        {"texts": ["a", "b"]},
        {"texts": [" "]},
        {"texts": ["<think>Paris"]},
        {"tool_calls": [{"id": "1"}]},
        {"images": ["a"]},
    ],
)
def test_litellm_blocks_what_cannot_be_scored(served: Served, changes: dict[str, Any]) -> None:
    post(served, GUARDRAIL, structured_messages=MESSAGES, input_type="request", litellm_call_id="3")
    body = {"texts": ["Paris"], "input_type": "response", "litellm_call_id": "3", **changes}
    assert post(served, GUARDRAIL, **body)["action"] == "BLOCKED"


def test_an_answer_without_a_visible_character_is_never_accepted() -> None:
    with serving(policies={"all": "{version: 1, name: all, rules: [accept]}"}) as served:
        scored = post(served, "/v1/score", model="tiny", question="Which city?", answer="\u200b")
        post(served, GUARDRAIL, structured_messages=MESSAGES, input_type="request", litellm_call_id="1")
        guarded = post(served, GUARDRAIL, texts=["\u2800"], input_type="response", litellm_call_id="1")
    assert scored["decision"]["action"] == "abstain"
    assert guarded["action"] == "BLOCKED"


def test_an_answer_that_is_a_thought_alone_has_no_score(served: Served) -> None:
    failed = post(served, "/v1/score", model="tiny", question="Which city?", answer="<think>Paris")
    assert (failed["error"]["code"], "Paris" in str(failed)) == ("unscored_answer", False)


@pytest.mark.parametrize("options", [{"rout": "strict"}, {"guard": {"route": "strict"}}, {"route": 1}])
def test_an_option_of_litellm_that_guard_does_not_read_is_an_error(served: Served, options: dict[str, Any]) -> None:
    body = {"texts": ["Paris"], "input_type": "response", "litellm_call_id": "1"}
    assert "error" in post(served, GUARDRAIL, **body, additional_provider_specific_params=options)
