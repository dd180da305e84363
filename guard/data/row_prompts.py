"""The prompt of a row with a given response, as ``guard review export`` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from guard.data.row_values import (
    BadValueError,
    optional,
    read_filled_text,
    read_mapping,
    read_mappings,
    read_prompt,
    read_truth,
    required,
)
from guard.records import Prompt

#: Keys of a prompt in a row.
PROMPT_KEYS = ("prompt", "tools", "template_options", "raw", "control_tokens")


def read_row_prompt(row: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a row: ``prompt`` with ``tools`` and ``template_options``, or a ``raw`` text.

    Raises:
        BadValueError: a key of it is missing, or has a wrong value.
    """
    return replace(
        _raw_prompt(row) or required(row, "prompt", read_prompt, PROMPT_KEYS),
        tools=optional(row, "tools", read_mappings) or (),
        template_options=optional(row, "template_options", read_mapping) or {},
    )


def _raw_prompt(row: Mapping[str, Any]) -> Prompt | None:
    """Return the prompt of a row that is put without the chat template; None for others."""
    raw, control = (optional(row, key, read_truth) or False for key in ("raw", "control_tokens"))
    if not raw:
        if control:
            raise BadValueError("has 'control_tokens' without 'raw'; contents of messages never have any")
        return None
    text = required(row, "prompt", read_filled_text, PROMPT_KEYS)
    if row.get("tools") or row.get("template_options"):
        raise BadValueError("has 'raw' with 'tools' or 'template_options', which only a chat template reads")
    return Prompt.raw(text, plain=not control)
