"""OpenAI's chat completions: what is sent, and what the parts of a stream say. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.engines.remote.plain_contents import check_plain
from guard.engines.sampling import TokenSignals
from guard.engines.strict_json import DECODER
from guard.errors import EngineError, InputError
from guard.records import FinishReason, Limits, Prompt, Sampling

#: Probabilities that add up to more than this are none.
_MOST = 1.001
#: Tokens of a prompt, at most; a larger count is no count.
_MOST_TOKENS = 10**9
#: A log-probability below this stands for "none" on servers that cannot send infinity.
_LEAST = -9000.0

_FINISHES: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "function_call": "stop",
}


@dataclass(frozen=True, slots=True)
class WireToken:
    """A token of a stream.

    Attributes:
        piece: its bytes.
        signals: of its choice; entropies are those of the likeliest k tokens and of one that stands for all others.
        fault: why the signals cannot be used; None where they can.
        top: bytes and log-probabilities of the likeliest tokens, the likeliest first.
    """

    piece: bytes
    signals: TokenSignals
    fault: str | None = None
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a tool call.

    Attributes:
        index: of the call in the answer.
        name, arguments: text that is added to its name and to its arguments.
    """

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class StreamPart:
    """One part of a stream.

    Attributes:
        content, reasoning: text that the server adds to the answer and to its thought.
        tokens: with their log-probabilities.
        calls: pieces of tool calls.
        finish: how the answer ended; None before its end.
        model, fingerprint: who answers, as far as the part says so.
        prompt_tokens: of the prompt, where the part counts them.
    """

    content: str
    reasoning: str
    tokens: tuple[WireToken, ...]
    calls: tuple[CallPiece, ...]
    finish: FinishReason | None
    model: str | None
    fingerprint: str | None
    prompt_tokens: int | None


def request_body(model: str, prompt: Prompt, sampling: Sampling, limits: Limits, *, k: int) -> dict[str, Any]:
    """Return the body of a request.

    Args:
        model: the served name.
        prompt: chat messages.
        sampling, limits: as for any engine. Stop strings are found here, since servers look for them in thoughts, too.
        k: how many of the likeliest tokens' log-probabilities are asked for at each token.

    Raises:
        InputError: a raw prompt, a response format that servers do not share, or as for `check_plain`.
    """
    if prompt.messages is None:
        raise InputError("A served model is asked by chat messages", why="its server applies the chat template")
    check_plain(prompt)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_turn(turn) for turn in prompt.messages],
        "max_tokens": limits.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "logprobs": True,
        "top_logprobs": k,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if prompt.tools:
        body["tools"] = [dict(tool) for tool in prompt.tools]
    if prompt.template_options:
        body["chat_template_kwargs"] = dict(prompt.template_options)
    return body | _format(prompt)


