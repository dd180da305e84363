"""``POST /v1/responses``: request bodies, converted to chat requests. The server keeps no state between requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from guard.serve.bodies import AskingBody, Body, ChatBody, FunctionBody, SchemaBody, check_neutral, only_functions
from guard.serve.request_errors import RequestError


class InputMessage(Body):
    """A message of the conversation so far."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, JsonValue]]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Body):
    """A function that the model called earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class InputCallOutput(Body):
    """The result of that function."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[dict[str, JsonValue]]
    id: str | None = None
    status: str | None = None


class InputReasoning(Body):
    """The model's thoughts in an earlier turn. They are not part of the prompt."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[JsonValue] = Field(default_factory=list)
    content: list[JsonValue] | None = None
    encrypted_content: str | None = None
    status: str | None = None


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning


class ResponseTool(FunctionBody):
    """A function that the model may call."""

    type: Literal["function"]


class ResponseToolChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class ResponseTextFormat(SchemaBody):
    """The response format, with the schema beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class ResponseText(Body):
    """Options of the answer's text."""

    format: ResponseTextFormat = Field(default_factory=ResponseTextFormat)
    verbosity: Literal["medium"] | None = None


#: As in chat requests.
_MOST_MESSAGES = 2000

#: Options that need memory between requests, or a model that guard does not run, at the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "include": ([], ["reasoning.encrypted_content"]),
    "truncation": ("disabled",),
    "reasoning": ({},),
    "max_tool_calls": (),
    "top_logprobs": (0,),
}


class ResponsesBody(AskingBody):
    """``POST /v1/responses``. ``store`` is accepted, but nothing is stored: the response says ``store: false``."""

    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=2000)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[ResponseTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None

    previous_response_id: JsonValue = None
    conversation: JsonValue = None
    prompt: JsonValue = None
    background: JsonValue = None
    include: JsonValue = None
    truncation: JsonValue = None
    reasoning: JsonValue = None
    max_tool_calls: JsonValue = None
    top_logprobs: JsonValue = None

    _functions = field_validator("tools", mode="before")(only_functions)

    def to_chat(self) -> ChatBody:
        """Return the equivalent chat request.

        Raises:
            RequestError: an option is not supported.
        """
        check_neutral(self, _NEUTRAL, why="the server keeps no state between requests")
        shared = {name: getattr(self, name) for name in AskingBody.model_fields if name != "store"}
        asked = [*_messages(self.input)]
        messages = [*self._instructions(), *asked]
        if not asked or len(messages) > _MOST_MESSAGES:
            raise RequestError(f"The input must have 1 to {_MOST_MESSAGES} messages", param="input")
        return ChatBody.model_validate(
            {
                **{name: value for name, value in shared.items() if value is not None},
                "guard": self.guard.model_dump(),
                "messages": messages,
                "max_completion_tokens": self.max_output_tokens,
                "tools": [_tool(tool) for tool in self.tools or ()] or None,
                "tool_choice": _choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": _format(self.text),
            }
        )

    def _instructions(self) -> list[dict[str, Any]]:
        return [] if self.instructions is None else [{"role": "system", "content": self.instructions}]


def _messages(items: str | list[InputItem]) -> Iterator[dict[str, Any]]:
    """Yield the messages of the input; consecutive calls form one message."""
    if isinstance(items, str):
        yield {"role": "user", "content": items}
        return
    calls: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, InputCall):
            function = {"name": item.name, "arguments": item.arguments}
            calls.append({"id": item.call_id, "type": "function", "function": function})
            continue
        if calls:
            yield {"role": "assistant", "content": None, "tool_calls": calls}
            calls = []
        if isinstance(item, InputMessage):
            yield {"role": item.role, "content": _content(item.content)}
        elif isinstance(item, InputCallOutput):
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    if calls:
        yield {"role": "assistant", "content": None, "tool_calls": calls}


def _content(content: str | list[dict[str, Any]]) -> Any:
    """Return the text of a message, or the refusal that the caller got instead."""
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    text = part.get("refusal") if kind == "refusal" else part.get("text")
    if kind not in ("input_text", "output_text", "text", "refusal") or not isinstance(text, str):
        raise RequestError(f"An input holds a part of type '{kind!s:.40}'", why="guard reads text only", param="input")
    return {"type": "text", "text": text}


def _tool(tool: ResponseTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _choice(choice: str | ResponseToolChoice | None) -> Any:
    if isinstance(choice, ResponseToolChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _format(text: ResponseText | None) -> dict[str, Any] | None:
    if text is None or text.format.type == "text":
        return None
    if text.format.type == "json_object":
        return {"type": "json_object"}
    schema = text.format.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
    return {"type": "json_schema", "json_schema": schema}
