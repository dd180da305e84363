"""A server that is killed or asked to end: no case that was kept is lost, no half answer is taken for a whole one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from guard.review.store import Store

SUPPORT = Path(__file__).parents[1] / "support"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}

#: Serves until it is killed; the engine takes its time for each token.
CHILD = """
import signal, sys, time
sys.path.insert(0, {support!r})
import uvicorn
from scripted import AnsweringEngine, confidence_scorer
from served import POLICY, said
from guard.policy.policy import parse_policy
from guard.review.store import Store
from guard.runtime.guard import Guard
from guard.serve import Server, ServeSettings, ServedModel, ServedModels, create_application
from guard.serve.running import listen_on, url_of
engine = AnsweringEngine(said("A long answer to this", 0.4))
engine.on_feed = lambda number: time.sleep({pause})
store = Store.open({store!r})
guard = Guard(engine, confidence_scorer(), parse_policy(POLICY), store=store)
models = ServedModels({{"tiny": ServedModel("tiny", {{"test": guard}}, "test", max_tokens=100)}})
application = create_application(Server.build(models, ServeSettings(comment_seconds=0.02), store=store))
listening = listen_on("127.0.0.1", 0)
print(url_of(listening), flush=True)
uvicorn.Server(uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=10)).run([listening])
"""


@contextlib.contextmanager
def child(store: Path, pause: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    code = CHILD.format(support=str(SUPPORT), pause=pause, store=str(store))
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://")
            yield process, url
        finally:
            process.kill()


def test_a_stream_of_a_killed_server_has_no_end_and_no_text(tmp_path: Path) -> None:
    with child(tmp_path / "r.db", 0.05) as (process, url):
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
    with child(place, 0.0) as (process, url):
        said = httpx.post(f"{url}/v1/chat/completions", json={**BODY, "model": "tiny:desk"}, timeout=30).json()
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with Store.open(place) as store:
        assert store.review(said["guard"]["review_id"]).answer == "A long answer to this"


def test_a_server_that_is_asked_to_end_finishes_the_answer_that_runs(tmp_path: Path) -> None:
    with child(tmp_path / "r.db", 0.04) as (process, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == ": guarding"
            process.send_signal(signal.SIGTERM)
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        process.wait(20)
    assert data[-1] == "[DONE]"
    text = "".join(json.loads(each)["choices"][0]["delta"].get("content", "") for each in data[:-1])
    assert text == "A long answer to this"
