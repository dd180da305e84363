"""docs/reference has every option: of each command, and of Python beside the command line, LangChain and the policy."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from guard.policy import json_schema

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_command_lines_reference_has_every_command_and_option() -> None:
    made = runpy.run_path(str(REFERENCE / "list_commands.py"))
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert made["page"](text) == text, "run docs/reference/list_commands.py"
    assert {"### guard ask", "### guard policy check", "### guard review show"} <= set(text.splitlines())


def test_the_list_of_options_is_that_of_the_signatures() -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("lightgbm")
    made = runpy.run_path(str(REFERENCE / "list_options.py"))
    text = (REFERENCE / "options.md").read_text(encoding="utf-8")
    assert made["page"]() == text, "run docs/reference/list_options.py"


def test_an_option_that_one_side_lacks_without_a_reason_fails() -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("lightgbm")
    made = runpy.run_path(str(REFERENCE / "list_options.py"))
    del made["NOT_ON_COMMAND_LINE"]["metadata"]
    with pytest.raises(KeyError, match="metadata"):
        made["page"]()


def test_the_guards_are_compared_option_by_option() -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("lightgbm")
    made = runpy.run_path(str(REFERENCE / "list_options.py"))
    del made["NOT_IN_GUARDS"]["return_outcome"]
    with pytest.raises(KeyError, match="return_outcome"):
        made["page"]()


def _keys(schema: Any) -> set[str]:
    """All keys that a JSON schema knows, at any depth."""
    if isinstance(schema, list):
        return set().union(*map(_keys, schema))
    if not isinstance(schema, dict):
        return set()
    own = schema.get("properties")
    return set().union(own if isinstance(own, dict) else (), *map(_keys, schema.values()))


def test_every_key_of_a_policy_is_on_its_page() -> None:
    keys = _keys(json_schema())
    assert {"below", "raise", "instruction", "max_error_rate"} <= keys
    text = (REFERENCE / "policies.md").read_text(encoding="utf-8")
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", text)] == []
