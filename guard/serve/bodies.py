"""Request bodies. Unknown options and OpenAI's options that guard does not support are refused.

Some clients send unsupported options with a neutral value, such as ``n: 1``. These pass. Any other value is an error
that names the option: guard never ignores an option.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from guard.serve.request_errors import RequestError, not_offered

Hold = Literal["comments", "headers"]

#: Options of OpenAI's API that guard does not support, with their neutral values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "echo": (False,),
    "suffix": ("",),
    "verbosity": ("medium",),
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "web_search_options", "prompt_cache_retention"), ()),
}


class Body(BaseModel):
    """Base class of request bodies. Strings and booleans are not accepted as numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GuardOptions(Body):
    """Options for guard itself."""

    route: str | None = Field(default=None, max_length=100, description="Section of the policy.")
    policy: str | None = Field(default=None, max_length=100, description="One of the model's policies, by its name.")


class AskingGuardOptions(GuardOptions):
    """Options for guard where an answer may be streamed."""

    hold: Hold | None = Field(default=None, description="What a held stream sends before the decision.")


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class FunctionCall(Body):
    """The function that an earlier answer called."""

    name: str
    arguments: str


class CallInMessage(Body):
    """A tool call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class MessageBody(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[str | dict[str, JsonValue]] | None = None
    name: str | None = None
    tool_calls: list[CallInMessage] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[JsonValue] | None = None


class FunctionBody(Body):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionBody


def only_functions(tools: Any) -> Any:
    """Return the tools of a request, if each may be a function; others are refused by their type.

    Raises:
        RequestError: names the type, where otherwise an option of such a tool would be named.

    Examples:
        >>> only_functions([{"type": "web_search", "search_context_size": "low"}])
        Traceback (most recent call last):
        guard.serve.request_errors.RequestError: ...
    """
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if isinstance(kind, str) and kind != "function":
            what = f"guard serve does not support tools of the type '{kind:.60}'"
            raise RequestError(what, fix="Offer functions", code="unsupported", param="tools")
    return tools


class NamedFunction(Body):
    """The name of a function."""

    name: str


class ToolChoice(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class SchemaBody(Body):
    """A JSON Schema that an answer must follow."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class FormatBody(Body):
    """The response format."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None


def check_neutral(body: Body, neutral: Mapping[str, tuple[Any, ...]], *, why: str = "") -> None:
    """Refuse unsupported options that do not have a neutral value.

    Args:
        body: the body of the request.
        neutral: the neutral values by option.
        why: the reason in the error for options without a neutral value.

    Raises:
        RequestError: an option is not supported; the error names it.
    """
    for name, values in neutral.items():
        value = getattr(body, name, None)
        if value is not None and not any(_is_same(value, one) for one in values):
            raise not_offered(name, why=f"only {values[0]!r} is" if values else why)


def _is_same(value: Any, neutral: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0, but not true."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


class AskingBody(Body):
    """Options that all endpoints share."""

    model: str = Field(min_length=1, max_length=300)
    guard: AskingGuardOptions = Field(default_factory=AskingGuardOptions)
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    metadata: dict[str, JsonValue] | None = None
    user: str | None = Field(default=None, max_length=500)
    safety_identifier: str | None = Field(default=None, max_length=500)
    prompt_cache_key: str | None = Field(default=None, max_length=500)

    n: JsonValue = None
    frequency_penalty: JsonValue = None
    presence_penalty: JsonValue = None
    logit_bias: JsonValue = None
    store: JsonValue = None
    service_tier: JsonValue = None

    def check_offered(self) -> None:
        """Refuse unsupported options that do not have a neutral value.

        Raises:
            RequestError: an option is not supported; the error names it.
        """
        check_neutral(self, _NEUTRAL)


class _GeneratingBody(AskingBody):
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None


class ChatBody(_GeneratingBody):
    """``POST /v1/chat/completions``."""

    messages: list[MessageBody] = Field(min_length=1, max_length=2000)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    tools: list[ToolBody] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: FormatBody | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None

    modalities: JsonValue = None
    audio: JsonValue = None
    prediction: JsonValue = None
    reasoning_effort: JsonValue = None
    verbosity: JsonValue = None
    web_search_options: JsonValue = None
    prompt_cache_retention: JsonValue = None
    functions: JsonValue = None
    function_call: JsonValue = None

    _functions = field_validator("tools", mode="before")(only_functions)

    def tokens(self) -> int | None:
        """Return the token limit, which has two names.

        Raises:
            RequestError: both are given and differ.
        """
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ", param="max_tokens", fix="Send one")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(_GeneratingBody):
    """``POST /v1/completions``."""

    prompt: str | list[str] = Field(max_length=10_000_000)
    logprobs: JsonValue = None
    echo: JsonValue = None
    best_of: JsonValue = None
    suffix: JsonValue = None
