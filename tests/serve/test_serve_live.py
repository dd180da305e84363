"""Live streams: text comes as it grows; what is not accepted is retracted, and no client takes it for whole."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from scripted import AnsweringEngine
from served import POLICY, Served, said, serving
from waiting_engine import QUICK, until, waiting_engine

from guard.review.store import Store

LIVE = {"live": f"{POLICY}\nstreaming: live\n"}
SHADOW = {"live": f"{POLICY}\nstreaming: live\nmode: shadow\n"}
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}], "stream": True}
LONG = "It is Lyon, as everybody knows who has ever been to France in spring"


def events(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def shown(found: list[dict[str, Any]]) -> str:
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in found if each["choices"])


def post(served: Served, body: dict[str, Any], path: str = "chat/completions") -> httpx.Response:
    with served.client() as client:
        return client.post(f"/v1/{path}", json=body)


def test_text_comes_before_the_decision_and_the_verdict_at_the_end() -> None:
    engine, release = waiting_engine("Paris", 0.1)
    with (
        serving(engine=engine, settings=QUICK, policies=LIVE) as served,
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ASK) as response,
    ):
        assert response.headers["x-guard-streaming"] == "live"
        assert "x-guard-action" not in response.headers
        lines = response.iter_lines()
        before = [line for line in (next(lines) for _ in range(12)) if line]
        assert shown(events("\n".join(before))) == "Pa"
        assert before[-1] == ": guarding"
        release.set()
        after = "\n".join(lines)
    last = events(after)[-1]
    assert shown(events("\n".join([*before, after]))) == "Paris"
    assert (last["guard"]["action"], last["choices"][0]["finish_reason"]) == ("accept", "stop")
    assert after.rstrip().endswith("data: [DONE]")


def test_an_answer_that_is_not_accepted_is_stopped_and_retracted() -> None:
    with serving(said(LONG, 0.8), policies=LIVE) as served:
        response = post(served, ASK)
        found = events(response.text)
        last = found[-1]
        assert shown(found) == LONG[: len(shown(found))]
        assert len(shown(found)) <= 8, "it was stopped at its first score"
        assert (last["guard"]["action"], last["guard"]["retracted"]) == ("abstain", True)
        assert last["error"]["code"] == "retracted"
        assert last["choices"][0] == {
            "index": 0, "delta": {"refusal": "I cannot say."}, "logprobs": None, "finish_reason": "content_filter",
        }  # fmt: skip
        assert "[DONE]" not in response.text
        kept = served.client().get(f"/v1/guard/decisions/{last['guard']['decision_id']}").json()
        assert kept["action"] == "abstain"
        assert "guard_decisions_total" in served.client().get("/metrics").text


@pytest.mark.parametrize("answer", ["Lyon", LONG])
def test_clients_raise_where_an_answer_is_retracted(answer: str) -> None:
    """The short one is decided about at its end only."""
    with serving(said(answer, 0.8), policies=LIVE) as served:
        with pytest.raises(openai.APIError, match="has retracted the answer"):
            list(served.openai().chat.completions.create(**ASK))
        with pytest.raises(openai.APIError, match="has retracted the answer"):
            list(served.openai().completions.create(model="tiny", prompt="The city is", stream=True))
        model = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", model="tiny", max_retries=0)
        with pytest.raises(openai.APIError, match="has retracted the answer"):
            list(model.stream("Which city?"))
        with pytest.raises(openai.APIError, match="has retracted the answer"):
            ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", model="tiny", streaming=True).invoke("Which city?")


def test_a_retracted_answer_is_escalated_with_the_text_that_was_shown(tmp_path: Path) -> None:
    with Store.open(tmp_path / "r.db") as store, serving(said(LONG, 0.8), policies=LIVE, store=store) as served:
        found = events(post(served, {**ASK, "model": "tiny:desk"}).text)
        case = store.review(found[-1]["guard"]["review_id"])
    assert found[-1]["choices"][0]["delta"] == {"refusal": "A person will look."}
    assert (found[-1]["guard"]["action"], case.answer) == ("escalate", shown(found))


@pytest.mark.parametrize("how", [{"guard": {"hold": "comments"}}, {"guard": {"hold": "headers"}}, {"stream": False}])
def test_a_request_may_have_its_answer_held(how: dict[str, Any]) -> None:
    with serving(said(LONG, 0.8), policies=LIVE) as served:
        response = post(served, {**ASK, **how})
    assert "Lyon" not in response.text
    assert "retracted" not in response.text


def test_json_and_calls_are_held_whatever_the_policy_streams() -> None:
    with serving(said('{"city": "Lyon"}', 0.8), policies=LIVE) as served:
        response = post(served, {**ASK, "response_format": {"type": "json_object"}})
    assert "Lyon" not in response.text


def test_nothing_is_tried_again_behind_text_that_was_shown() -> None:
    with serving(said(LONG, 0.6), policies=LIVE) as served:
        found = events(post(served, {**ASK, "model": "tiny:retried"}).text)
        assert len(served.engine.asked) == 1
    assert (found[-1]["guard"]["action"], found[-1]["guard"]["attempts"]) == ("abstain", 1)


def test_a_shadow_policy_retracts_nothing() -> None:
    with serving(said(LONG, 0.8), policies=SHADOW) as served:
        response = post(served, {**ASK, "stream_options": {"include_usage": True}})
    found = events(response.text)
    assert shown(found) == LONG
    assert found[-2]["guard"]["would_be"] == "abstain"
    assert found[-1]["usage"]["completion_tokens"] == len(LONG) + 1
    assert response.text.rstrip().endswith("data: [DONE]")


def test_a_raw_completion_streams_live_too() -> None:
    with serving(said("Paris"), policies=LIVE) as served:
        found = events(post(served, {"model": "tiny", "prompt": "The city is", "stream": True}, "completions").text)
    assert "".join(each["choices"][0]["text"] for each in found) == "Paris"
    assert found[-1]["guard"]["action"] == "accept"


def test_a_raw_completion_that_is_retracted_has_the_policys_words() -> None:
    with serving(said(LONG, 0.8), policies=LIVE) as served:
        found = events(post(served, {"model": "tiny", "prompt": "The city is", "stream": True}, "completions").text)
    (choice,) = found[-1]["choices"]
    assert (choice["refusal"], choice["text"], choice["finish_reason"]) == ("I cannot say.", "", "content_filter")
    assert found[-1]["error"]["code"] == "retracted"


def test_an_error_before_any_text_has_a_status_and_one_behind_it_is_an_event() -> None:
    with serving(said("Paris"), policies=LIVE) as served:
        refused = post(served, {**ASK, "messages": [{"role": "user", "content": "x" * 500}]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    engine = AnsweringEngine(said("Paris"))
    engine.on_feed = lambda number: None if number < 3 else (_ for _ in ()).throw(RuntimeError("lost"))
    policy = "{version: 1, name: p, streaming: live, rules: [accept], on_error: {abstain: {text: It failed.}}}"
    with serving(engine=engine, policies={"p": policy}) as served:
        response = post(served, ASK)
    assert events(response.text)[-1]["error"]["code"] == "retracted"
    assert "[DONE]" not in response.text


def test_a_client_that_leaves_a_live_stream_frees_the_engine() -> None:
    engine, release = AnsweringEngine(said("x" * 150, 0.1)), threading.Event()
    fed: list[int] = []

    def feed(number: int) -> None:
        fed.append(number)
        if len(fed) == 3:
            assert release.wait(20)

    engine.on_feed = feed
    with serving(engine=engine, settings=QUICK, policies=LIVE) as served:
        with served.client() as client, client.stream("POST", "/v1/chat/completions", json=ASK) as response:
            next(response.iter_lines())
        until(lambda: served.server.responder.admission.running == 0)
        release.set()
        assert post(served, {**ASK, "max_tokens": 3, "stream": False}).status_code == 200
        assert len(fed) < 100, "the first answer was generated to its end"
