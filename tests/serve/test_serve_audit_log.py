"""A server with an audit log writes every decision to it first, and answers nothing that it cannot write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving

from guard.review.store import Store
from guard.serve.config import parse_config
from guard.serve.loading import loaded_server

GUARDRAIL = "/beta/litellm_basic_guardrail_api"
MESSAGES = [{"role": "user", "content": "Which city?"}]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


@pytest.fixture
def served(store: Store) -> Iterator[Served]:
    with serving(guard_options={"audit_log": store.audit_log()}, store=store) as running:
        yield running


def decisions(store: Store) -> list[tuple[str, str | None]]:
    events = [json.loads(entry.event) for entry in store.audit_log().entries()]
    return [(event["action"], event["route"]) for event in events if event["kind"] == "decision"]


def litellm(served: Served) -> Any:
    with served.client() as client:
        body: dict[str, Any] = {"litellm_call_id": "1", "structured_messages": MESSAGES}
        client.post(GUARDRAIL, json={**body, "texts": ["Which city?"], "input_type": "request"})
        return client.post(GUARDRAIL, json={**body, "texts": ["Paris"], "input_type": "response"})


def test_every_door_that_decides_is_in_the_log(served: Served, store: Store) -> None:
    with served.client() as client:
        for path, body in (
            ("/v1/chat/completions", {"messages": MESSAGES}),
            ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
            ("/v1/completions", {"prompt": "Which city?"}),
            ("/v1/responses", {"input": "Which city?"}),
        ):
            assert client.post(path, json={"model": "tiny", **body}).status_code == 200, path
        assert client.post("/v1/chat/completions", json={"model": "tiny:strict", "messages": MESSAGES}).is_success
    assert litellm(served).json() == {"action": "NONE"}
    assert decisions(store) == [*[("accept", None)] * 4, ("abstain", "strict"), ("accept", None)]
    assert "Paris" not in "".join(store.audit_log().export())


def test_nothing_is_answered_that_cannot_be_logged(served: Served, store: Store) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE audit_texts")
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES})
        stream = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "stream": True})
    for response in (answer, litellm(served)):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    for response in (answer, stream):
        assert "Paris" not in response.text


@pytest.mark.model
@pytest.mark.parametrize("wanted", [True, False])
def test_the_servers_file_turns_the_log_on_for_all_policies(tmp_path: Path, wanted: bool) -> None:
    text = f"{{version: 1, audit_log: {str(wanted).lower()}, models: {{smollm2: {{policies: {{other: permissive}}}}}}}}"
    config = parse_config(text).model_copy(update={"store": str(tmp_path / "reviews.db")})
    with loaded_server(config) as server:
        (model,) = server.models
        assert [guard.audit_log is not None for guard in model.guards.values()] == [wanted, wanted]
    with Store.open(tmp_path / "reviews.db") as store:
        subjects = [json.loads(entry.event)["subject"] for entry in store.audit_log().entries()]
    assert subjects == (["policy balanced", "policy permissive"] if wanted else [])
