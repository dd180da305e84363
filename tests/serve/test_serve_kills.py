"""A server that is killed or asked to end: no case that was kept is lost, no half answer is taken for a whole one."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import httpx
from served_child import child

from guard.review.store import Store

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}


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
