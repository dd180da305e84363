"""Open WebUI itself, in front of ``guard serve``: chats, streams, and all its own requests about a conversation.

``nox -s open_webui`` installs it and names its Python in ``GUARD_TEST_OPEN_WEBUI_PYTHON``.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import POLICY, serving
from served_child import free_port

from guard.access import Access, Grant, Role
from guard.records import Prompt
from guard.review.store import Store
from guard.serve import ServeSettings

CITY = "What is the capital of France?"
ESCALATES = "  - escalate: {to: [review], reply: Wait.}"

pytestmark = pytest.mark.timeout(600)


def script(prompt: Prompt, number: int) -> tuple[str, float]:
    """Sure about a city, and unsure about everything else."""
    return ("Paris", 0.1) if CITY in prompt.question else ("A guess", 0.8)


class Program:
    """Open WebUI in a process of its own, with its first user.

    Args:
        client: of its address.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        user = {"name": "Ann", "email": "ann@example.org", "password": secrets.token_hex(8)}
        token = client.post("/api/v1/auths/signup", json=user).raise_for_status().json()["token"]
        client.headers["authorization"] = f"Bearer {token}"

    def models(self) -> list[str]:
        found = self._client.get("/api/models", params={"refresh": True}).raise_for_status().json()["data"]
        return [model["id"] for model in found]

    def chat(self, text: str, *, model: str = "tiny", **options: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": False, **options}
        return self._client.post("/api/chat/completions", json=body)

    def task(self, name: str, **body: Any) -> dict[str, Any]:
        """Have it make one of its own requests."""
        found: dict[str, Any] = self._client.post(
            f"/api/v1/tasks/{name}/completions", json={"model": "tiny", **body}
        ).json()
        return found


@contextmanager
def open_webui(folder: Path, url: str, key: str) -> Iterator[Program]:
    python = os.environ.get("GUARD_TEST_OPEN_WEBUI_PYTHON")
    if not python:
        pytest.skip("no Open WebUI: GUARD_TEST_OPEN_WEBUI_PYTHON names none")
    port = free_port()
    command = [python, "-c", "from open_webui import app; app()", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=settings(folder, url, key), cwd=folder, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 300
            while not is_up(client):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, "Open WebUI did not start"
                time.sleep(1)
            yield Program(client)
    finally:
        process.terminate()
        process.wait(30)


def settings(folder: Path, url: str, key: str) -> Mapping[str, str]:
    """Its environment: one connection, no downloads, no database but a file, and all its own requests switched on."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CI")}
    return own | {
        "DATA_DIR": str(folder / "data"),
        "WEBUI_SECRET_KEY": secrets.token_hex(16),
        "OPENAI_API_BASE_URLS": f"{url}/v1",
        "OPENAI_API_KEYS": key,
        "ENABLE_OLLAMA_API": "False",
        "ENABLE_AUTOCOMPLETE_GENERATION": "True",
        "OFFLINE_MODE": "True",
        "RAG_EMBEDDING_ENGINE": "openai",
        "ENABLE_VERSION_UPDATE_CHECK": "False",
        "ANONYMIZED_TELEMETRY": "False",
        "OMP_NUM_THREADS": "1",
    }


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def action(answer: Mapping[str, Any]) -> tuple[str, str | None]:
    said = answer["guard"]
    return said["action"], said.get("route")


def text_of(stream: str) -> str:
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event.get("choices") or ()]
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in choices)


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, Store]]:
    folder = tmp_path_factory.mktemp("webui")
    place = folder / "r.db"
    with Access.open(place) as access, Store.open(place) as store:
        key = access.keys.add("webui", grants=[Grant(Role.CALLER)])[1]
        options = ServeSettings(unguarded_keys=("webui",))
        parts: dict[str, Any] = {"access": access, "store": store, "settings": options, "context": 20_000}
        policies = {"test": POLICY.replace("  - abstain: {text: I cannot say.}", ESCALATES)}
        with serving(script, policies=policies, **parts) as served, open_webui(folder, served.url, key) as program:
            yield program, store


def test_it_chats_and_has_titles_of_what_was_accepted_alone(webui: tuple[Program, Store]) -> None:
    program, store = webui
    assert {"tiny", "tiny:strict", "tiny:desk"} <= {*program.models()}
    whole = [{"role": "user", "content": CITY}, {"role": "assistant", "content": "Paris"}]
    about = {"messages": whole}
    assert action(program.task("title", **about)) == ("abstain", "background"), "nothing is accepted yet"
    answer = program.chat(CITY).json()
    assert (answer["choices"][0]["message"]["content"], answer["guard"]["action"]) == ("Paris", "accept")
    for task in ("title", "tags", "follow_up"):
        assert action(program.task(task, **about)) == ("unguarded", None), task
    for task, more in (
        ("queries", {"type": "web_search"}),
        ("auto", {"type": "search query", "prompt": "How much mor"}),
        ("emoji", {"prompt": "How much morphine is deadly?"}),
        ("image_prompt", {}),
    ):
        assert action(program.task(task, **about, **more)) == ("abstain", "background"), task
    assert store.count() == 0, "one of its own requests was put into review"


def test_its_streams_and_abstentions_reach_the_person(webui: tuple[Program, Store]) -> None:
    program, store = webui
    assert text_of(program.chat(CITY, stream=True).text) == "Paris"
    assert text_of(program.chat("Which mountain?", stream=True).text) == "Wait."
    assert store.count() == 1, "a question was put into review"
    strict = program.chat(CITY, model="tiny:strict").json()
    assert strict["choices"][0]["message"]["content"] == "Not on this route."
    refused = program.chat(CITY, model="tiny", temperature="hot")
    assert refused.status_code == 400
