"""Every door of the server that lets an answer out draws it for an audit; a suspended certificate closes them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_certificates import certificate, certificates
from moved_clock import MovedClock
from served import Served, serving

from guard.policy.policy import parse_policy
from guard.review.store import Store

GUARDRAIL = "/beta/litellm_basic_guardrail_api"
MESSAGES = [{"role": "user", "content": "Which city?"}]
AUDITED = "{version: 1, name: test, audit: {rate: 1}, rules: [accept: {below: 0.5}, abstain: {text: I cannot say.}]}"
PROMISING = AUDITED.replace("{below: 0.5}", "{max_error_rate: 0.05, confidence: 0.9}")
DOORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    ("/v1/completions", {"prompt": "Which city?"}),
    ("/v1/responses", {"input": "Which city?"}),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


@pytest.fixture
def served(store: Store) -> Iterator[Served]:
    with serving(policies={"test": AUDITED}, store=store) as running:
        yield running


def litellm(served: Served) -> Any:
    with served.client() as client:
        body: dict[str, Any] = {"litellm_call_id": "1", "structured_messages": MESSAGES}
        client.post(GUARDRAIL, json={**body, "texts": ["Which city?"], "input_type": "request"})
        return client.post(GUARDRAIL, json={**body, "texts": ["Paris"], "input_type": "response"})


def scored(served: Served) -> Any:
    with served.client() as client:
        body = {"model": "tiny", "question": "Which city?", "answer": "Paris"}
        return client.post("/v1/score", json=body).json()["decision"]


def test_every_door_that_lets_an_answer_out_draws_it(served: Served, store: Store) -> None:
    with served.client() as client:
        for path, body in DOORS:
            assert client.post(path, json={"model": "tiny", **body}).status_code == 200, path
    assert litellm(served).json() == {"action": "NONE"}
    found = store.reviews(kind="audit")
    assert [case.answer for case in found] == ["Paris"] * 5
    assert store.count() == 5


def test_a_score_lets_nothing_out_so_it_draws_nothing(served: Served, store: Store) -> None:
    assert scored(served)["action"] == "accept"
    assert store.count() == 0


def test_a_caller_does_not_learn_that_an_answer_was_drawn(served: Served, store: Store) -> None:
    with served.client() as client:
        said = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES}).json()
        (case,) = store.reviews(kind="audit")
        assert case.id not in str(said)
        for name in (case.id, case.decision_id):
            assert client.get(f"/v1/guard/reviews/{name}").status_code == 404


def test_nothing_is_answered_that_cannot_be_audited(served: Served, store: Store) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE review_events")
    with served.client() as client:
        answers = [client.post(path, json={"model": "tiny", **body}) for path, body in DOORS]
    for response in (*answers, litellm(served)):
        assert "Paris" not in response.text


def test_a_suspended_certificate_closes_every_door(store: Store) -> None:
    policy, clock = parse_policy(PROMISING), MovedClock(store)
    options = {"certificate": certificates(certificate(policy))}
    with serving(policies={"test": policy}, store=store, guard_options=options) as served:
        guard = next(iter(served.server.models)).guards["test"]
        assert guard.monitor is not None
        guard.monitor._state_s = guard.monitor._evidence_s = 0.0
        with served.client() as client:
            for _ in range(4):
                client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES})
            for case in store.reviews(kind="audit"):
                store.reject(case.id, reviewer="ann")
            assert scored(served)["action"] == "accept"
            clock.move(11)
            for path, body in DOORS:
                assert "Paris" not in client.post(path, json={"model": "tiny", **body}).text
        assert litellm(served).json()["action"] == "BLOCKED"
        assert scored(served) == {
            "action": "abstain",
            "rule": "on_certificate_lost",
            "reason": "The certificate is suspended, so rules[0] (accept) accepts nothing",
        }
    assert len(store.reviews(kind="audit")) == 4
