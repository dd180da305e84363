"""Durations as policies and commands write them: ``30min``, ``4h``, ``7d``."""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, SerializationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

#: Context in which documents are written for people.
FOR_PEOPLE = "for people"

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,6})\s?(s|min|h|d)")


def parse_duration(text: object) -> float | None:
    """Return the seconds of a duration; None if it is none, or zero.

    Examples:
        >>> parse_duration("4h"), parse_duration("soon")
        (14400.0, None)
    """
    written = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if written is None or int(written[1]) == 0:
        return None
    return float(int(written[1]) * _SECONDS[written[2]])


def write_duration(seconds: float) -> str:
    """Return a duration as policies write it, in the largest unit of which it is a whole number.

    Examples:
        >>> write_duration(14_400.0), write_duration(5_400.0)
        ('4h', '90min')
    """
    unit = max((unit for unit in _SECONDS if seconds % _SECONDS[unit] == 0), key=_SECONDS.__getitem__)
    return f"{int(seconds // _SECONDS[unit])}{unit}"


def _serialise(seconds: float, info: SerializationInfo) -> Any:
    """Write a duration out where a document is for people; digests are of its seconds."""
    return write_duration(seconds) if info.context == FOR_PEOPLE else seconds


def _seconds(value: Any) -> Any:
    seconds = parse_duration(value)
    if seconds is None:
        message = "within must be a time such as 30min, 4h or 2d (s, min, h or d), got {found}"
        raise PydanticCustomError("guard", message, {"found": reprlib.repr(value)})
    return seconds


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(_serialise),
    WithJsonSchema({"type": "string", "pattern": r"^0*[1-9][0-9]{0,5}\s?(s|min|h|d)$"}),
]
