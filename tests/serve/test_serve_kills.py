"""A server that is killed or asked to end: no case that was kept is lost, no half answer is taken for a whole one."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import POLICY
from served_child import child

from guard.review.store import Store

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}
LIVE = f"{POLICY}\nstreaming: live\n"


def test_a_stream_of_a_killed_server_has_no_end_and_no_text(tmp_path: Path) -> None:
    with child(tmp_path / "r.db", pause=0.05) as (process, url):
        seen = ""
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}) as response,
        ):
            for piece in response.iter_text():
                seen += piece
                if seen.count(": guarding") == 3:
                    process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
    assert "data:" not in seen
    assert "[DONE]" not in seen


def test_a_case_whose_id_was_given_outlives_the_kill(tmp_path: Path) -> None:
    place = tmp_path / "r.db"
    with child(place) as (process, url):
        said = httpx.post(f"{url}/v1/chat/completions", json={**BODY, "model": "tiny:desk"}, timeout=30).json()
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with Store.open(place) as store:
        assert store.review(said["guard"]["review_id"]).answer == "A long answer to this"


def test_a_server_that_is_asked_to_end_finishes_the_answer_that_runs(tmp_path: Path) -> None:
    with child(tmp_path / "r.db", pause=0.04) as (process, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == ": guarding"
            process.send_signal(signal.SIGTERM)
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        process.wait(20)
    assert data[-1] == "[DONE]"
    text = "".join(json.loads(each)["choices"][0]["delta"].get("content", "") for each in data[:-1])
    assert text == "A long answer to this"


def test_a_live_stream_of_a_killed_server_raises_and_has_no_verdict(tmp_path: Path) -> None:
    with child(tmp_path / "r.db", pause=0.05, p_wrong=0.1, policy=LIVE) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = iter(client.chat.completions.create(**BODY, stream=True))
        chunks = [next(stream) for _ in range(3)]
        process.send_signal(signal.SIGKILL)
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            chunks.extend(stream)
        assert process.wait(20) == -signal.SIGKILL
    assert any(chunk.choices[0].delta.content for chunk in chunks)
    assert not any(chunk.choices[0].finish_reason or hasattr(chunk, "guard") for chunk in chunks)


def test_a_server_that_is_asked_to_end_finishes_the_live_stream_that_runs(tmp_path: Path) -> None:
    with child(tmp_path / "r.db", pause=0.04, p_wrong=0.1, policy=LIVE) as (process, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}) as response:
            assert response.headers["x-guard-streaming"] == "live"
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        process.wait(20)
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["guard"]["action"] == "accept"


def test_every_case_whose_id_a_caller_got_outlives_kills_and_ends_under_load(tmp_path: Path) -> None:
    """Callers escalate without a pause, whole and held, while the server is killed, and another one is asked to end."""
    place, said, numbers = tmp_path / "r.db", list[dict[str, Any]](), itertools.count()

    def ask(url: str, stream: bool) -> None:
        with contextlib.suppress(httpx.HTTPError):
            while True:
                turns = [{"role": "user", "content": f"Which city is number {next(numbers)}?"}]
                body = {"model": "tiny:desk", "messages": turns, "stream": stream}
                said.extend(verdicts(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).text))

    for how in (signal.SIGKILL, signal.SIGTERM):
        with ThreadPoolExecutor(6) as pool, child(place, pause=0.002, slots=4) as (process, url):
            before, asking = len(said), [pool.submit(ask, url, bool(number % 2)) for number in range(6)]
            while len(said) < before + 12:
                assert not any(each.done() for each in asking)
                time.sleep(0.01)
            process.send_signal(how)
            process.wait(30)
        for each in asking:
            each.result()
    with Store.open(place) as store:
        for verdict in said:
            assert verdict["action"] == "escalate"
            assert store.review(verdict["review_id"]).answer == "A long answer to this"
        kept = [review.answer for review in store.reviews()]
    assert len({verdict["review_id"] for verdict in said}) == len(said) <= len(kept)
    assert set(kept) == {"A long answer to this"}


def verdicts(text: str) -> list[dict[str, Any]]:
    """Return the verdict of a body, or of a stream's events; none of an error."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("{", "data: {"))]
    return [data["guard"] for data in map(json.loads, lines) if "guard" in data]
