"""What one request may take: time, length, and a person's attention; and how a server ends that has no time left."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import AnsweringEngine
from served import said, serving
from served_child import child
from waiting_engine import until, waiting_engine

from guard.records import Escalation
from guard.serve import ServeSettings
from guard.serve.asked import Bounds
from guard.serve.memory import ServerMemory

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}
SECRET = "The vault code is 7-4-1-1-9-3"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("streaming", ["hold", "live"])
def test_on_error_decides_where_no_answer_comes_in_time_and_the_slot_is_free(stream: bool, streaming: str) -> None:
    engine = AnsweringEngine(lambda prompt, number: ("x" * 150, 0.1) if number == 0 else ("Paris", 0.1))
    engine.on_feed = lambda number: time.sleep(0.02 if len(engine.asked) == 1 else 0)
    settings = ServeSettings(bounds=Bounds(seconds=0.3))
    rules = "rules: [accept], on_error: {abstain: {text: It took too long.}}"
    policy = f"{{version: 1, name: a, streaming: {streaming}, {rules}}}"
    with serving(engine=engine, settings=settings, policies={"a": policy}) as served, served.client() as client:
        late = client.post("/v1/chat/completions", json={**ASK, "stream": stream}).text
        assert "It took too long." in late
        assert '"rule": "on_error"' in late.replace('":"', '": "')
        assert ('"retracted": true' in late) is (stream and streaming == "live")
        assert client.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"] == "Paris"


def test_a_score_that_takes_too_long_is_504() -> None:
    engine = AnsweringEngine(said("Paris"))
    engine.on_feed = lambda number: time.sleep(0.5)
    with (
        serving(engine=engine, settings=ServeSettings(bounds=Bounds(seconds=0.2))) as served,
        served.client() as client,
    ):
        late = client.post("/v1/score", json={"model": "tiny", "question": "Which city?", "answer": "Paris"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")


def test_a_score_that_waits_too_long_for_the_engine_is_504_and_takes_no_room() -> None:
    engine, release = waiting_engine("Lyon", 0.1)
    score = {"model": "tiny", "question": "Which city?", "answer": "Paris"}
    with (
        serving(engine=engine, settings=ServeSettings(bounds=Bounds(seconds=0.3))) as served,
        served.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(served.openai().chat.completions.create, **ASK)
        until(lambda: served.server.responder.admission.running == 1)
        late = [client.post("/v1/score", json=score) for _ in range(3)]
        release.set()
        asking.result(20)
        assert served.server.responder.admission.running == 0
        assert client.post("/v1/score", json=score).status_code == 200
    assert {(each.status_code, each.json()["error"]["code"]) for each in late} == {(504, "timeout")}


def test_a_client_that_leaves_a_score_frees_the_engine() -> None:
    engine, begun = AnsweringEngine(said("Paris")), threading.Event()

    def feed(number: int) -> None:
        begun.set()
        time.sleep(0.02)

    engine.on_feed = feed
    with serving(engine=engine, max_tokens=300) as served:
        body = {"model": "tiny", "question": "Which city?", "answer": "x" * 250}
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=served.url, timeout=0.5) as client:
            client.post("/v1/score", json=body)
        assert begun.wait(20)
        until(lambda: served.server.responder.admission.running == 0)
        engine.on_feed = lambda number: None
        with served.client() as client:
            assert client.post("/v1/chat/completions", json=ASK).json()["guard"]["action"] == "accept"


@pytest.mark.parametrize(("content_filter", "ending"), [(False, "stop"), (True, "content_filter")])
def test_an_abstention_ends_with_content_filter_where_the_operator_wants_it(content_filter: bool, ending: str) -> None:
    with serving(said("Lyon", 0.8), settings=ServeSettings(content_filter=content_filter)) as served:
        create = served.openai().chat.completions.create
        assert create(**ASK).choices[0].finish_reason == ending
        assert [*create(**ASK, stream=True)][-1].choices[0].finish_reason == ending
        assert served.openai().completions.create(model="tiny", prompt="a").choices[0].finish_reason == ending
    with serving(said("Paris", 0.1), settings=ServeSettings(content_filter=content_filter)) as served:
        assert served.openai().chat.completions.create(**ASK).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_an_escalation_that_nobody_takes_is_an_error_without_the_answer(stream: bool) -> None:
    def full(case: Escalation) -> None:
        raise RuntimeError(f"no room for {case.answer}")

    policy = "{version: 1, name: desk, rules: [{escalate: {to: [desk], reply: Wait.}}]}"
    options = {"handlers": {"desk": full}}
    with (
        serving(said(SECRET, 0.8), policies={"desk": policy}, guard_options=options) as served,
        served.client() as client,
    ):
        refused = client.post("/v1/chat/completions", json={**ASK, "stream": stream})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "escalation_failed")
    assert "7-4-1" not in refused.text


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": [{"role": "user", "content": "a" * 150}] * 2}, "context_length_exceeded", "messages"),
        ({"max_tokens": 21}, None, "max_tokens"),
        ({"max_completion_tokens": 21}, None, "max_tokens"),
    ],
)
def test_prompts_and_answers_are_no_longer_than_the_operator_allows(
    body: dict[str, Any], code: str | None, param: str
) -> None:
    settings = ServeSettings(bounds=Bounds(answer_tokens=20, prompt_characters=200))
    with serving(said("Paris" * 20), settings=settings) as served, served.client() as client:
        refused = client.post("/v1/chat/completions", json={**ASK, **body})
        cut = client.post("/v1/chat/completions", json=ASK).json()
    assert refused.status_code == 400
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == (code, param)
    assert cut["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize("body", [{}, {"stream": True}])
def test_a_server_that_must_end_gives_no_half_answer(tmp_path: Path, body: dict[str, Any]) -> None:
    """The answer takes longer than the server may take to end."""
    with (
        child(tmp_path / "r.db", pause=0.5, p_wrong=0.1, shutdown=1.0) as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(read_until_it_breaks, f"{url}/v1/chat/completions", {**ASK, **body})
        until(lambda: "guard_requests_running 1.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        seen = asking.result(30)
    assert "A long" not in seen
    assert "[DONE]" not in seen


def read_until_it_breaks(url: str, body: dict[str, Any]) -> str:
    seen = ""
    with contextlib.suppress(httpx.TransportError), httpx.stream("POST", url, json=body, timeout=60) as response:
        for piece in response.iter_text():
            seen += piece
    return seen


async def test_large_texts_do_not_fill_the_servers_memory() -> None:
    """LiteLLM's calls send whole conversations, and an attacker as many of them as the server takes."""
    memory = ServerMemory(most=100, most_characters=1000)
    for number in range(50):
        await memory.keep("call", "a", {f"{number}": "x" * 300})
    found = [number for number in range(50) if await memory.find("call", "a", f"{number}") is not None]
    assert found == [47, 48, 49]
    await memory.keep("call", "a", {"49": "x" * 10})
    await memory.keep("call", "a", {"50": "x" * 300})
    assert await memory.find("call", "a", "47") is not None, "what is replaced no longer counts"
    await memory.keep("call", "a", {"huge": "x" * 2000})
    assert await memory.find("call", "a", "huge") is None
