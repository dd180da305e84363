"""Requests to a guard: prompt, sampling, limits and the required form of the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from guard.engines.instructions import demanded_call, json_instruction, tool_instruction
from guard.engines.strict_json import DECODER
from guard.engines.tokenizing import TokenizingEngine
from guard.engines.tool_calls import HERMES, ToolFormat, offered_names
from guard.engines.tool_support import check_tools, find_form
from guard.errors import InputError
from guard.records import Limits, Prompt, Sampling
from guard.response_format import ResponseFormat
from guard.serve.bodies import AskingBody, ChatBody, CompletionBody, MessageBody, ToolChoice
from guard.serve.fitted_questions import check_question
from guard.serve.request_errors import RequestError
from guard.serve.served_models import ModelRoute
from guard.serve.token_logprobs import check_top_logprobs


@dataclass(frozen=True, slots=True)
class WantedForm:
    """The form that an answer must have.

    Attributes:
        schema: JSON Schema of the answer; None if it need not be JSON, empty if any object is valid.
        tools: definitions of the tools that the answer may call.
        reads: the format in which the model writes calls.
        demanded: whether the answer must call a tool.
        only: the tool that the answer must call, if one is named.
        parallel: whether the answer may have several calls.
    """

    schema: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    reads: ToolFormat = HERMES
    demanded: bool = False
    only: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to a guard.

    Attributes:
        target: the model and the rules.
        prompt: the complete prompt.
        sampling: the sampling parameters.
        limits: the limits of each attempt.
        metadata: passed to handlers and the queue.
        form: the form that the answer must have.
        cache_key: key of the prompt cache; prompts with the same key share it.
        logprobs: whether to return the log-probabilities of the tokens.
        unguarded: whether no policy decides, as for a client's side request with a key that allows it.
    """

    target: ModelRoute
    prompt: Prompt
    sampling: Sampling
    limits: Limits
    metadata: Mapping[str, Any] = field(default_factory=dict)
    form: WantedForm = WantedForm()
    cache_key: str | None = None
    logprobs: bool = False
    unguarded: bool = False


def prefix_key(asked: Asked) -> str:
    """Return a key that requests have in common whose prompts begin alike: a conversation's, or the caller's own.

    A caller who names a ``prompt_cache_key`` says so by it. Otherwise the first messages do, up to the first of a user:
    each turn of a conversation begins with them.
    """
    named = asked.cache_key or ""
    if ":" in named:
        return named
    beginning: list[Any] = []
    for turn in asked.prompt.messages or ():
        beginning.append([turn["role"], turn.get("content")])
        if turn["role"] == "user":
            break
    text = json.dumps(beginning or asked.prompt.text, default=str)
    return f"{named}\0{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one request.

    Attributes:
        answer_tokens: largest number of tokens of an answer.
        prompt_characters: largest number of characters of all messages together.
        seconds: time limit, including the time in the queue.
    """

    answer_tokens: int = 4096
    prompt_characters: int = 1_000_000
    seconds: float = 300.0


def asked_chat(body: ChatBody, target: ModelRoute, *, bounds: Bounds, key: str, metadata: Mapping[str, Any]) -> Asked:
    """Return the request to a guard for a chat request.

    Args:
        body: the body of the request.
        target: the model and the rules.
        bounds: the limits of the server.
        key: the API key, whose prompts share a cache.
        metadata: metadata in addition to the request's own.

    Raises:
        RequestError, InputError: an option is not supported, or the model cannot be asked this.
    """
    body.check_offered()
    _check_logprobs(body, target)
    prompt = _messages(body, target)
    check_length(prompt, bounds)
    check_question(prompt, target)
    form = _form(body, target)
    prompt = replace(target.guard.to_prompt(prompt), top_logprobs=body.top_logprobs or 0)
    if form.schema is not None:
        prompt = replace(prompt, response_format=ResponseFormat.json(form.schema or None))  # refuses a large one
    elif form.demanded and isinstance(target.guard.engine, TokenizingEngine):  # a served model has no grammar of calls
        prompt = replace(prompt, response_format=demanded_call(form.only, form.tools, form.reads))
        form = replace(form, reads=HERMES)
    for instruction in _instructions(body, form):
        prompt = prompt.with_instruction(instruction)
    return Asked(
        target=target,
        prompt=prompt,
        sampling=_sampling(body),
        limits=_limits(body.tokens(), body.stop, target, bounds, always=target.guard.limits.stop),
        metadata={**metadata, **(body.metadata or {})},
        form=form,
        cache_key=_cache_key(key, body.prompt_cache_key),
        logprobs=bool(body.logprobs),
    )


def asked_completion(
    body: CompletionBody, target: ModelRoute, *, bounds: Bounds, key: str, metadata: Mapping[str, Any]
) -> Asked:
    """Return the request to a guard for a raw completion; arguments and errors as for `asked_chat`.

    Texts of control tokens in the prompt are plain text, so a client can safely insert a user's words.
    """
    body.check_offered()
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(texts) != 1:
        raise RequestError("A completion takes exactly one prompt", why=f"got {len(texts)}", param="prompt")
    if body.logprobs not in (None, 0, False):
        raise RequestError("logprobs is supported by /v1/chat/completions only", param="logprobs", code="unsupported")
    prompt = Prompt.raw(texts[0], plain=True)
    check_length(prompt, bounds)
    return Asked(
        target=target,
        prompt=prompt,
        sampling=_sampling(body),
        limits=_limits(body.max_tokens, body.stop, target, bounds),
        metadata={**metadata, **(body.metadata or {})},
        cache_key=_cache_key(key, body.prompt_cache_key),
    )


def _check_logprobs(body: ChatBody, target: ModelRoute) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs is allowed with logprobs: true only", param="top_logprobs")
    if body.logprobs:
        check_top_logprobs(target.guard.engine, body.top_logprobs or 0)


# -- parts of it -------------------------------------------------------------------------------


def _messages(body: ChatBody, target: ModelRoute) -> Prompt:
    """Return the messages of a request with its tools and template options, as the client sent them."""
    system = target.guard.scorer.artefact.prompting.system
    options = {**target.guard.template_options, **(body.chat_template_kwargs or {})}
    return Prompt.chat(chat_turns(body.messages), system=system, tools=_offered(body), template_options=options)


def _offered(body: ChatBody) -> list[dict[str, Any]]:
    """Return the definitions of the tools that an answer may call."""
    return [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]


def chat_turns(messages: Iterable[MessageBody]) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates read.

    Raises:
        RequestError: the arguments of an earlier tool call are not a JSON object.
    """
    return [_turn(message) for message in messages]


