"""Structured output: the instruction in the prompt and the parser of the answer's JSON.

Decoding is constrained to the schema, unless ``strict`` is False: then an answer of another form is a parsing error, as
with any model that is only asked for JSON. So is a truncated one (`guard.langchain.attempts.complete_json`). The score
is on the raw message in any case.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel
from pydantic.v1 import BaseModel as BaseModelV1

from guard.errors import InputError, did_you_mean
from guard.langchain.attempts.complete_json import complete_json, complete_tool_calls

_METHODS = ("json_schema", "json_mode", "function_calling")


def structured(
    model: BaseChatModel, schema: dict[str, Any] | type, *, include_raw: bool, method: str, **kwargs: Any
) -> Runnable[Any, Any]:
    """Return a model whose answers are objects; see `ChatGuard.with_structured_output`."""
    if method not in _METHODS:
        raise InputError(f"Unknown method '{method}' of structured output", fix=did_you_mean(method, _METHODS))
    traced = {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": schema}}
    is_class = isinstance(schema, type) and issubclass(schema, BaseModel | BaseModelV1)
    parser: Runnable[Any, Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        bound = model.bind_tools([schema], tool_choice=name, **traced, **kwargs)
        if is_class:
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
        else:
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        parser = RunnableLambda(complete_tool_calls) | parser
    else:
        bound = model.bind(response_format=_format(schema, method), **traced, **kwargs)
        parser = RunnableLambda(complete_json) | _json_parser(schema, is_class)
    return _with_raw(bound, parser) if include_raw else bound | parser


def _format(schema: dict[str, Any] | type, method: str) -> dict[str, Any]:
    if method == "json_mode":
        return {"type": "json_object"}
    written = convert_to_json_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": written.get("title", "answer"), "schema": written}}


def _json_parser(schema: Any, is_class: bool) -> BaseOutputParser[Any]:
    return PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()


def _with_raw(bound: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    either: Runnable[Any, Any] = parsed.with_fallbacks([unparsed], exception_key="parsing_error")
    # In a stream, fallbacks cover only the first chunk, which would be the raw message. So it is parsed as a whole.
    return RunnableMap(raw=bound) | RunnableLambda(either.invoke, afunc=either.ainvoke)
