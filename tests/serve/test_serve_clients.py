"""LangChain's OpenAI client against the server: what reaches it, and that nothing rejected does, by any channel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import OpenAIRefusalError
from pydantic import BaseModel
from scripted import AnsweringEngine, scripted_model
from served import POLICY, Served, said, serving

from guard.errors import InputError
from guard.langchain.testing import assert_nothing_leaks
from guard.records import Prompt
from guard.review.store import Store
from guard.scoring.scorer import Scorer
from guard.serve.testing import CHANNELS as HTTP_CHANNELS
from guard.serve.testing import assert_nothing_leaks_over_http

if TYPE_CHECKING:
    from guard.engines.llama_cpp import LlamaCppEngine

SECRET = "The vault code is 7-4-1-1-9-3, and nobody may know it"


def model(served: Served, **options: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": "tiny", "max_retries": 0, "timeout": 30}
    return ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", **{**defaults, **options})


@pytest.mark.parametrize("route", ["tiny", "tiny:desk", "tiny:raising", "tiny:retried"])
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"use_responses_api": True}])
def test_nothing_of_a_rejected_answer_leaves_by_any_channel(
    tmp_path: Path, route: str, options: dict[str, Any]
) -> None:
    with Store.open(tmp_path / "r.db") as store, serving(said(SECRET, 0.7), store=store) as served:
        channels = ["invoke", "ainvoke", "stream", "astream", "astream_events v2", "callbacks", "tracer"]
        assert_nothing_leaks(model(served, model=route, **options), "Which code?", secrets=[SECRET], channels=channels)


@pytest.mark.parametrize("route", ["tiny", "tiny:desk", "tiny:raising", "tiny:retried"])
@pytest.mark.parametrize("streaming", ["hold", "live"])
def test_nothing_of_a_rejected_answer_leaves_by_any_http_channel(tmp_path: Path, route: str, streaming: str) -> None:
    policies = {"test": f"{POLICY}\nstreaming: {streaming}\n"}
    with Store.open(tmp_path / "r.db") as store, serving(said(SECRET, 0.7), store=store, policies=policies) as served:
        seen = assert_nothing_leaks_over_http(served.url, "Which code?", model=route, secrets=[SECRET])
    assert {channel for channel, _ in seen.texts} >= {*HTTP_CHANNELS, "metrics"}


def test_the_leak_tester_finds_what_leaves_over_http() -> None:
    for streaming in ("hold", "live"):
        policies = {"test": f"{POLICY}\nstreaming: {streaming}\n"}
        with serving(said(SECRET, 0.2), policies=policies) as served:
            for channel in HTTP_CHANNELS:
                with pytest.raises(AssertionError, match=f"{channel}: "):
                    assert_nothing_leaks_over_http(
                        served.url, "Which code?", model="tiny", secrets=[SECRET], channels=[channel]
                    )
    with pytest.raises(InputError, match="no channel 'chatt'"):
        assert_nothing_leaks_over_http("http://127.0.0.1:1", "?", model="m", secrets=["x"], channels=["chatt"])


def test_the_verdict_reaches_langchain_as_refusal_and_headers() -> None:
    with serving(said(SECRET, 0.7)) as served:
        message = model(served, include_response_headers=True).invoke("Which code?")
    assert (message.content, message.additional_kwargs["refusal"]) == ("I cannot say.", "I cannot say.")
    assert message.response_metadata["headers"]["x-guard-action"] == "abstain"


def test_a_stream_of_langchain_adds_up() -> None:
    with serving(said("Paris")) as served:
        chunks = list(model(served, stream_usage=True).stream("Which city?"))
    assert "".join(str(chunk.content) for chunk in chunks) == "Paris"
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 6


class ToolListingEngine(AnsweringEngine):
    """Its template has the tools."""

    def encode(self, prompt: Prompt) -> list[int]:
        return [*f"{prompt.question}{json.dumps([dict(tool) for tool in prompt.tools])}".encode()]


def test_langchains_tools_and_objects_work() -> None:
    class Town(BaseModel):
        """A town."""

        name: str

    call = '<tool_call>{"name": "Town", "arguments": {"name": "Paris"}}</tool_call>'
    with serving(engine=ToolListingEngine(said(call), model=scripted_model(context_tokens=4000))) as served:
        message = model(served).bind_tools([Town]).invoke("Which town?")
        assert message.tool_calls[0]["args"] == {"name": "Paris"}
        assert model(served).with_structured_output(Town, method="function_calling").invoke("?") == Town(name="Paris")
    with serving(said('{"name": "Paris"}')) as served:
        assert model(served).with_structured_output(Town).invoke("Which town?") == Town(name="Paris")
    with serving(said('{"name": "Lyon"}', 0.8)) as served, pytest.raises(OpenAIRefusalError):
        model(served).with_structured_output(Town).invoke("Which town?")


@pytest.mark.model
def test_the_embedded_model_answers_over_http(smollm2: LlamaCppEngine, smollm2_scorer: Scorer) -> None:
    accepts = "{version: 1, name: all, rules: [accept]}"
    with serving(engine=smollm2, scorer=smollm2_scorer, policies={"all": accepts}) as served:
        client = served.openai()
        ask: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 16,
        }
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
        streamed = client.chat.completions.create(**ask, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": city}}
        formed = client.chat.completions.create(**{**ask, "max_tokens": 32}, response_format=wanted)
        scored = served.client().post(
            "/v1/score", json={"model": "tiny", "messages": ask["messages"], "answer": "Paris"}
        )
    assert "Paris" in whole.choices[0].message.content
    assert text == whole.choices[0].message.content
    assert "".join(token.token for token in whole.choices[0].logprobs.content).strip() == text.strip()
    for token in whole.choices[0].logprobs.content:
        assert [token.token, len(token.top_logprobs)] == [token.top_logprobs[0].token, 3]
    assert json.loads(formed.choices[0].message.content)["city"] in ("Paris", "Rome")
    assert 0 <= scored.json()["p_wrong"] <= 1
