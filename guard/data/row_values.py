"""Checked values of a data row; errors describe the row's value in JSON's terms."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from guard.records import Prompt

_ValueT = TypeVar("_ValueT")


class BadValueError(Exception):
    """The reason why one row cannot be used, for a `BadRow`."""


def required(row: Mapping[str, Any], key: str, read: Callable[[Any, str], _ValueT], known: Sequence[str]) -> _ValueT:
    """Return the value of a key that a row must have; a misspelt key is named."""
    value = row.get(key)
    if value is None:
        near = difflib.get_close_matches(key, [other for other in row if other not in known], n=1)
        raise BadValueError(f"misses {key!r}" + (f"; is it {near[0]!r:.50}?" if near else ""))
    return read(value, key)


def optional(row: Mapping[str, Any], key: str, read: Callable[[Any, str], _ValueT]) -> _ValueT | None:
    """Return the value of a key; None where the row has none."""
    return None if (value := row.get(key)) is None else read(value, key)


def read_text(value: Any, key: str) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise BadValueError(f"{key!r} must be a text, got {json_kind(value)}")
    return value


def read_filled_text(value: Any, key: str) -> str:
    """Return a text that is not blank."""
    if not read_text(value, key).strip():
        raise BadValueError(f"{key!r} is empty")
    return str(value)


def read_texts(value: Any, key: str) -> tuple[str, ...]:
    """Return a list of such texts that is not empty."""
    if not isinstance(value, list):
        raise BadValueError(f"{key!r} must be a list of texts, got {json_kind(value)}")
    if not value:
        raise BadValueError(f"{key!r} is empty")
    return tuple(read_filled_text(item, f"{key}[{at}]") for at, item in enumerate(value))


def read_whole_number(value: Any, key: str) -> int:
    """Return a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValueError(f"{key!r} must be a whole number, got {json_kind(value)}")
    return value


def read_positive_number(value: Any, key: str) -> float:
    """Return a number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        got = value if isinstance(value, int | float) else json_kind(value)
        raise BadValueError(f"{key!r} must be a number above 0, got {got}")
    return float(value)


def read_mapping(value: Any, key: str) -> Mapping[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise BadValueError(f"{key!r} must be an object, got {json_kind(value)}")
    return value


def read_mappings(value: Any, key: str) -> tuple[Mapping[str, Any], ...]:
    """Return a list of objects."""
    if not isinstance(value, list):
        raise BadValueError(f"{key!r} must be a list of objects, got {json_kind(value)}")
    return tuple(read_mapping(item, f"{key}[{at}]") for at, item in enumerate(value))


def read_prompt(value: Any, key: str) -> Prompt:
    """Return a prompt from one question or from messages."""
    if isinstance(value, str):
        return Prompt.chat(read_filled_text(value, key))
    if not isinstance(value, list) or not value:
        raise BadValueError(f"{key!r} must be a text or a list of messages, got {json_kind(value)}")
    for at, turn in enumerate(value):
        turn = read_mapping(turn, f"{key}[{at}]")
        for part in ("role", "content"):
            if part not in turn:
                raise BadValueError(f"'{key}[{at}]' misses {part!r}")
            read_text(turn[part], f"{key}[{at}].{part}")
    return Prompt.chat(value)


def read_truth(value: Any, key: str) -> bool:
    """Return a boolean."""
    if not isinstance(value, bool):
        raise BadValueError(f"{key!r} must be true or false, got {json_kind(value)}")
    return value


def json_kind(value: Any) -> str:
    """Return the kind of a JSON value in JSON's terms."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return "an empty list" if value == [] else names[type(value)]
