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


def test_an_answer_that_is_longer_than_a_prompt_may_be_is_not_scored() -> None:
    with serving(settings=ServeSettings(bounds=Bounds(prompt_characters=40))) as small:
        scored = post(small, "/v1/score", model="tiny", question="Which city?", answer="a" * 50)
        asked_by_litellm(small, "1", "Which city?")
        guarded = answered_by_litellm(small, "1", "a" * 50)
        assert not small.engine.asked
    for refused in (scored, guarded):
        assert (refused["error"]["code"], refused["error"]["param"]) == ("context_length_exceeded", "answer")


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


def asked_by_litellm(served: Served, call_id: str | None, question: Any) -> Any:
    content = [{"role": "user", "content": question}]
    body = {"texts": ["a"], "structured_messages": content, "litellm_call_id": call_id}
    return post(served, GUARDRAIL, input_type="request", **body)


def answered_by_litellm(served: Served, call_id: str | None, answer: str = "Paris") -> Any:
    return post(served, GUARDRAIL, texts=[answer], input_type="response", litellm_call_id=call_id)


def test_litellm_blocks_what_is_not_accepted_and_says_the_policys_text(served: Served) -> None:
    """It drops a text in the answer's place where it streams, and the answer would pass."""
    for call_id, question, expected in (
        ("1", "Which city?", {"action": "NONE"}),
        ("2", "A doubtful city?", {"action": "BLOCKED", "blocked_reason": "I cannot say."}),
    ):
        assert asked_by_litellm(served, call_id, question) == {"action": "NONE"}
        assert answered_by_litellm(served, call_id) == expected


@pytest.mark.parametrize("second", ["A doubtful city?", [{"type": "image_url", "image_url": {"url": "data:,a"}}]])
def test_an_easy_question_with_the_id_of_another_call_does_not_stand_for_it(served: Served, second: Any) -> None:
    """LiteLLM's users may choose ids, in the header ``x-litellm-call-id``."""
    for number, questions in enumerate((["Which city?", second], [second, "Which city?"])):
        call_id = f"chosen {number} {second}"
        for question in questions:
            assert asked_by_litellm(served, call_id, question) == {"action": "NONE"}
        assert answered_by_litellm(served, call_id)["action"] == "BLOCKED"
        asked_by_litellm(served, call_id, "Which city?")
        assert answered_by_litellm(served, call_id)["action"] == "BLOCKED", "nor later"


def test_a_question_that_is_sent_twice_is_one_question(served: Served) -> None:
    for _ in range(2):
        asked_by_litellm(served, "twice", "Which city?")
        assert answered_by_litellm(served, "twice") == {"action": "NONE"}


@pytest.mark.parametrize("call_id", ["", None])
def test_an_answer_without_an_id_has_no_question(served: Served, call_id: str | None) -> None:
    for asked in ("", None):
        asked_by_litellm(served, asked, "Which city?")
    assert answered_by_litellm(served, call_id)["action"] == "BLOCKED"


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
