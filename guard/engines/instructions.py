"""What the prompt asks of an answer's form: JSON, or a call of a tool. Decoding is not constrained by it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from guard.errors import InputError, did_you_mean


def json_instruction(options: Mapping[str, Any]) -> str | None:
    """Return the instruction for a call's ``response_format``.

    Raises:
        InputError: the format is unknown.
    """
    wanted = options.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_object":
        return "Answer with one JSON object and nothing else."
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), Mapping):
        schema = wanted["json_schema"].get("schema", wanted["json_schema"])
        written = json.dumps(schema, ensure_ascii=False)
        return f"Answer with one JSON object and nothing else. It must follow this JSON Schema:\n{written}"
    raise InputError(
        f"Unknown response_format {wanted!r:.100}", fix="Its type is 'json_object' or 'json_schema', with a schema"
    )


def tool_instruction(choice: str | bool | Mapping[str, Any] | None, names: Sequence[str]) -> str | None:
    """Return the instruction for a ``tool_choice``.

    Raises:
        InputError: it names a tool that was not offered.
    """
    if isinstance(choice, Mapping):
        choice = (choice.get("function") or choice).get("name")
    if choice in (None, False, "auto", "none"):
        return None
    if choice in (True, "any", "required"):
        return "Answer by calling one of the tools." if names else None
    if choice not in names:
        raise InputError(f"tool_choice names '{choice}', which was not offered", fix=did_you_mean(str(choice), names))
    return f"Answer by calling the tool {choice}."
