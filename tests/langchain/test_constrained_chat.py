"""Structured output and demanded calls of a model that writes noise: what holds is what decoding is held to."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.tools import tool
from noise import NoiseEngine
from pydantic import BaseModel, Field
from scripted import confidence_scorer

from guard.errors import InputError
from guard.langchain import ChatGuard, guarded, read_score


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    kind: Literal["town", "village"]
    rank: int = Field(ge=1, le=99)


@tool
def find(city: Literal["Paris", "Rome"]) -> str:
    """Find a city."""
    return city


@tool
def count(least: int) -> str:
    """Count the cities."""
    return str(least)


def chat(seed: int = 0, **settings: Any) -> ChatGuard:
    return ChatGuard(model="noise", engine=NoiseEngine(seed), scorer=confidence_scorer(), max_tokens=400, **settings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_objects_hold_whatever_the_model_writes(seed: int, method: Any) -> None:
    assert isinstance(chat(seed).with_structured_output(City, method=method).invoke("Where?"), City)


async def test_streams_and_tasks_hold_as_well() -> None:
    model = chat().with_structured_output(City)
    assert isinstance(await model.ainvoke("Where?"), City)
    assert [type(each) for each in model.stream("Where?")] == [City]


def test_without_strict_the_same_model_gives_none() -> None:
    raw = chat().with_structured_output(City, include_raw=True, strict=False).invoke("Where?")
    assert isinstance(raw, dict)
    assert raw["parsing_error"] is not None


def test_the_score_of_a_bent_answer_is_uncalibrated() -> None:
    raw = chat().with_structured_output(City, include_raw=True).invoke("Where?")
    assert isinstance(raw, dict)
    scored = read_score(raw["raw"])
    assert scored is not None
    assert (scored.calibrated, scored.p_wrong > 0.5) == (False, True)


@pytest.mark.parametrize(("choice", "names"), [("any", {"find", "count"}), ("find", {"find"})])
def test_a_demanded_call_is_made(choice: Any, names: set[str]) -> None:
    for seed in range(4):
        message = chat(seed).bind_tools([find, count], tool_choice=choice).invoke("Where?")
        (call,) = message.tool_calls
        assert call["name"] in names
        assert call["args"].get("city") in ("Paris", "Rome") or isinstance(call["args"].get("least"), int)
        assert (message.content, message.invalid_tool_calls) == ("", [])


def test_with_tools_and_a_format_the_answer_is_either() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "City", "schema": City.model_json_schema()}}
    kinds = set()
    for seed in range(12):
        message = chat(seed).bind_tools([find], response_format=schema).invoke("Where?")
        kinds.add(bool(message.tool_calls))
        if not message.tool_calls:
            City.model_validate_json(str(message.content))
    assert kinds == {True, False}


def test_a_free_choice_is_not_held() -> None:
    message = chat().bind_tools([find], tool_choice="auto").invoke("Where?")
    assert message.tool_calls == []
    assert message.content


def test_a_cut_object_is_refused() -> None:
    cut = ChatGuard(model="noise", engine=NoiseEngine(), scorer=confidence_scorer(), max_tokens=5)
    with pytest.raises(ValueError, match="The answer is truncated"):
        cut.with_structured_output(City).invoke("Where?")
    assert not isinstance(guarded(cut.with_structured_output(City), policy="permissive").invoke("Where?"), City)


def test_a_schema_that_cannot_be_compiled_is_refused() -> None:
    schema = {"title": "Set", "type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InputError, match=r"cannot be compiled.*uniqueItems"):
        chat().with_structured_output(schema).invoke("Where?")
