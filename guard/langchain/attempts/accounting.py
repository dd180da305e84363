"""Whether what comes out of an attempt is what its accounted model calls have said."""

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

#: A call that the attempt was not told of.
UNHEARD = ModelCall((), frozenset(), None, unheard=True)


def all_calls(
    heard: tuple[ModelCall, ...], opened: OpenCall, *, asked: Any, output: Any, error: Exception | None
) -> tuple[ModelCall, ...]:
    """The calls of an attempt, with one more where a model has answered that it was not told of.

    Where such an answer is surely of this attempt, it counts. Where it may be of another part of the program
    it counts unless this attempt's output is, word for word, what its own scored calls have said, and none of
    them was asked with the other answer in its prompt.

    Args:
        heard: by callbacks.
        opened: what else was noticed.
        asked: the input of the attempt.
        output: of the attempt.
        error: that came in its place, and that may quote any answer.
    """
    if opened.own:
        return (*heard, UNHEARD)
    if not opened.possible:
        return heard
    apart = error is None and _said_by(heard, output, asked) and not _fed(heard, opened)
    return heard if apart else (*heard, UNHEARD)


def is_answer(message: AIMessage, calls: Sequence[ModelCall]) -> bool:
    """Whether a message says what one of the calls has answered."""
    return any(call.message is not None and _same(message, call.message) for call in calls)


def _said_by(calls: Sequence[ModelCall], output: Any, asked: Any) -> bool:
    known: list[Any] = [call.message for call in calls if call.scored and call.message is not None]
    given = dict(_leaves(asked))
    # A question may stand anywhere in the output. Parts of an input may not: an answer can be one of its choices.
    known += [asked] if isinstance(asked, str) else []
    leaves = [*_leaves(output)]
    return bool(leaves) and all(any(_same(leaf, one) for one in (*known, given.get(path))) for path, leaf in leaves)


def _fed(calls: Sequence[ModelCall], opened: OpenCall) -> bool:
    """Whether an answer that may be of this attempt was read by one of its calls."""
    prompts = "\n".join(str(getattr(one, "content", one)) for call in calls for one in call.asked)
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
    """The texts and messages in a value, with where they stand; what is neither cannot be compared."""
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
