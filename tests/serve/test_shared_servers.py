"""Several servers on one PostgreSQL: what one has answered, the others know; and what is lost lets no answer pass."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgresql_server
import pytest
from killed_servers import run
from served import POLICY, Served, serving

from guard.access import Access, Grant, Role
from guard.errors import StoreError
from guard.records import Prompt
from guard.review.short_lived import ShortLived
from guard.review.store import Store
from guard.serve import ServeSettings, side_requests
from guard.serve.calls_seen import CallsSeen
from guard.serve.config import parse_config
from guard.serve.loading import loaded_server
from guard.serve.memory import ServerMemory

pytestmark = pytest.mark.skipif(
    not postgresql_server.is_available(), reason="no PostgreSQL server: several servers share one"
)

GUARDRAIL = "/beta/litellm_basic_guardrail_api"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which city?"}]
BEFORE, BEHIND = "### Task:\nMake a title.\n", "\n### Output:\nJSON"


def script(prompt: Any, number: int) -> tuple[str, float]:
    return ("A title", 0.8) if prompt.question.startswith("### Task") else ("Paris", 0.1)


class Pair:
    """Two servers on one database, and the keys of two callers."""

    def __init__(self, servers: tuple[Served, Served], keys: dict[str, str]) -> None:
        self.servers, self.keys = servers, keys

    def post(self, server: int, path: str, key: str = "webui", **body: Any) -> Any:
        with self.servers[server].client(headers=self.headers(key)) as client:
            return client.post(path, json=body).json()

    def get(self, server: int, path: str, key: str = "webui") -> Any:
        with self.servers[server].client(headers=self.headers(key)) as client:
            return client.get(path).json()

    def ask(self, server: int, text: str, key: str = "webui") -> Any:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
        return self.post(server, "/v1/chat/completions", key, **body)

    def headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[key]}"}


@pytest.fixture
def pair() -> Iterator[Pair]:
    url, settings = postgresql_server.emptied(), ServeSettings(unguarded_keys=("webui",))
    with contextlib.ExitStack() as opened:
        access = opened.enter_context(Access.open(url))
        keys = {name: access.keys.add(name, grants=[Grant(Role.CALLER)])[1] for name in ("webui", "other")}
        first, second = (
            opened.enter_context(
                serving(
                    script,
                    access=opened.enter_context(Access.open(url)),
                    store=opened.enter_context(Store.open(url)),
                    settings=settings,
                    policies={"test": POLICY},
                    context=4000,
                )
            )
            for _ in range(2)
        )
        yield Pair((first, second), keys)


def test_a_verdict_is_found_at_the_other_server_by_its_own_key_only(pair: Pair) -> None:
    said = pair.ask(0, "Which city?")["guard"]
    found = pair.get(1, f"/v1/guard/decisions/{said['decision_id']}")
    assert found == {"object": "guard.decision", **said}
    refused = pair.get(1, f"/v1/guard/decisions/{said['decision_id']}", "other")
    assert refused["error"]["code"] == "decision_not_found"


def test_an_answer_is_scored_with_the_question_that_the_other_server_has_seen(pair: Pair) -> None:
    asked: dict[str, Any] = {"structured_messages": MESSAGES, "litellm_call_id": "1"}
    assert pair.post(0, GUARDRAIL, input_type="request", **asked) == {"action": "NONE"}
    answer: dict[str, Any] = {"texts": ["Paris"], "input_type": "response", "litellm_call_id": "1"}
    assert pair.post(1, GUARDRAIL, **answer) == {"action": "NONE"}
    assert pair.post(1, GUARDRAIL, "other", **answer)["action"] == "BLOCKED"
    assert pair.servers[1].engine.asked[-1].question == "Which city?"


def test_two_questions_with_one_id_at_two_servers_are_unknown_to_both(pair: Pair) -> None:
    for server, question in enumerate(("Which city?", "Which dose?")):
        messages = [{"role": "user", "content": question}]
        pair.post(server, GUARDRAIL, input_type="request", structured_messages=messages, litellm_call_id="2")
    for server in (0, 1):
        answer: dict[str, Any] = {"texts": ["Paris"], "input_type": "response", "litellm_call_id": "2"}
        assert pair.post(server, GUARDRAIL, **answer)["action"] == "BLOCKED"


async def test_a_calls_whole_conversation_is_kept() -> None:
    calls, prompt = CallsSeen(ServerMemory()), Prompt.chat(MESSAGES)
    await calls.add("key", "1", prompt)
    assert await calls.find("key", "1") == prompt


def test_a_title_is_made_of_a_conversation_that_the_other_server_has_accepted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(f"{BEFORE}\0{BEHIND}".encode()).hexdigest()
    monkeypatch.setattr(side_requests, "TEMPLATES", {digest: "title"})
    title = f"{BEFORE}<chat_history>\nUSER: Which city?\nASSISTANT: Paris\n</chat_history>{BEHIND}"
    assert pair.ask(1, title)["guard"]["action"] == "abstain", "nobody has accepted it yet"
    pair.ask(0, "Which city?")
    assert pair.ask(1, title)["guard"]["action"] == "unguarded"
    assert pair.ask(1, title, "other")["guard"]["action"] == "abstain"


def test_what_cannot_be_kept_or_found_holds_no_answer_up_and_lets_none_pass(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StoreError("The review store failed")

    monkeypatch.setattr(ShortLived, "keep", fail)
    with caplog.at_level(logging.WARNING, "guard.serve"):
        answered = pair.ask(0, "Which city?")
    assert answered["guard"]["action"] == "accept"
    assert "Which city?" not in caplog.text
    assert "what was to be kept as decision is lost" in caplog.text
    unknown = pair.get(0, f"/v1/guard/decisions/{answered['guard']['decision_id']}")
    assert unknown["error"]["code"] == "decision_not_found"
    asked: dict[str, Any] = {"structured_messages": MESSAGES, "litellm_call_id": "1"}
    assert pair.post(0, GUARDRAIL, input_type="request", **asked)["action"] == "BLOCKED", "an older one might be known"
    monkeypatch.setattr(ShortLived, "find", fail)
    failed = pair.get(0, f"/v1/guard/decisions/{answered['guard']['decision_id']}")
    assert failed["error"]["code"] == "store_unavailable"
    answer: dict[str, Any] = {"texts": ["Paris"], "input_type": "response", "litellm_call_id": "1"}
    assert pair.post(1, GUARDRAIL, **answer)["action"] == "BLOCKED", "an error might let it pass"


def test_a_server_whose_policies_put_nothing_into_review_shares_a_postgresql_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from scripted import AnsweringEngine, confidence_scorer

    monkeypatch.setattr("guard.runtime.guard.load_engine", lambda *_, **__: AnsweringEngine(script))
    confidence_scorer().save(tmp_path / "scorer.json")
    policy = tmp_path / "policy.yaml"
    policy.write_text("{version: 1, name: none, rules: [{accept: {below: 0.5}}, {abstain: {text: No.}}]}")
    model = f"{{model: scripted.gguf, scorer: {tmp_path / 'scorer.json'}, policy: {policy}}}"
    for store, shared in ((postgresql_server.emptied(), True), (str(tmp_path / "r.db"), False)):
        config = parse_config(f"{{version: 1, models: {{tiny: {model}}}, store: '{store}'}}")
        with loaded_server(config) as server:
            assert (server.store is not None) == shared


def test_servers_that_are_killed_under_load_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    """A sample of ``nox -s killed_servers``."""
    counts = run(postgresql_server.emptied(), tmp_path, kills=3)
    assert counts["kills"] == 3
    assert (
        min(counts[name] for name in ("answered", "audited", "cases", "claimed", "decided", "looked_up", "refused")) > 0
    )
