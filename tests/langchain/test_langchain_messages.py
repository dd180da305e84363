"""Messages as chat templates read them, tool calls as models write them, and the metadata contract."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from guard.engines.instructions import json_instruction, tool_instruction
from guard.engines.tool_calls import parse_tool_calls
from guard.errors import InputError
from guard.langchain.messages import chat_turns
from guard.langchain.metadata import KEY, read_score, score_metadata, with_metadata
from guard.records import Sampling
from guard.scores import Score, ScoreName, ScoreReading

CALL = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


# -- messages ------------------------------------------------------------------------------------


def test_every_kind_of_message_has_its_role() -> None:
    turns = chat_turns(
        [
            SystemMessage("be brief"),
            HumanMessage("1+1?", name="ann"),
            AIMessage("", tool_calls=[CALL]),
            ToolMessage("2", tool_call_id="c1", name="add"),
            FunctionMessage("3", name="old"),
            ChatMessage("hm", role="critic"),
        ]
    )
    function = {"name": "add", "arguments": {"a": 1}}
    assert turns == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1+1?", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "c1", "function": function}]},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
        {"role": "tool", "content": "3", "name": "old"},
        {"role": "critic", "content": "hm"},
    ]


def test_text_blocks_are_joined_and_asides_of_the_assistant_left_out() -> None:
    blocks: list[Any] = ["a", {"type": "text", "text": "b"}]
    assert chat_turns([HumanMessage(blocks)])[0]["content"] == "ab"
    asides = [
        *blocks,
        {"type": "tool_use", "id": "c1", "name": "add", "input": {}},
        {"type": "thinking", "thinking": "x"},
    ]
    assert chat_turns([AIMessage(asides)])[0]["content"] == "ab"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "file", "file_id": "1"},
        {"type": "text", "text": 3},
        {"type": "thinking", "thinking": "of a person"},
        {},
    ],
)
def test_what_is_no_text_is_refused_in_words(block: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="text only"):
        chat_turns([HumanMessage([block])])


def test_a_message_of_no_role_is_refused() -> None:
    with pytest.raises(InputError, match="RemoveMessage"):
        chat_turns([RemoveMessage(id="1")])


# -- tool calls ----------------------------------------------------------------------------------


def written(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments})


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{written('add', {'a': 1})}\n</tool_call>",
        f"<tool_call>{written('add', {'a': 1})}",
        written("add", {"a": 1}),
        written("add", {"a": 1}, "parameters"),
        written("add", json.dumps({"a": 1})),
        f"[{written('add', {'a': 1})}]",
        json.dumps({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}),
    ],
)
def test_the_usual_forms_are_read(text: str) -> None:
    answer = parse_tool_calls(text, ["add"])
    (call,) = answer.calls
    assert (answer.text, call["name"], call["args"], answer.invalid) == ("", "add", {"a": 1}, ())
    assert call["id"]


def test_several_calls_have_ids_of_their_own_and_the_text_beside_them_stays() -> None:
    one = f"<tool_call>{written('add', {'a': 1})}</tool_call>"
    answer = parse_tool_calls(f"Let me see. {one}\n{one}", ["add"])
    assert answer.text == "Let me see."
    assert len({call["id"] for call in answer.calls}) == 2


@pytest.mark.parametrize(
    "text", ["2", "{}", '{"name": "add"}', written("other", {}), "[]", f"Call {written('add', {})}!"]
)
def test_an_answer_that_calls_no_offered_tool_stays_text(text: str) -> None:
    answer = parse_tool_calls(text, ["add"])
    assert (answer.text, answer.calls, answer.invalid) == (text, (), ())


@pytest.mark.parametrize(
    ("inside", "error"),
    [
        ("add(1)", "not the JSON of a tool call"),
        (written("add", "a=1"), "the arguments are not JSON"),
        (written("add", [1]), "the arguments are not an object"),
        ("", "not the JSON of a tool call"),
    ],
)
def test_a_call_that_cannot_be_read_is_kept_as_invalid(inside: str, error: str) -> None:
    answer = parse_tool_calls(f"<tool_call>{inside}</tool_call>", ["add"])
    (invalid,) = answer.invalid
    assert (answer.calls, invalid["error"]) == ((), error)


@settings(max_examples=200)
@given(st.text() | JSON.map(json.dumps) | st.text().map(lambda text: f"<tool_call>{text}"))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    answer = parse_tool_calls(text, ["add"])
    assert all(isinstance(call["args"], dict) for call in answer.calls)


@settings(max_examples=100)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_arguments_come_back_as_they_were_written(arguments: dict[str, Any]) -> None:
    for text in (written("add", arguments), f"<tool_call>{written('add', arguments)}</tool_call>"):
        if "</tool_call>" in written("add", arguments):
            continue
        (call,) = parse_tool_calls(text, ["add"]).calls
        assert call["args"] == arguments


# -- instructions --------------------------------------------------------------------------------


def test_a_tool_choice_is_put_in_words() -> None:
    for choice in (None, False, "auto", "none"):
        assert tool_instruction(choice, ["add"]) is None
    for choice in (True, "any", "required"):
        assert tool_instruction(choice, ["add"]) == "Answer by calling one of the tools."
        assert tool_instruction(choice, []) is None
    for choice in ("add", {"type": "function", "function": {"name": "add"}}, {"name": "add"}):
        assert tool_instruction(choice, ["add"]) == "Answer by calling the tool add."
    with pytest.raises(InputError, match="Did you mean 'add'"):
        tool_instruction("ad", ["add"])


def test_a_response_format_is_put_in_words() -> None:
    assert json_instruction({}) is None
    assert json_instruction({"response_format": {"type": "json_object"}}) is not None
    schema = {"title": "City", "type": "object"}
    told = json_instruction({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
    assert told is not None
    assert told.endswith(json.dumps(schema))
    for wrong in ("json", {"type": "xml"}, {"type": "json_schema"}, {}):
        with pytest.raises(InputError, match="response_format"):
            json_instruction({"response_format": wrong})


# -- metadata ------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    p_wrong=st.floats(0, 1),
    ilis=st.none() | st.floats(0, 1),
    calibrated=st.booleans(),
    tokens=st.integers(0, 10**6),
    seed=st.none() | st.integers(0, 2**32),
)
def test_what_is_written_is_read(
    p_wrong: float, ilis: float | None, calibrated: bool, tokens: int, seed: int | None
) -> None:
    sampling = Sampling(0.5, 0.9, 3, seed)
    scores: dict[ScoreName, ScoreReading] = {"guard": ScoreReading(p_wrong, ("activations",))}
    if ilis is not None:
        scores["ilis"] = ScoreReading(ilis, ())
    score = Score(p_wrong, calibrated, 0.1, scores=scores)
    content = score_metadata(model="m", score=score, tokens=tokens, prompt_tokens=7, sampling=sampling)
    message = AIMessage("x", response_metadata={KEY: json.loads(json.dumps(content))})
    read = read_score(message)
    assert read is not None
    assert (read.p_wrong, read.scores, read.calibrated) == (p_wrong, scores, calibrated)
    assert read.deciding("guard") == score
    assert (read.tokens, read.prompt_tokens, read.sampling, read.error) == (tokens, 7, sampling, None)
    assert not read.failed


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["p_wrong", "error", "calibrated", "tokens", "sampling", "decision"]), JSON) | JSON
)
def test_metadata_of_any_kind_is_a_score_or_a_failure(content: Any) -> None:
    read = read_score(AIMessage("x", response_metadata={KEY: content}))
    if content is None:
        assert read is None
        return
    assert read is not None
    assert (read.p_wrong is None) == read.failed
    assert read.p_wrong is None or 0 <= read.p_wrong <= 1


@pytest.mark.parametrize("p_wrong", [None, "0.1", True, 1.5, -0.1, float("nan"), [0.1]])
def test_what_is_no_probability_is_a_failure(p_wrong: Any) -> None:
    read = read_score(AIMessage("x", response_metadata={KEY: {"p_wrong": p_wrong}}))
    assert read is not None
    assert read.failed


@pytest.mark.parametrize("message", [HumanMessage("x", response_metadata={KEY: {"p_wrong": 0}}), AIMessage("x")])
def test_other_messages_have_no_score(message: BaseMessage) -> None:
    assert read_score(message) is None


def test_metadata_is_added_to_a_copy() -> None:
    message = AIMessage("x", response_metadata={"a": 1, KEY: {"p_wrong": 0.5}})
    changed = with_metadata(message, decision={"action": "accept"})
    assert changed.response_metadata == {"a": 1, KEY: {"p_wrong": 0.5, "decision": {"action": "accept"}}}
    assert KEY in message.response_metadata
    assert "decision" not in message.response_metadata[KEY]
