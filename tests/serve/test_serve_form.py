"""Tools and JSON over HTTP: what lacks the form that was asked for is an error, never an answer."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from scripted import AnsweringEngine, scripted_model
from served import said, serving

from guard.engines.tool_calls import tool_format
from guard.records import Prompt
from guard.serve import answer_message, chat_routes, json_schemas
from guard.serve.answer_message import read_answer
from guard.serve.asked import WantedForm
from guard.serve.json_schemas import check_schema, follows
from guard.serve.request_errors import RequestError

MESSAGES = [{"role": "user", "content": "Go"}]
LOOK = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}},
}
PAY = {"type": "function", "function": {"name": "pay"}}
CALL = '<tool_call>{"name": "look", "arguments": {"at": 3}}</tool_call>'
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "dose",
        "strict": True,
        "schema": {"type": "object", "properties": {"dose": {"type": "integer"}}, "required": ["dose"]},
    },
}


#: A few lines that ask for 2 to the power of 40 checks.
DOUBLING = {
    "type": "object",
    "$defs": {"a40": {}} | {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)},
    "$ref": "#/$defs/a0",
}


class ToolReadingEngine(AnsweringEngine):
    """Its template has the tools, as those of models that call some."""

    def encode(self, prompt: Prompt) -> list[int]:
        return [*f"{prompt.question}{json.dumps([dict(tool) for tool in prompt.tools])}".encode()]


def calling(answer: str) -> ToolReadingEngine:
    return ToolReadingEngine(said(answer), model=scripted_model(context_tokens=4000))


def calling_unsure() -> ToolReadingEngine:
    return ToolReadingEngine(said(CALL, 0.9), model=scripted_model(context_tokens=4000))


def ask(answer: str, **options: Any) -> Any:
    with serving(engine=calling(answer)) as served:
        return served.openai().chat.completions.create(model="tiny", messages=MESSAGES, **options)  # type: ignore[call-overload]


def test_a_tool_call_is_read_and_its_result_can_be_sent_back() -> None:
    with serving(engine=calling(CALL)) as served:
        client = served.openai()
        choice = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[LOOK]).choices[0]
        call = choice.message.tool_calls[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 3})
        back = [*MESSAGES, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "a cat"}]
        assert client.chat.completions.create(model="tiny", messages=back, tools=[LOOK]).choices[0].message.tool_calls


def test_a_streamed_tool_call_adds_up() -> None:
    with serving(engine=calling(CALL)) as served:
        stream = served.openai().chat.completions.create(model="tiny", messages=MESSAGES, tools=[LOOK], stream=True)
        chunks = list(stream)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [(0, "look", '{"at": 3}')]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        ('<tool_call>{"name": "look", "arguments": {"at": }}</tool_call>', {}),
        ('<tool_call>{"name": "fly", "arguments": {}}</tool_call>', {}),
        (f"{CALL} as in this example", {}),
        (CALL + CALL, {"parallel_tool_calls": False}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_cannot_be_carried_out_is_an_error(answer: str, options: dict[str, Any], stream: bool) -> None:
    with pytest.raises(openai.APIError) as caught:
        ask(answer, **{"tools": [LOOK], **options}, stream=stream)
    assert (caught.value.code, caught.value.type) == ("invalid_tool_call", "guard_invalid_answer")


def test_a_text_in_a_form_without_types_stays_a_text() -> None:
    """Qwen3-Coder writes ``007`` without quotes; read as a number it is another argument."""
    code = {"type": "object", "properties": {"code": {"type": "string"}, "times": {"type": "integer"}}}
    pay = {"type": "function", "function": {"name": "pay", "parameters": code}}
    form = tool_format("<function=")
    assert form is not None
    text = "<function=pay><parameter=code>12</parameter><parameter=times>2</parameter></function>"
    (call,) = read_answer(text, "stop", WantedForm(tools=(pay,), reads=form)).calls
    assert call["args"] == {"code": "12", "times": 2}


@pytest.mark.parametrize(
    ("answer", "choice", "names"),
    [
        ("I would rather talk.", "required", {"look", "pay"}),
        (CALL, {"type": "function", "function": {"name": "pay"}}, {"pay"}),
        (CALL, "required", {"look"}),
    ],
)
def test_a_demanded_call_is_made_by_its_grammar(answer: str, choice: Any, names: set[str]) -> None:
    policy = "{version: 1, name: all, rules: [accept]}"
    with serving(engine=calling(answer), policies={"all": policy}) as served:
        create = served.openai().chat.completions.create
        found = create(model="tiny", messages=MESSAGES, tools=[LOOK, PAY], tool_choice=choice, max_tokens=80)
    (call,) = found.choices[0].message.tool_calls
    assert call.function.name in names
    assert isinstance(json.loads(call.function.arguments), dict)
    assert found.guard["calibrated"] is (answer == CALL and choice == "required")


@pytest.mark.parametrize("answer", ["I would rather talk.", '<tool_call>{"name": "look", "arguments": {}}</tool_call>'])
def test_a_function_that_does_not_make_the_demanded_call_is_refused(answer: str) -> None:
    policy = "{version: 1, name: other, rules: [{fallback: {below: 1, to: other}}, abstain]}"
    options = {"fallbacks": {"other": lambda prompt: answer}}
    with serving(engine=calling_unsure(), policies={"other": policy}, guard_options=options) as served:
        create = served.openai().chat.completions.create
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            create(
                model="tiny",
                messages=MESSAGES,
                tools=[LOOK, PAY],
                tool_choice={"type": "function", "function": {"name": "pay"}},
                max_tokens=80,
            )
    assert caught.value.code == "invalid_tool_call"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ('{"dose": 15', {"type": "json_object"}),
        ("It is 15", {"type": "json_object"}),
        ("[15]", {"type": "json_object"}),
        ('{"dose": 1, "dose": 2}', {"type": "json_object"}),
        ('{"dose": NaN}', {"type": "json_object"}),
        ('{"dose": "15"}', SCHEMA),
        ("{}", SCHEMA),
    ],
)
def test_json_that_is_cut_malformed_or_against_its_schema_is_an_error(answer: str, wanted: dict[str, Any]) -> None:
    """A function answers, whose text no grammar constrains."""
    policy = "{version: 1, name: other, rules: [{fallback: {below: 1, to: other}}, abstain]}"
    options = {"fallbacks": {"other": lambda prompt: answer}}
    with serving(said('{"dose": 1}', 0.9), policies={"other": policy}, guard_options=options) as served:
        create = served.openai().chat.completions.create
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            create(model="tiny", messages=MESSAGES, response_format=wanted)
    assert caught.value.code == "invalid_json"
    assert "15" not in str(caught.value)


def test_json_that_was_cut_at_its_limit_is_an_error_even_where_it_closes() -> None:
    accepts_cut = "{version: 1, name: cut, rules: [accept], truncated: {accept: {}}}"
    wanted = {"response_format": {"type": "json_object"}, "max_tokens": 8}
    with serving(said('{"a": 1}' + " " * 9), policies={"cut": accepts_cut}) as served:
        ask_it = served.openai().chat.completions.create
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            ask_it(model="tiny", messages=MESSAGES, **wanted)
    assert caught.value.code == "invalid_json"


def test_a_models_answer_follows_the_schema_by_its_grammar() -> None:
    with serving(said('{"dose": 15}')) as served:
        create = served.openai().chat.completions.create
        free = create(model="tiny", messages=MESSAGES, response_format=SCHEMA)
        other = {"type": "object", "properties": {"dose": {"enum": ["none"]}}, "required": ["dose"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": other}}
        forced = create(model="tiny", messages=MESSAGES, response_format=wanted, max_tokens=40)
    assert (free.choices[0].message.content, free.guard["calibrated"]) == ('{"dose": 15}', True)
    assert forced.guard["calibrated"] is False
    assert forced.choices[0].message.refusal or json.loads(forced.choices[0].message.content) == {"dose": "none"}


class DoseAnswer(BaseModel):
    dose: int


def test_the_clients_own_parsing_of_a_class_works() -> None:
    with serving(said('{"dose": 15}')) as served:
        answer = served.openai().chat.completions.parse(model="tiny", messages=MESSAGES, response_format=DoseAnswer)
    assert answer.choices[0].message.parsed == DoseAnswer(dose=15)


def test_an_abstention_is_a_refusal_for_callers_that_parse() -> None:
    with serving(said('{"dose": 15}', 0.8)) as served:
        answer = served.openai().chat.completions.parse(model="tiny", messages=MESSAGES, response_format=DoseAnswer)
    assert (answer.choices[0].message.parsed, answer.choices[0].message.refusal) == (None, "I cannot say.")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "https://example.org/x.json"},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        DOUBLING,
    ],
)
def test_a_schema_that_cannot_be_followed_accepts_nothing(schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "tiny", "messages": MESSAGES, "response_format": wanted}
    with serving(said('{"dose": 15}')) as served, served.client() as client:
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code in (400, 422) or response.json()["choices"][0]["message"]["refusal"]


#: The same where a part names another validator, and other work that no count of keywords bounds.
ENDLESS: list[tuple[Any, dict[str, Any]]] = [
    ({}, DOUBLING),
    (
        {},
        {
            **DOUBLING,
            "$defs": {
                name: {"$schema": "https://json-schema.org/draft/2020-12/schema", **part}
                for name, part in DOUBLING["$defs"].items()  # type: ignore[attr-defined]
            },
        },
    ),
    ({"a" * 60 + "!": 1}, {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}),
    ([{"a": n} for n in range(4000)], {"allOf": [{"uniqueItems": True}] * 100}),
]


@pytest.mark.parametrize(("value", "schema"), ENDLESS)
def test_a_check_that_would_not_end_accepts_nothing(
    value: Any, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_schemas, "MAX_SECONDS", 0.5)
    assert not follows(value, schema)


def test_parts_of_a_schema_that_name_a_draft_are_checked_as_the_others() -> None:
    draft = "https://json-schema.org/draft/2020-12/schema"
    part = {"$schema": draft, "pattern": "^b", "type": "string"}
    assert follows({"a": "a"}, {"$schema": draft, "properties": {"a": part}})
    assert not follows({"a": 1}, {"$schema": draft, "properties": {"a": part}})


def test_a_schema_that_takes_too_long_to_check_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schemas, "MAX_SECONDS", 0.3)
    with pytest.raises(RequestError, match=r"takes longer than 0\.3 s"):
        check_schema({"allOf": [True] * 30_000})


@pytest.mark.parametrize(("module", "name"), [(answer_message, "follows"), (chat_routes, "check_schema")])
def test_others_are_answered_while_a_schema_is_checked(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()
    check = getattr(module, name)

    def waiting(*arguments: Any) -> Any:
        begun.set()
        assert answered.wait(20), "the other request waits for this check"
        return check(*arguments)

    monkeypatch.setattr(module, name, waiting)
    with serving(said('{"dose": 15}')) as served, ThreadPoolExecutor(1) as pool:
        create = served.openai().chat.completions.create
        slow = pool.submit(create, model="tiny", messages=MESSAGES, response_format=SCHEMA)
        assert begun.wait(20)
        assert create(model="tiny", messages=MESSAGES).choices[0].message.content == '{"dose": 15}'
        answered.set()
        assert slow.result(20).choices[0].message.content == '{"dose": 15}'


def test_a_cut_answer_says_length_where_the_policy_lets_it_pass() -> None:
    policy = "{version: 1, name: cut, rules: [accept], truncated: {accept: {}}}"
    with serving(said("Paris is large"), policies={"cut": policy}) as served:
        choice = served.openai().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Paris", "length")


def test_the_request_that_continue_sends_is_answered() -> None:
    """The fields of Continue's ``toChatBody`` and of its OpenAI adapter (continuedev/continue, commit 023111d)."""
    body = {
        "messages": [{"role": "system", "content": "You are an agent."}, *MESSAGES],
        "model": "tiny",
        "max_tokens": 100,
        "temperature": 0.5,
        "stream": True,
        "stop": ["```"],
        "tools": [LOOK],
        "stream_options": {"include_usage": True},
    }
    headers = {"x-api-key": "none", "authorization": "Bearer none"}
    with serving(engine=calling("Paris")) as served, served.client(headers=headers) as client:
        lines = client.post("/v1/chat/completions", json=body).raise_for_status().text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"]) == "Paris"
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert lines[-2] == "data: [DONE]"
