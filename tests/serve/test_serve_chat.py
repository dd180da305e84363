"""Chat completions over real HTTP: the verdict reaches the client, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted import AnsweringEngine, confidence_scorer
from served import Served, said, serving

from guard.engines.detokenizer import BytesDetokenizer
from guard.review.store import Store
from guard.runtime.sources import Source

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}


@pytest.fixture(scope="module")
def sure() -> Iterator[Served]:
    with serving(said("Paris", 0.1)) as served:
        yield served


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("store") / "reviews.db"
    with Store.open(place) as store, serving(said("Lyon, surely", 0.7), store=store) as served:
        yield served


def test_an_accepted_answer_comes_with_its_verdict_in_body_and_headers(sure: Served) -> None:
    raw = sure.openai().chat.completions.with_raw_response.create(**ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Paris"
    assert (answer.choices[0].finish_reason, answer.choices[0].message.refusal) == ("stop", None)
    assert answer.guard["action"] == "accept"
    assert answer.guard["p_wrong"] == pytest.approx(0.1, abs=1e-3)
    assert raw.headers["x-guard-action"] == "accept"
    assert raw.headers["x-guard-decision-id"] == answer.guard["decision_id"]
    assert answer.usage.prompt_tokens == len("Which city?")
    assert answer.usage.completion_tokens == len("Paris") + 1


def test_an_abstention_is_the_policys_text_and_a_refusal(unsure: Served) -> None:
    raw = unsure.openai().chat.completions.with_raw_response.create(**ASK)
    choice = raw.parse().choices[0]
    assert (choice.message.content, choice.message.refusal) == ("I cannot say.", "I cannot say.")
    assert choice.finish_reason == "stop"
    assert raw.headers["x-guard-action"] == "abstain"
    assert "Lyon" not in raw.text


@pytest.mark.parametrize(
    "how",
    [
        {"model": "tiny:desk"},
        {"extra_body": {"guard": {"route": "desk"}}},
        {"extra_headers": {"x-guard-route": "desk"}},
    ],
)
def test_an_escalation_names_its_review_by_each_way_to_choose_a_route(unsure: Served, how: dict[str, Any]) -> None:
    answer = unsure.openai().chat.completions.create(**{**ASK, **how})
    assert answer.choices[0].message.content == "A person will look."
    assert answer.choices[0].message.refusal is None
    assert answer.guard["action"] == "escalate"
    assert answer.guard["route"] == "desk"
    assert unsure.server.store is not None
    review = unsure.server.store.review(answer.guard["review_id"])
    assert (review.answer, review.metadata["guard_key"]) == ("Lyon, surely", "local")


def test_a_policy_that_raises_is_a_typed_error(unsure: Served) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        unsure.openai().chat.completions.create(**{**ASK, "model": "tiny:raising"})
    assert caught.value.body == {
        "message": caught.value.body["message"],  # type: ignore[index]
        "type": "guard_abstained",
        "param": None,
        "code": "abstained",
    }
    assert "Lyon" not in str(caught.value)


def test_two_routes_in_one_request_are_refused(unsure: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="two different routes"):
        unsure.openai().chat.completions.create(
            **{**ASK, "model": "tiny:desk"}, extra_headers={"x-guard-route": "strict"}
        )


@pytest.mark.parametrize(
    "places",
    [
        {"params": {"route": "strict"}},
        {"params": {"guard.route": "strict"}},
        {"params": {"policy": "test"}},
        {"headers": {"x-guard-rout": "strict"}},
        {"headers": {"x-guard-policy": "test"}},
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/score"])
def test_a_route_or_policy_where_nobody_reads_it_is_an_error(path: str, places: dict[str, Any], sure: Served) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": ASK,
        "/v1/responses": {"model": "tiny", "input": "Which city?"},
        "/v1/completions": {"model": "tiny", "prompt": "Which city?"},
        "/v1/score": {"model": "tiny", "question": "Which city?", "answer": "Paris"},
    }
    with sure.client() as client:
        assert client.post(path, json=bodies[path]).status_code == 200
        refused = client.post(path, json=bodies[path], **places)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")


def test_a_held_stream_gives_role_first_verdict_last_and_usage(sure: Served) -> None:
    stream = sure.openai().chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Paris"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].guard["action"] == "accept"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == 6


def events(text: str) -> list[str]:
    return [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]


def test_a_stream_ends_with_done_and_an_abstention_streams_its_refusal(unsure: Served) -> None:
    with unsure.client() as client:
        text = client.post("/v1/chat/completions", json={**ASK, "stream": True}).text
    data = events(text)
    assert data[-1] == "[DONE]"
    deltas = [json.loads(each)["choices"][0]["delta"] for each in data[:-1]]
    assert {"refusal": "I cannot say."} in deltas
    assert "Lyon" not in text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temprature": 1}, "temprature"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": True, "logprobs": True}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"guard": {"rout": "desk"}}, "guard.rout"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"seed": -5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"seed": "7"}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_tokens": True}, "max_tokens"),
        ({"route": "desk"}, "route"),
        ({"policy": "test"}, "policy"),
        ({"messages": []}, "messages"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_an_option_that_is_not_offered_is_refused_by_name(
    sure: Served, changes: dict[str, Any], named: str | None
) -> None:
    with sure.client() as client:
        response = client.post("/v1/chat/completions", json={**ASK, **changes})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == named


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"mesages": []}, "There is no option 'mesages'. Did you mean 'messages'?"),
        ("chat/completions", {**ASK, "temprature": "hot", "top_p": "x"}, "'temprature'. Did you mean 'temperature'?"),
        ("chat/completions", {"messages": [{"role": "user", "contnt": "a"}]}, "0.contnt'. Did you mean 'content'?"),
        ("chat/completions", {"guard": {"rout": "desk"}}, "'guard.rout'. Did you mean 'route'?"),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"shema": {}}}},
            "shema'. Did you mean 'schema'?",
        ),
        ("chat/completions", {"tool_choice": {"type": "function", "function": {"nam": "x"}}}, "messages: Field"),
        ("responses", {"inptu": "a"}, "'inptu'. Did you mean 'input'?"),
        (
            "responses",
            {"input": [{"type": "function_call_output", "call_id": "1"}], "instuctions": "a"},
            "'instructions'",
        ),
        ("score", {"answr": "a"}, "'answr'. Did you mean 'answer'?"),
    ],
)
def test_a_misspelt_option_is_named_before_what_is_missing(
    sure: Served, path: str, body: dict[str, Any], message: str
) -> None:
    with sure.client() as client:
        response = client.post(f"/v1/{path}", json={"model": "tiny", **body})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_neutral_values_of_options_that_are_not_offered_pass(sure: Served) -> None:
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False, "user": "ann"}
    with sure.client() as client:
        response = client.post("/v1/chat/completions", json={**ASK, **neutral})
    assert response.status_code == 200, response.text


def test_a_misspelt_model_gets_a_hint(sure: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'"):
        sure.openai().chat.completions.create(**{**ASK, "model": "tinny"})


def test_a_prompt_that_is_too_long_says_so_as_openai_does(sure: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sure.openai().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 500}])
    assert caught.value.code == "context_length_exceeded"


def test_models_are_listed_with_their_routes(sure: Served) -> None:
    ids = [model.id for model in sure.openai().models.list()]
    assert ids == ["tiny", "tiny:strict", "tiny:desk", "tiny:raising", "tiny:retried", "tiny:background"]
    assert sure.openai().models.retrieve("tiny:desk").id == "tiny:desk"


def test_logprobs_are_those_of_the_answers_tokens(sure: Served) -> None:
    answer = sure.openai().chat.completions.create(**ASK, logprobs=True)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "Paris"
    assert all(token.logprob < 0 for token in tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_the_likeliest_tokens_are_reported_at_each_token(sure: Served, stream: bool) -> None:
    ask: dict[str, Any] = {**ASK, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = sure.openai().chat.completions.create(**ask, stream=True)
        tokens = [
            token for chunk in chunks for each in chunk.choices if each.logprobs for token in each.logprobs.content
        ]
    else:
        tokens = sure.openai().chat.completions.create(**ask).choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "Paris"
    for token in tokens:
        best, *others = token.top_logprobs
        assert (best.token, best.logprob) == (token.token, pytest.approx(token.logprob, abs=1e-5))
        assert best.bytes == token.bytes
        assert len(others) == 2
        assert all(other.logprob < best.logprob for other in others)


def test_the_tokens_of_a_fallback_are_written_by_its_own_engine() -> None:
    class Shifted(AnsweringEngine):
        """Its tokens are other bytes than those of the model that is asked first."""

        def _detokenizer(self) -> BytesDetokenizer:
            return BytesDetokenizer(lambda token: bytes([token ^ 1]))

    other = Shifted(said("".join(chr(ord(letter) ^ 1) for letter in "Rome")))
    policy = "{version: 1, name: b, rules: [{accept: {below: 0.5}}, {fallback: {to: other, below: 0.9}}, abstain]}"
    fallbacks = {"fallbacks": {"other": Source("other", other, confidence_scorer())}}
    with serving(said("Lyon", 0.8), policies={"b": policy}, guard_options=fallbacks) as served:
        answer = served.openai().chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    assert (answer.choices[0].message.content, answer.guard["action"]) == ("Rome", "fallback")
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "Rome"
    assert [token.top_logprobs[0].token for token in tokens] == [*"Rome"]


def test_log_probabilities_that_an_engine_does_not_report_are_refused() -> None:
    class Mute(AnsweringEngine):
        most_top_logprobs = None

    with serving(engine=Mute(said("Paris"))) as served, served.client() as client:
        response = client.post("/v1/chat/completions", json={**ASK, "logprobs": True})
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")


def test_a_raw_completion_is_guarded_too(sure: Served, unsure: Served) -> None:
    answer = sure.openai().completions.create(model="tiny", prompt="The capital is")
    assert (answer.choices[0].text, answer.guard["action"]) == ("Paris", "accept")
    refused = unsure.openai().completions.create(model="tiny", prompt="The capital is")
    assert refused.choices[0].text == "I cannot say."
    stream = list(sure.openai().completions.create(model="tiny", prompt="The capital is", stream=True))
    assert "".join(chunk.choices[0].text for chunk in stream) == "Paris"


@pytest.mark.parametrize("stream", [False, True])
def test_a_raw_completion_that_was_cut_says_so_as_a_chat_answer_does(stream: bool) -> None:
    policy = "{version: 1, name: whole, rules: [accept]}"
    with serving(said("Paris is large"), policies={"whole": policy}) as served, served.client() as client:
        chat = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 5}).json()["choices"][0]["message"]
        body = {"model": "tiny", "prompt": "The capital is", "max_tokens": 5, "stream": stream}
        found = choices(client.post("/v1/completions", json=body).text)
    why = "The answer is cut at its limit of 5 tokens; raise max_tokens"
    assert chat["refusal"] == f"The policy 'whole' gives no answer (on_error): {why}."
    assert ("".join(each["text"] for each in found), found[-1]["refusal"]) == (chat["refusal"], chat["refusal"])
    assert "Paris" not in str(found)


def choices(text: str) -> list[dict[str, Any]]:
    """Return the first choices of a body or of its events."""
    bodies = [line.removeprefix("data: ") for line in text.splitlines() if "{" in line]
    return [json.loads(each)["choices"][0] for each in bodies]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_an_escalation_without_a_reply_is_no_empty_text(path: str, tmp_path: Path) -> None:
    policy = "{version: 1, name: silent, rules: [{escalate: {to: [review]}}]}"
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The capital is"} if path == "completions" else ASK
    with (
        Store.open(tmp_path / "r.db") as store,
        serving(policies={"silent": policy}, store=store) as served,
        served.client() as client,
    ):
        answer = client.post(f"/v1/{path}", json=asked).json()
    (choice,) = answer["choices"]
    said_instead = choice["text"] if path == "completions" else choice["message"]["content"]
    assert said_instead == "The policy 'silent' gives no answer (rules[0] (escalate))."
    assert (answer["guard"]["action"], bool(answer["guard"]["review_id"])) == ("escalate", True)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("chat/completions", {"messages": ASK["messages"]}),
        ("completions", {"prompt": "The capital is"}),
        ("responses", {"input": "Which city?"}),
        ("score", {"question": "Which city?", "answer": "Paris"}),
    ],
)
def test_what_a_stream_holds_is_refused_where_nothing_is_streamed(path: str, asked: Any, sure: Served) -> None:
    for hold in ("comments", "headers"):
        with sure.client() as client:
            response = client.post(f"/v1/{path}", json={"model": "tiny", **asked, "guard": {"hold": hold}})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "guard.hold")


def test_health_and_readiness(sure: Served) -> None:
    with sure.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}


def test_what_is_not_there_answers_in_openais_shape(sure: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sure.openai().embeddings.create(model="tiny", input="a")
    assert caught.value.code == "unknown_url"
