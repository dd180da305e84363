"""Base models on the server: one question goes behind the solved examples of the calibration; else is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, base_model, base_scorer, confidence_scorer, tiny_artefact
from served import POLICY, Served, serving

from guard.policy.policy import parse_policy
from guard.records import Prompt
from guard.runtime.base_models import completion_text
from guard.runtime.guard import Guard
from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer

QUESTION = "Which city?"
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
#: A question to which an answer is given.
GIVEN = "Which town?"
GUARDRAIL = "/beta/litellm_basic_guardrail_api"


def script(prompt: Prompt, number: int) -> tuple[str, float]:
    if "JSON" in prompt.question:
        return '{"city": "Paris"}', 0.1
    return " Paris" if GIVEN in prompt.question else " Paris\n\nQuestion: What next?", 0.1


def of_base(**options: Any) -> Any:
    engine = AnsweringEngine(script, model=base_model())
    return serving(engine=engine, scorer=base_scorer(base_model()), max_tokens=None, **options)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with of_base() as running:
        yield running


def post(served: Served, path: str, **body: Any) -> Any:
    with served.client() as client:
        return client.post(path, json=body)


def asked(served: Served, path: str, **body: Any) -> Any:
    """The body of a response, and the texts that the engine was asked meanwhile."""
    before = len(served.engine.asked)
    found = post(served, path, **body)
    assert found.status_code == 200, found.text
    return found, [prompt.question for prompt in served.engine.asked[before:]]


@pytest.mark.parametrize("content", [QUESTION, [{"type": "text", "text": QUESTION}]], ids=["text", "blocks"])
def test_a_chat_is_asked_as_guard_ask_asks_a_question(served: Served, content: Any) -> None:
    found, texts = asked(served, "/v1/chat/completions", model="tiny", messages=[{"role": "user", "content": content}])
    answer = found.json()
    assert texts == [completion_text(QUESTION)]
    assert answer["choices"][0]["message"]["content"] == " Paris", "an answer ends with its line"
    with Guard(served.engine, base_scorer(base_model()), parse_policy(POLICY)) as guard:
        outcome = guard.ask(QUESTION)
    assert (outcome.answer, outcome.p_wrong) == (" Paris", answer["guard"]["p_wrong"])
    assert answer["guard"]["calibrated"] is True


def test_so_are_responses_and_streams(served: Served) -> None:
    found, texts = asked(served, "/v1/responses", model="tiny", input=QUESTION)
    assert texts == [completion_text(QUESTION)]
    assert found.json()["output"][0]["content"][0]["text"] == " Paris"
    found, texts = asked(served, "/v1/chat/completions", **ASK, stream=True)
    assert texts == [completion_text(QUESTION)]
    assert '"content": " Paris"' in found.text


def test_so_is_a_live_stream() -> None:
    with of_base(policies={"test": POLICY + "streaming: live\n"}) as served:
        found, texts = asked(served, "/v1/chat/completions", **ASK, stream=True)
    assert found.headers["x-guard-streaming"] == "live"
    assert texts == [completion_text(QUESTION)]
    lines = [line.removeprefix("data: ") for line in found.text.splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == " Paris"


@pytest.mark.parametrize(("given", "tokens"), [({}, 4), ({"max_tokens": 2}, 2), ({"max_completion_tokens": 6}, 6)])
def test_an_answer_has_the_token_limit_of_the_calibration_unless_the_request_has_one(
    given: dict[str, int], tokens: int
) -> None:
    engine = AnsweringEngine(lambda prompt, number: ("Saint Petersburg", 0.1), model=base_model())
    scorer = base_scorer(base_model(), max_tokens=4)
    with serving(engine=engine, scorer=scorer, max_tokens=None) as served:
        found, _ = asked(served, "/v1/chat/completions", **ASK, **given)
    assert found.json()["usage"]["completion_tokens"] == tokens


def test_a_stop_text_of_the_request_ends_an_answer_too(served: Served) -> None:
    for stop, answer in (("ri", " Pa"), ("next", " Paris")):
        found, _ = asked(served, "/v1/chat/completions", **ASK, stop=stop)
        assert found.json()["choices"][0]["message"]["content"] == answer


def test_an_answer_in_json_is_asked_for_before_the_line_that_the_model_continues(served: Served) -> None:
    found, texts = asked(served, "/v1/chat/completions", **ASK, response_format={"type": "json_object"}, max_tokens=40)
    assert texts[0].endswith(f"Question: {QUESTION}\nAnswer with one JSON object and nothing else.\nAnswer:")
    assert json.loads(found.json()["choices"][0]["message"]["content"]) == {"city": "Paris"}


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": QUESTION} for role in roles]}


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        (turns("user", "assistant", "user"), "3 messages", "messages"),
        (turns("system", "user"), "a system message", "messages"),
        (turns("developer", "user"), "a system message", "messages"),
        (turns("assistant"), "a message of the role 'assistant'", "messages"),
        ({**turns("user"), "tools": [TOOL]}, "tools", "tools"),
        ({**turns("user"), "chat_template_kwargs": {"a": 1}}, "options of a chat template", "chat_template_kwargs"),
    ],
)
def test_what_has_no_place_behind_the_examples_is_refused_with_what_to_send(
    served: Served, body: dict[str, Any], words: str, param: str
) -> None:
    before = len(served.engine.asked)
    refused = post(served, "/v1/chat/completions", model="tiny", **body)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(f"A request to 'tiny' cannot have {words}: it is asked single questions")
    assert "Send one message of the role 'user'" in error["message"]
    assert "/v1/completions" in error["message"]
    assert len(served.engine.asked) == before


def test_instructions_of_responses_are_a_system_message(served: Served) -> None:
    refused = post(served, "/v1/responses", model="tiny", input=QUESTION, instructions="Be brief.")
    assert refused.status_code == 400
    assert "cannot have a system message" in refused.json()["error"]["message"]


def test_tools_that_no_answer_may_call_are_no_tools(served: Served) -> None:
    _, texts = asked(served, "/v1/chat/completions", **ASK, tools=[TOOL], tool_choice="none")
    assert texts == [completion_text(QUESTION)]


def test_a_text_of_ones_own_stays_as_it_is(served: Served) -> None:
    found, texts = asked(served, "/v1/completions", model="tiny", prompt="The largest city is")
    assert texts == ["The largest city is"]
    assert found.json()["choices"][0]["text"] == " Paris"
    with Guard(served.engine, base_scorer(base_model()), parse_policy(POLICY)) as guard:
        outcome = guard.ask(Prompt.raw("The largest city is", plain=True))
    score = outcome.attempts[0].score
    assert score is not None
    assert (score.p_wrong, score.calibrated) == (found.json()["guard"]["p_wrong"], found.json()["guard"]["calibrated"])


def test_a_given_answer_is_scored_behind_the_examples(served: Served) -> None:
    by = [
        asked(served, "/v1/score", model="tiny", answer="Paris", **question)
        for question in ({"question": GIVEN}, {"messages": [{"role": "user", "content": GIVEN}]})
    ]
    assert [texts for _, texts in by] == [[completion_text(GIVEN)]] * 2
    assert [found.json()["p_wrong"] for found, _ in by] == pytest.approx([0.1, 0.1], abs=1e-2)
    refused = post(served, "/v1/score", model="tiny", answer="Paris", **turns("system", "user"))
    assert "cannot have a system message" in refused.json()["error"]["message"]


def test_so_is_the_answer_that_litellm_asks_about(served: Served) -> None:
    about = {"texts": ["Paris"], "litellm_call_id": "1", "structured_messages": [{"role": "user", "content": GIVEN}]}
    assert post(served, GUARDRAIL, **about, input_type="request").json() == {"action": "NONE"}
    assert post(served, GUARDRAIL, **about, input_type="response").json() == {"action": "NONE"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": ASK["messages"]}),
        ("/v1/chat/completions", {"messages": ASK["messages"], "tools": [TOOL]}),
        ("/v1/responses", {"input": QUESTION}),
        ("/v1/score", {"question": QUESTION, "answer": "Paris"}),
    ],
)
def test_a_scorer_that_was_not_fitted_on_questions_is_named_to_who_runs_the_server(
    path: str, body: dict[str, Any]
) -> None:
    engine = AnsweringEngine(script, model=base_model())
    with serving(engine=engine, scorer=confidence_scorer(base_model())) as served:
        refused = post(served, path, model="tiny", **body)
        found, texts = asked(served, "/v1/completions", model="tiny", prompt="A text")
    message = refused.json()["error"]["message"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_messages")
    assert "has no chat template, and its scorer was not fitted on questions" in message
    assert "guard calibrate --model" in message
    assert "Prompt.raw" not in message
    assert texts == ["A text"]
    assert found.json()["guard"]["action"] == "accept"


@pytest.mark.model
def test_a_real_model_without_a_template_answers_the_server_and_python_alike(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from tiny_gguf import write_tiny_gguf

    from guard.engines.llama_cpp import LlamaCppEngine

    model = write_tiny_gguf(tmp_path / "base.gguf", template=None, context=1024)
    with LlamaCppEngine.load(model, threads=1) as engine:
        prompting = Prompting(system="", max_tokens=4, completion=True)
        scorer = Scorer(tiny_artefact(engine.model).model_copy(update={"prompting": prompting}))
        shadow = "{version: 1, name: test, mode: shadow, rules: [accept]}"
        with serving(engine=engine, scorer=scorer, policies={"test": shadow}, max_tokens=None) as served:
            answer = post(served, "/v1/chat/completions", **ASK).json()
            refused = post(served, "/v1/chat/completions", **ASK, tools=[TOOL]).json()
        with Guard(engine, scorer, parse_policy(shadow)) as guard:
            outcome = guard.ask(QUESTION)
    assert answer["choices"][0]["message"]["content"] == (outcome.answer or "")
    assert answer["guard"]["p_wrong"] == outcome.p_wrong is not None
    assert "cannot have tools" in refused["error"]["message"]
