"""API keys over HTTP: missing, wrong, without the route; their limits; what tenants see of each other."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import POLICY, Served, said, serving
from waiting_engine import QUICK, until, waiting_engine

from guard.access import Access, Grant, KeyLimits, Role
from guard.review.store import Store
from guard.serve import ServeSettings

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}
DESK = {**ASK, "model": "tiny:desk"}


class Keyed:
    """A server with keys."""

    def __init__(self, served: Served, access: Access, store: Store) -> None:
        self.served, self.access, self.store = served, access, store

    def key(self, name: str, *roles: Grant, limits: KeyLimits | None = None) -> str:
        return self.access.keys.add(name, grants=roles or (Grant(Role.CALLER),), limits=limits)[1]

    def post(self, key: str | None, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with self.served.client(headers=headers) as client:
            return client.post(path, json=body)

    def get(self, key: str | None, path: str) -> httpx.Response:
        with self.served.client(headers={} if key is None else {"authorization": f"Bearer {key}"}) as client:
            return client.get(path)


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Keyed]:
    place = tmp_path / "reviews.db"
    with (
        Access.open(place) as access,
        Store.open(place) as store,
        serving(said("Lyon, surely", 0.4), access=access, store=store) as served,
    ):
        yield Keyed(served, access, store)


def test_without_a_valid_key_nothing_is_answered(keyed: Keyed) -> None:
    key = keyed.key("one")
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    for each in (None, "-", "sk-123", wrong, key + "x"):
        assert keyed.post(each, ASK).status_code == 401
        assert keyed.get(each, "/v1/models").status_code == 401
        assert keyed.get(each, "/v1/guard/decisions/x").status_code == 401
    keyed.access.keys.revoke("one")
    refused = keyed.post(key, ASK)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert key not in refused.text
    assert not keyed.served.engine.asked


def test_headers_that_name_a_user_are_not_believed(keyed: Keyed) -> None:
    """Those that Open WebUI, LiteLLM and proxies send; a key's decisions are its own whatever they say."""
    mine, other = keyed.key("mine"), keyed.key("other")
    prefix = next(key.prefix for key in keyed.access.keys.all() if key.name == "mine")
    named = ("x-openwebui-user-id", "x-openwebui-user-name", "x-openwebui-user-role", "x-forwarded-user", "x-api-key")
    claims = dict(zip(named, ("mine", "mine", "admin", "mine", mine), strict=True))
    decision = keyed.post(mine, ASK).json()["guard"]["decision_id"]
    with keyed.served.client(headers=claims) as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 401
        client.headers["authorization"] = f"Bearer {other}"
        for claim in ("mine", prefix):
            body = {**ASK, "user": claim, "safety_identifier": claim, "prompt_cache_key": claim}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            assert client.get(f"/v1/guard/decisions/{decision}").status_code == 404


def test_a_key_reaches_its_routes_only(keyed: Keyed) -> None:
    key = keyed.key("desk only", Grant(Role.CALLER, "desk"))
    assert keyed.post(key, DESK).status_code == 200
    for body in (ASK, {**ASK, "model": "tiny:strict"}):
        refused = keyed.post(key, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "route_not_allowed")
    viewer = keyed.key("viewer", Grant(Role.VIEWER))
    assert keyed.post(viewer, ASK).status_code == 403


def test_a_tenant_sees_neither_decisions_nor_reviews_of_another(keyed: Keyed) -> None:
    mine, other = keyed.key("mine"), keyed.key("other")
    said = keyed.post(mine, DESK).json()["guard"]
    paths = [f"/v1/guard/decisions/{said['decision_id']}"]
    paths += [f"/v1/guard/reviews/{said[name]}" for name in ("review_id", "decision_id")]
    for path in paths:
        assert keyed.get(mine, path).status_code == 200
        assert keyed.get(other, path).status_code == 404
    assert "Lyon" not in keyed.get(mine, paths[1]).text


def test_the_caller_waits_for_the_person(keyed: Keyed) -> None:
    key = keyed.key("mine")
    review_id = keyed.post(key, DESK).json()["guard"]["review_id"]
    assert keyed.get(key, f"/v1/guard/reviews/{review_id}?wait=0.05").json()["state"] == "waiting"
    keyed.store.edit(review_id, answer="Paris", draft="wrong", reviewer="mira")
    waiting = keyed.get(key, f"/v1/guard/reviews/{review_id}?wait=20").json()
    assert (waiting["state"], waiting["answer"], waiting["verdict"]) == ("decided", "Paris", "edited")
    assert "mira" not in str(waiting)


