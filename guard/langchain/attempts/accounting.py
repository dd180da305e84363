"""Checks that the output of an attempt comes from its accounted model calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from guard.engines.witness import OpenCall
from guard.engines.witness import unguarded as unguarded
from guard.langchain.attempts.model_calls import ModelCall

#: Stands for a part of an output that cannot be compared with an answer.
_UNKNOWN = object()

#: A call that no callback of the attempt reported.
UNACCOUNTED = ModelCall((), frozenset(), None, unaccounted=True)


def all_calls(
    reported: tuple[ModelCall, ...], opened: OpenCall, *, input: Any, output: Any, error: Exception | None
) -> tuple[ModelCall, ...]:
    """Return the calls of an attempt, with an unaccounted one if a model answered without being reported.

    An unreported answer that certainly belongs to this attempt counts. One that may belong to another part of the
    program counts too, unless this attempt's output is word for word what its own scored calls said and the prompt of
    none of them contains the other answer.

    Args:
        reported: calls that callbacks reported.
        opened: unreported answers that were noticed.
        input: input of the attempt.
        output: output of the attempt.
        error: exception that replaced the output; it may quote any answer.
    """
    if opened.own:
        return (*reported, UNACCOUNTED)
    if not opened.possible:
        return reported
    separate = error is None and _is_made_of(reported, output, input) and not _read_by(reported, opened)
    return reported if separate else (*reported, UNACCOUNTED)


def is_answer(message: AIMessage, calls: Sequence[ModelCall]) -> bool:
    """Return whether a message repeats the answer of one of the calls."""
    return any(call.message is not None and _same(message, call.message) for call in calls)


def _is_made_of(calls: Sequence[ModelCall], output: Any, input: Any) -> bool:
    """Return whether every text of an output is an answer of the scored calls or a part of the input."""
    known: list[Any] = [call.message for call in calls if call.scored and call.message is not None]
    given = dict(_leaves(input))
    # A question may appear anywhere in the output. A part of an input may not, since an answer can be one of its
    # choices.
    known += [input] if isinstance(input, str) else []
    leaves = [*_leaves(output)]
    return bool(leaves) and all(any(_same(leaf, one) for one in (*known, given.get(path))) for path, leaf in leaves)


def _read_by(calls: Sequence[ModelCall], opened: OpenCall) -> bool:
    """Return whether one of the calls read an answer that may belong to this attempt."""
    prompts = "\n".join(str(getattr(one, "content", one)) for call in calls for one in call.inputs)
    texts = [None if pieces is None else "".join(pieces).strip() for pieces in opened.possible]
    return any(text is None or (text and text in prompts) for text in texts)


def _same(leaf: Any, known: Any) -> bool:
    if leaf is _UNKNOWN or known is _UNKNOWN or known is None:
        return False
    if isinstance(leaf, BaseMessage) and isinstance(known, BaseMessage):
        return _text(leaf) == _text(known) and _calls(leaf) == _calls(known)
    return _text(leaf) == _text(known)


def _text(leaf: Any) -> str:
    return (leaf if isinstance(leaf, str) else str(leaf.text)).strip()


def _calls(message: BaseMessage) -> list[tuple[Any, Any]]:
    return [(call["name"], call["args"]) for call in getattr(message, "tool_calls", ())]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the texts and messages in a value with their paths; anything else is not comparable."""
    if isinstance(value, str | BaseMessage):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _leaves(part, (*path, place))
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from _leaves(getattr(value, one.name), (*path, one.name))
    elif value is not None:
        yield path, _UNKNOWN
