"""OpenAI's Responses over HTTP, by its own client: text, refusals, function calls, JSON, streams; nothing is kept."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from scripted import AnsweringEngine, scripted_model
from served import said, serving

from guard.records import Prompt

LOOK: dict[str, Any] = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "look", "arguments": {"at": 3}}</tool_call>'


class ResponsesEngine(AnsweringEngine):
    """Its template has the tools."""

    def encode(self, prompt: Prompt) -> list[int]:
        turns = [dict(turn) for turn in prompt.messages or ()]
        return [*json.dumps([turns, [dict(tool) for tool in prompt.tools]]).encode()]


def calling() -> ResponsesEngine:
    return ResponsesEngine(said(CALL), model=scripted_model(context_tokens=4000))


def test_a_text_comes_with_its_verdict() -> None:
    with serving(said("Paris")) as served:
        answer = served.openai().responses.create(model="tiny", input="Which city?")
    assert (answer.output_text, answer.status, answer.store) == ("Paris", "completed", False)
    assert answer.guard["action"] == "accept"
    assert answer.usage.output_tokens == 6


def test_an_abstention_is_text_and_refusal() -> None:
    with serving(said("Lyon, surely", 0.8)) as served:
        answer = served.openai().responses.create(model="tiny", input="Which city?")
    kinds = [part.type for part in answer.output[0].content]
    assert (answer.output_text, kinds) == ("I cannot say.", ["output_text", "refusal"])
    assert "Lyon" not in answer.to_json()


def test_a_function_is_called_and_its_result_is_read() -> None:
    with serving(engine=calling()) as served:
        client = served.openai()
        first = client.responses.create(model="tiny", input="Look", tools=[LOOK])
        call = first.output[0]
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "look", {"at": 3})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "a cat"}
        asked = [{"role": "user", "content": "Look"}, call.to_dict(), result]
        client.responses.create(model="tiny", input=asked, tools=[LOOK], instructions="Be brief.")
        turns = json.loads(served.engine.asked[-1].text)[0]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool"]
    assert turns[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 3}}


class CityAnswer(BaseModel):
    city: str


def test_a_class_is_parsed_or_refused() -> None:
    with serving(said('{"city": "Paris"}')) as served:
        answer = served.openai().responses.parse(model="tiny", input="Which city?", text_format=CityAnswer)
    assert answer.output_parsed == CityAnswer(city="Paris")
    with serving(said('{"city": "Lyon"}', 0.8)) as served:
        refused = served.openai().responses.parse(model="tiny", input="Which city?", text_format=CityAnswer)
    assert refused.output_parsed is None
    assert refused.output[0].content[0].type == "refusal"


@pytest.mark.parametrize(("p_wrong", "text"), [(0.1, "Paris"), (0.8, "I cannot say.")])
def test_a_stream_adds_up_to_the_whole_answer(p_wrong: float, text: str) -> None:
    with (
        serving(said("Paris", p_wrong)) as served,
        served.openai().responses.stream(model="tiny", input="Which city?") as stream,
    ):
        events = list(stream)
        final = stream.get_final_response()
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == final.output_text == text
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == sorted(
        event.sequence_number for event in events if hasattr(event, "sequence_number")
    )
    assert events[-1].response.guard["p_wrong"] == pytest.approx(p_wrong, abs=1e-3)


def test_a_streamed_call_adds_up() -> None:
    with (
        serving(engine=calling()) as served,
        served.openai().responses.stream(model="tiny", input="Look", tools=[LOOK]) as stream,
    ):
        final = stream.get_final_response()
    assert json.loads(final.output[0].arguments) == {"at": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"background": 0},
        {"truncation": "auto"},
        {"max_tool_calls": 3},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"type": "reasoning"}]},
        {"input": [{"role": "user", "content": "a"}] * 2000, "instructions": "one more"},
    ],
)
def test_what_needs_memory_or_other_models_is_refused(changes: dict[str, Any]) -> None:
    with serving(said("Paris")) as served, served.client() as client:
        response = client.post("/v1/responses", json={"model": "tiny", "input": "a", **changes})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"]


def test_an_error_behind_headers_is_an_event_of_responses() -> None:
    with serving(said("x" * 30, 0.8)) as served, pytest.raises(openai.UnprocessableEntityError):
        served.openai().responses.create(model="tiny:raising", input="a", stream=True)