def test_who_waits_for_people_takes_no_answers_place_and_waits_are_bounded(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "r.db") as store,
        serving(said("Lyon", 0.4), store=store, settings=ServeSettings(most_requests=2)) as served,
        served.client() as client,
        ThreadPoolExecutor(2) as pool,
    ):
        review_id = client.post("/v1/chat/completions", json=DESK).json()["guard"]["review_id"]
        path = f"/v1/guard/reviews/{review_id}?wait=2"
        waiting = [pool.submit(httpx.get, f"{served.url}{path}", timeout=30) for _ in range(2)]
        until(lambda: served.server.waits.running == 2)
        refused = client.get(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        assert [each.result(20).json()["state"] for each in waiting] == ["waiting"] * 2


def test_limits_of_requests_and_tokens(keyed: Keyed) -> None:
    few = keyed.key("few", limits=KeyLimits(requests_per_minute=2))
    first = keyed.post(few, ASK)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert keyed.post(few, ASK).status_code == 200
    refused = keyed.post(few, ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    tokens = keyed.key("tokens", limits=KeyLimits(tokens_per_minute=5))
    assert keyed.post(tokens, ASK).status_code == 200
    assert keyed.post(tokens, ASK).status_code == 429
    month = keyed.key("month", limits=KeyLimits(tokens_per_month=5))
    assert keyed.post(month, ASK).status_code == 200
    spent = keyed.post(month, ASK)
    assert (spent.status_code, spent.json()["error"]["code"]) == (429, "insufficient_quota")


def test_a_live_stream_that_its_client_leaves_is_not_free(tmp_path: Path) -> None:
    """Who left before the last event had read all of the answer but that."""
    engine, release = waiting_engine("Paris", 0.1)
    place, policies = tmp_path / "r.db", {"live": f"{POLICY}\nstreaming: live\n"}
    with (
        Access.open(place) as access,
        serving(engine=engine, access=access, settings=QUICK, policies=policies) as served,
    ):
        key = access.keys.add("one", grants=[Grant(Role.CALLER)])[1]
        headers = {"authorization": f"Bearer {key}"}
        with (
            served.client(headers=headers) as client,
            client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response,
        ):
            assert any('"Pa"' in line or '"a"' in line for line in response.iter_lines())
        release.set()
        until(lambda: served.server.responder.admission.running == 0)
        # The server may notice only some tokens later that nobody reads.
        until(lambda: access.keys.all()[0].used_tokens >= len("Which city?") + len("Pa"))


def test_given_answers_count_to_a_keys_limits(keyed: Keyed) -> None:
    score = {"model": "tiny", "question": "Which city?", "answer": "Lyon"}
    for limits, code in (
        (KeyLimits(tokens_per_minute=5), "rate_limit_exceeded"),
        (KeyLimits(tokens_per_month=5), "insufficient_quota"),
    ):
        key = keyed.key(code, limits=limits)
        first = keyed.post(key, score, "/v1/score")
        assert (first.status_code, first.headers.get("x-ratelimit-limit-tokens")) == (
            200,
            "5" if limits.tokens_per_minute else None,
        )
        refused = keyed.post(key, score, "/v1/score")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, code)


def test_answers_that_litellm_sends_count_to_a_keys_limits(keyed: Keyed) -> None:
    key, path = keyed.key("litellm", limits=KeyLimits(tokens_per_minute=5)), "/beta/litellm_basic_guardrail_api"
    call = {"litellm_call_id": "1", "texts": ["Lyon"]}
    asked = {**call, "input_type": "request", "structured_messages": ASK["messages"]}
    assert keyed.post(key, asked, path).headers["x-ratelimit-remaining-tokens"] == "5"
    assert keyed.post(key, {**call, "input_type": "response"}, path).json()["blocked_reason"] == "I cannot say."
    assert keyed.post(key, asked, path).status_code == 429


def test_no_request_of_a_key_shares_a_cached_prompt_with_another_key(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, found = keyed.served.engine, list[str]()
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda prompt: found.append(prompt.cache_key) or encode(prompt))
    litellm = {"litellm_call_id": "1", "structured_messages": ASK["messages"], "texts": ["Lyon"]}
    asking: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", ASK),
        ("/v1/chat/completions", {**ASK, "prompt_cache_key": "shared"}),
        ("/v1/completions", {"model": "tiny", "prompt": "Which city?"}),
        ("/v1/responses", {"model": "tiny", "input": "Which city?"}),
        ("/v1/score", {"model": "tiny", "question": "Which city?", "answer": "Lyon"}),
        ("/beta/litellm_basic_guardrail_api", {**litellm, "input_type": "request"}),
        ("/beta/litellm_basic_guardrail_api", {**litellm, "input_type": "response"}),
    ]
    cached = {}
    for name in ("one", "two"):
        key = keyed.key(name)
        found.clear()
        for path, body in asking:
            assert keyed.post(key, body, path).is_success, path
        cached[name] = {*found}
        (prefix,) = (each.prefix for each in keyed.access.keys.all() if each.name == name)
        assert len(found) >= len(asking) - 1
        assert all(each.partition(":")[0] == prefix for each in found)
    assert not cached["one"] & cached["two"]


def test_a_request_cannot_name_the_key_of_its_case(keyed: Keyed) -> None:
    with pytest.raises(openai.BadRequestError, match="guard_key"):
        keyed.served.openai(keyed.key("three")).chat.completions.create(**ASK, metadata={"guard_key": "one"})


def test_two_headers_of_one_name_are_refused(keyed: Keyed) -> None:
    key = keyed.key("one")
    host = keyed.served.url.removeprefix("http://")
    for pairs, status in (
        ([("authorization", f"Bearer {key}"), ("authorization", "Bearer other")], 401),
        ([("authorization", f"Bearer {key}"), ("x-guard-route", "desk"), ("x-guard-route", "strict")], 400),
    ):
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.putrequest("POST", "/v1/chat/completions")
        body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
        for name, value in [*pairs, ("content-type", "application/json"), ("content-length", str(len(body)))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        assert connection.getresponse().status == status
        connection.close()