def _turn(message: MessageBody) -> dict[str, Any]:
    """Return a message in the form that chat templates read."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    turn: dict[str, Any] = {"role": role, "content": _content(message)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            turn[name] = value
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.function.name, "arguments": _given(call)}}
            for call in message.tool_calls
        ]
    return turn


def _content(message: MessageBody) -> Any:
    """Return the content of a message, or the refusal that the caller got instead."""
    if message.content is None and message.role == "assistant":
        return message.refusal or ""
    if not isinstance(message.content, list):
        return message.content
    return [_block(block) for block in message.content]


def _block(block: Any) -> Any:
    if isinstance(block, dict) and block.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": block.get("text")}
    return block


def _given(call: Any) -> Any:
    """Return the arguments of an earlier call as a mapping, as templates expect."""
    try:
        given = DECODER.decode(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise RequestError(
            f"The arguments of the tool call '{call.id:.60}' are not a JSON object", param="messages.tool_calls"
        )
    return given


def check_length(prompt: Prompt, bounds: Bounds, *, param: str = "messages") -> None:
    """Refuse a text that exceeds the server's limit of a prompt.

    Args:
        prompt: the text.
        bounds: the limits of the server.
        param: the option that holds it.

    Raises:
        RequestError: with the code ``context_length_exceeded``.
    """
    turns = prompt.messages or ()
    length = len(prompt.text or "") + sum(len(str(turn.get("content", ""))) for turn in turns)
    if length > bounds.prompt_characters:
        raise RequestError(
            f"The {'prompt' if param == 'messages' else param} has {length} characters",
            why=f"the limit of this server is {bounds.prompt_characters}",
            code="context_length_exceeded",
            param=param,
        )


def _form(body: ChatBody, target: ModelRoute) -> WantedForm:
    """Return the form that the answer must have."""
    tools = _offered(body)
    names = offered_names(tools)
    if len(set(names)) < len(names):
        raise RequestError("Two tools have the same name", param="tools")
    schema = _schema(body)
    if schema is not None and tools:
        raise RequestError("response_format and tools cannot be combined", param="response_format", code="unsupported")
    if not tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice requires a tool, but the request offers none", param="tool_choice")
        return WantedForm(schema)
    engine = target.guard.engine
    check_tools(engine, target.model.name, tools)
    only = body.tool_choice.function.name if isinstance(body.tool_choice, ToolChoice) else None
    demanded = only is not None or body.tool_choice == "required"
    tool_instruction(only, names)  # refuses a name that was not offered
    parallel = body.parallel_tool_calls is not False
    return WantedForm(schema, tuple(tools), find_form(engine, target.model.name), demanded, only, parallel)


def _schema(body: ChatBody) -> Mapping[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise RequestError("A json_schema needs its 'schema'", param="response_format.json_schema")
    return wanted.json_schema.schema_


def _instructions(body: ChatBody, form: WantedForm) -> list[str]:
    wanted = (
        body.response_format.model_dump(by_alias=True) if form.schema is not None and body.response_format else None
    )
    choice: str | None = form.only or (body.tool_choice if isinstance(body.tool_choice, str) else None)
    given = (tool_instruction(choice, offered_names(form.tools)), json_instruction({"response_format": wanted}))
    return [instruction for instruction in given if instruction]


def _sampling(body: AskingBody) -> Sampling:
    options = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "seed")}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        with _names(name):
            Sampling(**{name: value})
    return Sampling(**given)


def _limits(
    tokens: int | None,
    stop: str | list[str] | None,
    target: ModelRoute,
    bounds: Bounds,
    *,
    always: tuple[str, ...] = (),
) -> Limits:
    own = target.guard.limits
    if tokens is not None and tokens > bounds.answer_tokens:
        raise RequestError(
            f"max_tokens is {tokens}", why=f"the limit of this server is {bounds.answer_tokens}", param="max_tokens"
        )
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > 4:
        raise RequestError(f"stop has {len(stops)} texts", why="at most 4 are allowed", param="stop")
    wanted = min(target.model.max_tokens or own.max_tokens, bounds.answer_tokens) if tokens is None else tokens
    with _names("max_tokens"):
        limits = Limits(wanted, own.stop, bounds.seconds)
    with _names("stop"):
        return replace(limits, stop=(*always, *stops) or own.stop)


@contextmanager
def _names(option: str) -> Iterator[None]:
    """Name the option whose value is refused in this block."""
    try:
        yield
    except InputError as error:
        raise RequestError(error.what, why=error.why, fix=error.fix, param=option) from error


def _cache_key(key: str, named: str | None) -> str:
    """Return the key of the prompt cache: that of the API key, narrowed by the name that the request gives."""
    return key if named is None else f"{key}:{hashlib.sha256(named.encode()).hexdigest()}"
