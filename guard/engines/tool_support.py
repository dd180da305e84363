"""Checks that a model supports tools and that guard can parse its tool calls."""

from __future__ import annotations

from typing import Any

from guard.engines.protocols import Engine
from guard.engines.tokenizing import TokenizingEngine
from guard.engines.tool_calls import FORMATS, HERMES, ToolFormat, format_names, tool_format
from guard.errors import ChatTemplateError
from guard.records import Prompt


def find_form(engine: Engine, name: str) -> ToolFormat:
    """Return the form in which an engine's model writes tool calls.

    Args:
        engine: one without a chat template is assumed to use the most common form.
        name: name of the model, for the error.

    Raises:
        ChatTemplateError: guard cannot parse the form, so that tool calls would pass as text.
    """
    template = engine.chat_template if isinstance(engine, TokenizingEngine) else None
    form = tool_format(template) if template else HERMES
    if form is None:
        raise ChatTemplateError(
            f"guard cannot parse the form in which '{name}' writes tool calls",
            why=f"its chat template shows none of these: {', '.join(format_names())}",
            fix="Use a model of one of these families, or with_structured_output(method='json_schema')",
        )
    return form


def possible_forms(engine: Engine, name: str, prompt: Prompt) -> tuple[ToolFormat, ...]:
    """Return every form that an answer's tool calls may have; arguments and errors as for `find_form`.

    An answer that is held to a call has the form of `HERMES`, whatever the model's own is. What a server's model
    writes is not known.
    """
    if not isinstance(engine, TokenizingEngine):
        return FORMATS
    form = find_form(engine, name)
    return (form,) if prompt.response_format is None else (form, HERMES)


def check_tools(engine: Engine, name: str, tools: list[dict[str, Any]]) -> None:
    """Refuse tools that the chat template ignores, or whose calls guard cannot parse.

    Raises:
        ChatTemplateError: names which of the two.
    """
    if not isinstance(engine, TokenizingEngine):
        return
    if engine.encode(Prompt.chat("?", tools=tools)) == engine.encode(Prompt.chat("?")):
        raise ChatTemplateError(
            f"The chat template of '{name}' does not support tools",
            fix="Use a model that was trained to call tools, or with_structured_output(method='json_schema')",
        )
    find_form(engine, name)
