"""The form of an answer that a request asks for, JSON or a call of a tool: words for the prompt, and the format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from guard.engines.tool_calls import HERMES, ToolFormat
from guard.errors import InputError, did_you_mean
from guard.records import Prompt
from guard.response_format import JSON_OPTIONS, ResponseFormat


def json_instruction(options: Mapping[str, Any]) -> str | None:
    """Return the instruction for a call's ``response_format``.

    Raises:
        InputError: the format is unknown.
    """
    wanted = options.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_object":
        return "Answer with one JSON object and nothing else."
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), Mapping):
        schema = wanted["json_schema"].get("schema", wanted["json_schema"])
        written = json.dumps(schema, ensure_ascii=False)
        return f"Answer with one JSON object and nothing else. It must follow this JSON Schema:\n{written}"
    raise InputError(
        f"Unknown response_format {wanted!r:.100}", fix="Its type is 'json_object' or 'json_schema', with a schema"
    )


def tool_instruction(choice: str | bool | Mapping[str, Any] | None, names: Sequence[str]) -> str | None:
    """Return the instruction for a ``tool_choice``.

    Raises:
        InputError: it names a tool that was not offered.
    """
    choice = _plain(choice)
    if choice in (None, False, "auto", "none"):
        return None
    if choice in (True, "any", "required"):
        return "Answer by calling one of the tools." if names else None
    if choice not in names:
        raise InputError(f"tool_choice names '{choice}', which was not offered", fix=did_you_mean(str(choice), names))
    return f"Answer by calling the tool {choice}."


def _plain(choice: Any) -> Any:
    """Return a ``tool_choice`` with a tool's name in place of the mapping around it."""
    return (choice.get("function") or choice).get("name") if isinstance(choice, Mapping) else choice


def in_asked_form(
    prompt: Prompt, options: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], form: ToolFormat
) -> Prompt:
    """Return a prompt that asks for the form that a call's options name, and whose answer is held to it.

    Args:
        prompt: with the tools.
        options: ``tool_choice``, ``response_format``, and ``strict``; with ``strict`` False the prompt only asks.
        tools: definitions of the tools that the model may call.
        form: in which the model writes their calls.

    Raises:
        InputError: as for `json_instruction` and `tool_instruction`.
    """
    names = [tool["function"]["name"] for tool in tools]
    for instruction in (tool_instruction(options.get("tool_choice"), names), json_instruction(options)):
        prompt = prompt.with_instruction(instruction) if instruction else prompt
    held = None if options.get("strict") is False else _response_format(options, tools, form)
    return replace(prompt, response_format=held)


def _response_format(
    options: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], form: ToolFormat
) -> ResponseFormat | None:
    """Return the format of a call's answer: a demanded tool's call, JSON, or, where tools are offered too, either."""
    choice, schema = options.get("tool_choice"), _read_schema(options.get("response_format"))
    demanded = tool_instruction(choice, [tool["function"]["name"] for tool in tools]) is not None
    if demanded:
        return demanded_call(choice, tools, form)
    if schema is None:
        return None
    return _call_format(tools, form, otherwise=schema) if tools else ResponseFormat.json(schema)


def _read_schema(wanted: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if wanted is None:
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    schema: dict[str, Any] = _closed(wanted["json_schema"].get("schema", wanted["json_schema"]))
    return schema


def demanded_call(choice: Any, tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> ResponseFormat:
    """Return the format of exactly one call, of the tool that a ``tool_choice`` names or of any.

    Args:
        choice: the ``tool_choice``.
        tools: definitions of the tools that are offered.
        form: in which the model writes calls. Answers in this format are read as those of `HERMES`.
    """
    return _call_format(_chosen(choice, tools), form)


def _chosen(choice: Any, tools: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    name = _plain(choice)
    return [tool for tool in tools if tool["function"]["name"] == name] or tools


def _call_format(
    tools: Sequence[Mapping[str, Any]], form: ToolFormat, otherwise: Mapping[str, Any] | None = None
) -> ResponseFormat:
    """Return the format of one call of a tool, as JSON; in the tags of Hermes where that is the model's form."""
    calls = [_call_schema(tool["function"]) for tool in tools]
    call = _lark_json({"anyOf": calls})
    tags = ('"<tool_call>" "\\n"? ', ' "\\n"? "</tool_call>"') if form is HERMES else ("", "")
    rules = [f"start: {tags[0]}call{tags[1]}{' | other' if otherwise else ''}", f"call: {call}"]
    if otherwise:
        rules.append(f"other: {_lark_json(otherwise)}")
    return ResponseFormat.lark("\n".join(rules))


def _lark_json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS}, ensure_ascii=False)}"


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = _closed(function.get("parameters") or {"type": "object", "properties": {}})
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have no other properties than those that it names, unless it speaks of others.

    A model that may invent further ones does not come to an end.
    """
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    # What "allOf" puts together is one object, of which each part names some properties.
    inner = {
        key: part if key in ("allOf", "const", "enum", "default") else _closed(part) for key, part in schema.items()
    }
    names_all = isinstance(schema.get("properties"), Mapping) and "allOf" not in schema
    return {"additionalProperties": False, **inner} if names_all and schema.get("type") == "object" else inner