def _format(prompt: Prompt) -> dict[str, Any]:
    wanted = prompt.response_format
    if wanted is None:
        return {}
    if wanted.kind != "json_schema":
        raise InputError(
            f"A served model cannot be held to a format of the kind '{wanted.kind}'",
            why="servers share no language of grammars",
            fix="Use ResponseFormat.json, or strict=False for tools",
        )
    schema = {"name": "answer", "schema": wanted.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as servers read it: arguments of tool calls are JSON in a text, and thoughts stay here."""
    sent = {name: value for name, value in turn.items() if name != "reasoning_content"}
    if calls := sent.get("tool_calls"):
        sent["tool_calls"] = [_call(call) for call in calls]
    return sent


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {**call, "type": "function", "function": function}


def read_part(event: Any, *, k: int) -> StreamPart:
    """Read one event of a stream.

    Raises:
        EngineError: it is an error, or not of the form of a chat completion.
    """
    try:
        if event.get("error"):
            raise EngineError("The server failed while it answered")
        usage = event.get("usage") or {}
        choices = event.get("choices") or [{}]
        if len(choices) > 1:
            raise EngineError("The server sends several answers to one request")
        delta, logprobs = choices[0].get("delta") or {}, choices[0].get("logprobs") or {}
        return StreamPart(
            content=_text(delta.get("content")),
            reasoning=_text(delta.get("reasoning_content") or delta.get("reasoning")),
            tokens=tuple(_token(entry, k) for entry in logprobs.get("content") or ()),
            calls=tuple(_piece(call) for call in delta.get("tool_calls") or ()),
            finish=_finish(choices[0].get("finish_reason")),
            model=event.get("model") or None,
            fingerprint=event.get("system_fingerprint") or None,
            prompt_tokens=_count(usage.get("prompt_tokens")),
        )
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise EngineError("The server's response is no chat completion", why=type(error).__name__) from None


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError
    (value or "").encode()  # half of a surrogate pair is JSON, but no text
    return value or ""


def _count(value: Any) -> int | None:
    """Return a number of tokens; budgets add it up."""
    if value is not None and (type(value) is not int or not 0 <= value <= _MOST_TOKENS):
        raise ValueError
    return value


def _piece(call: Mapping[str, Any]) -> CallPiece:
    function = call.get("function") or {}
    return CallPiece(int(call.get("index") or 0), _text(function.get("name")), _text(function.get("arguments")))


def _finish(reason: Any) -> FinishReason | None:
    if reason is None:
        return None
    if reason not in _FINISHES:
        shown = reason if reason in ("content_filter", "abort", "error") else "another reason"
        raise EngineError("The server did not let the answer end", why=f"it gives {shown}")
    return _FINISHES[reason]


def _token(entry: Mapping[str, Any], k: int) -> WireToken:
    piece = _bytes(entry)
    try:
        return WireToken(piece, _signals(entry, k), top=_top(entry, k))
    except ValueError as error:
        return WireToken(piece, TokenSignals(0.0, 0.0, 0.0), str(error))
    except TypeError:
        return WireToken(piece, TokenSignals(0.0, 0.0, 0.0), "a log-probability is no number")


def _bytes(entry: Mapping[str, Any]) -> bytes:
    written = entry.get("bytes")
    # Not bytes(written) of whatever it is: of a number it is that many zeros.
    return _text(entry.get("token")).encode() if written is None else bytes([*written])


def _top(entry: Mapping[str, Any], k: int) -> tuple[tuple[bytes, float], ...]:
    """Return the likeliest tokens, whose numbers `_signals` has checked; one that has no bytes is shown without."""
    found = [(_bytes_or_none(each), _logprob(each.get("logprob"))) for each in entry["top_logprobs"]]
    return tuple(sorted(found, key=lambda each: -each[1])[:k])


def _bytes_or_none(entry: Mapping[str, Any]) -> bytes:
    try:
        return _bytes(entry)
    except (TypeError, ValueError):
        return b""


def _signals(entry: Mapping[str, Any], k: int) -> TokenSignals:
    """Return a token's signals.

    The entropy is that of the k likeliest tokens and of one outcome for all others together: a lower bound of the whole
    distribution's.

    Raises:
        ValueError, TypeError: the server's numbers cannot be used.
    """
    chosen = _logprob(entry.get("logprob"))
    if chosen < _LEAST:
        raise ValueError("the chosen token has no log-probability")
    given = entry.get("top_logprobs")
    if not isinstance(given, Sequence) or len(given) < k:
        raise ValueError(f"the server gives {len(given or ())} of {k} log-probabilities")
    top = sorted((_logprob(each.get("logprob")) for each in given), reverse=True)[:k]
    shares = [math.exp(each) for each in top]
    if (total := sum(shares)) > _MOST:
        raise ValueError("the likeliest tokens' probabilities add up to more than 1")
    rest = max(1.0 - total, 0.0)
    entropy = -sum(share * each for share, each in zip(shares, top, strict=True))
    entropy -= rest * math.log(rest) if rest else 0.0
    return TokenSignals(min(chosen, 0.0), max(entropy, 0.0), top[0] - top[1])


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(value) or value > 1e-3:
        raise ValueError("a log-probability is not finite, or above 0")
    return float(value)


def with_calls(content: str, calls: Sequence[CallPiece]) -> str:
    """Return an answer's text with the tool calls that a server has taken out of it, as guard reads them.

    Arguments that are not one JSON object are written as a list with their text, which no tool takes: as they are,
    they could end this call and begin another.

    Args:
        content: the text beside the calls.
        calls: their pieces, in the order in which they came.
    """
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for call in calls:
        names[call.index] = names.get(call.index, "") + call.name
        arguments[call.index] = arguments.get(call.index, "") + call.arguments
    written = [
        f'<tool_call>{{"name": {json.dumps(names[at])}, "arguments": {_as_object(arguments[at])}}}</tool_call>'
        for at in names
    ]
    return "\n".join([*([content] if content.strip() else []), *written])


def _as_object(arguments: str) -> str:
    """Return the text of a call's arguments if it is one JSON object, else a list that holds it."""
    try:
        is_object = isinstance(DECODER.decode(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    return (arguments or "{}") if is_object else json.dumps([arguments])
