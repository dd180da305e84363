"""Reads the JSON of an answer strictly: one complete text, no duplicate keys, no NaN, no half characters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

_FENCES = (re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE), re.compile(r"```json\s(.*)", re.DOTALL))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


#: Parses JSON strictly: no duplicate keys, no NaN and no infinity in any notation.
DECODER = json.JSONDecoder(
    strict=False, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
)


def json_text(answer: str) -> str | None:
    """Return the one JSON text of an answer, without a code fence and the words around it; None where it is not that.

    Examples:
        >>> json_text('Here it is: ```json {"dose": 150} ```')
        '{"dose": 150}'
        >>> json_text('{"dose": 15') is None
        True
    """
    for candidate in _candidates(answer):
        try:
            _loads(candidate)
        except (ValueError, RecursionError):
            continue
        return candidate.strip()
    return None


def _candidates(text: str) -> Iterator[str]:
    yield text
    for fence in _FENCES:
        match = fence.search(text)
        # JSON beside the fence is another answer: "Not ```json {...}```, but {...}".
        if match and "{" not in text[: match.start()] + text[match.end() :]:
            yield match.group(1)


def _loads(text: str) -> Any:
    value = DECODER.decode(text)
    json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    return value
