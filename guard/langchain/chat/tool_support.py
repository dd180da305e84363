"""Whether a model can be offered tools, and in which form it calls them."""

from __future__ import annotations

from typing import Any

from guard.engines.base import BaseEngine
from guard.engines.protocols import Engine
from guard.errors import ChatTemplateError
from guard.langchain.chat.tool_calls import HERMES, ToolFormat, format_names, tool_format
from guard.records import Prompt


def form_of(engine: Engine, name: str) -> ToolFormat:
    """How an engine's model writes its tool calls.

    Args:
        engine: one without a chat template of its own is taken to write them as most do.
        name: of the model, for the error.

    Raises:
        ChatTemplateError: in a form that guard does not read, so that its calls would pass as text.
    """
    template = engine.chat_template if isinstance(engine, BaseEngine) else None
    form = tool_format(template) if template else HERMES
    if form is None:
        raise ChatTemplateError(
            f"guard does not read the form in which '{name}' writes tool calls",
            why=f"its chat template shows none of these: {', '.join(format_names())}",
            fix="Take a model of one of these families, or with_structured_output(method='json_schema')",
        )
    return form


def check_tools(engine: Engine, name: str, tools: list[dict[str, Any]]) -> None:
    """Refuse tools that the chat template would leave out without a word, or whose calls are not read.

    Raises:
        ChatTemplateError: says which of the two.
    """
    if not isinstance(engine, BaseEngine):
        return
    if engine.encode(Prompt.chat("?", tools=tools)) == engine.encode(Prompt.chat("?")):
        raise ChatTemplateError(
            f"The chat template of '{name}' has no place for tools",
            fix="Take a model that was trained to call tools, or with_structured_output(method='json_schema')",
        )
    form_of(engine, name)
