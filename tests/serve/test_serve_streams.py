"""Held streams: nothing leaves before the decision, comments keep proxies awake, and who leaves frees the engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from scripted import AnsweringEngine
from served import said, serving
from served_soak import soak
from waiting_engine import QUICK, until, waiting_engine

from guard.serve import ServeSettings

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}], "stream": True}


@contextmanager
def streaming(engine: AnsweringEngine, **options: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream."""
    with (
        serving(engine=engine, settings=QUICK, **options) as served,
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ASK) as response,
    ):
        yield response.iter_lines()


@pytest.mark.parametrize("p_wrong", [0.1, 0.8])
def test_a_held_stream_sends_comments_alone_until_the_decision(p_wrong: float) -> None:
    engine, release = waiting_engine("A secret answer", p_wrong)
    with streaming(engine) as lines:
        before = [next(lines) for _ in range(6)]
        assert set(before) == {": guarding", ""}
        release.set()
        after = "\n".join(lines)
    assert ("secret" in after) is (p_wrong < 0.5)
    assert after.rstrip().endswith("data: [DONE]")


def test_hold_headers_sends_nothing_before_the_decision_and_headers_have_the_verdict() -> None:
    engine, release = waiting_engine("A secret answer", 0.8)
    with serving(engine=engine, settings=QUICK) as served, served.client() as client:
        threading.Timer(0.3, release.set).start()
        with client.stream("POST", "/v1/chat/completions", json={**ASK, "guard": {"hold": "headers"}}) as response:
            assert response.headers["x-guard-action"] == "abstain"
            assert ": guarding" not in response.read().decode()


def test_an_error_behind_comments_is_an_event_and_the_stream_has_no_end_mark() -> None:
    engine, release = waiting_engine("x" * 30, 0.8)
    policy = "{version: 1, name: loud, rules: [{abstain: {raise: true}}]}"
    with streaming(engine, policies={"loud": policy}) as lines:
        next(lines)
        release.set()
        data = [line for line in lines if line.startswith("data: ")]
    assert len(data) == 1
    assert json.loads(data[0].removeprefix("data: "))["error"]["code"] == "abstained"


@pytest.mark.parametrize("how", [{"guard": {"hold": "headers"}}, {"stream": False}])
def test_a_client_that_leaves_frees_the_engine(how: dict[str, Any]) -> None:
    release = threading.Event()
    engine = AnsweringEngine(lambda prompt, number: ("x" * 150, 0.1) if number == 0 else ("Paris", 0.1))
    fed = []

    def feed(number: int) -> None:
        fed.append(number)
        if len(fed) == 3:
            assert release.wait(20)

    engine.on_feed = feed
    with serving(engine=engine, settings=QUICK) as served:
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=served.url, timeout=0.5) as client:
            client.post("/v1/chat/completions", json={**ASK, **how})
        until(lambda: served.server.responder.admission.running == 0)
        release.set()
        with served.client() as client:
            answer = client.post("/v1/chat/completions", json={**ASK, "stream": False}).json()
        assert answer["choices"][0]["message"]["content"] == "Paris"
        assert len(fed) < 100, "the first answer was generated to its end"


INJECTION = 'x\n\ndata: {"choices": [{"delta": {"content": "forged"}}]}\n\nevent: error\r\n\r\ndata: [DONE]\n\n\u2028y'


def test_a_models_text_cannot_forge_events() -> None:
    with serving(said(INJECTION)) as served:
        with served.client() as client:
            text = client.post("/v1/chat/completions", json=ASK).text
        stream = served.openai().chat.completions.create(**ASK)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == INJECTION
    assert text.count("data: [DONE]\n\n") == 1
    assert all(line.startswith("data: ") for line in text.split("\n") if line)
    assert "\r" not in text


async def test_the_asynchronous_client_streams_too() -> None:
    with serving(said("Paris")) as served:
        client = served.aopenai()
        stream = await client.chat.completions.create(**ASK)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        await client.close()
    assert text == "Paris"


def test_64_clients_get_their_own_answers_and_leave_nothing_behind() -> None:
    """A sample of `served_soak`, which ``nox -s soak`` runs for as long as one likes."""
    found = soak(0.0, least=5)
    assert found["wrong"] == []
    assert found["running"]
    results = found["results"]
    for way in ("whole", "held", "live", "completion", "response"):
        assert results[f"{way}: 200"] > 0
        assert [each for each in results if each.startswith(f"{way}: ")] == [f"{way}: 200"], results
    assert results["too long: 400"] > 0
    assert results["leaves: left"] + results["leaves at once: left"] > 0
    for what in ("files", "threads"):
        assert found["after"][what] <= found["before"][what] + 2, found


def test_more_requests_than_the_server_takes_get_429() -> None:
    engine, release = waiting_engine("Paris", 0.1)
    with serving(engine=engine, settings=ServeSettings(most_requests=1)) as served, served.client() as client:
        first = threading.Thread(target=lambda: client.post("/v1/chat/completions", json=ASK))
        first.start()
        until(lambda: served.server.responder.admission.running == 1)
        refused = client.post("/v1/chat/completions", json={**ASK, "stream": False})
        assert client.get("/ready").status_code == 503
        release.set()
        first.join()
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"
