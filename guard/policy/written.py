"""A policy document as YAML in one layout, whatever its file looks like: for the audit log and for comparisons.

PyYAML's own writer would break a rule over several lines once one of its settings is a list, and show characters that
change the direction of text as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Texts (and durations) that need no quotation marks, apart from the words that YAML takes for something else.
_PLAIN = re.compile(r"[A-Za-z](?:[\w -]*\w)?|[0-9]+(?:s|min|h|d)", re.ASCII)
_NOT_TEXT = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def write_document(values: Mapping[str, Any]) -> str:
    """Return a document as YAML: one line for each rule and each setting.

    Args:
        values: plain data with names as keys, in the order of the lines.

    Examples:
        >>> print(write_document({"name": "mine", "rules": [{"accept": {"below": 0.3}}, {"abstain": {}}]}))
        name: mine
        rules:
          - accept: {below: 0.3}
          - abstain
    """
    return "\n".join(_lines(values, ""))


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in values.items():
        key = f"{indent}{_flow(name)}:"
        if _is_rules(value):
            yield key
            yield from (f"{indent}  - {_rule(each)}" for each in value)
        elif isinstance(value, Mapping) and any(_has_lines(each) for each in value.values()):
            yield key
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{key} {_flow(value)}"


def _has_lines(value: Any) -> bool:
    return (isinstance(value, Mapping) and bool(value)) or _is_rules(value)


def _is_rules(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) and len(each) == 1 for each in value)
    )


def _rule(rule: Mapping[str, Any]) -> str:
    ((action, settings),) = rule.items()
    return _flow(action) if settings == {} else f"{_flow(action)}: {_flow(settings)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_flow(name)}: {_flow(each)}' for name, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if not isinstance(value, str):
        # YAML takes 1e-05 for a text.
        return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))
    return value if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT else _quoted(value)


def _quoted(text: str) -> str:
    """Return a text in quotation marks, with what cannot be seen as codes."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08X}" for each in shown)
