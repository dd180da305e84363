"""docs/reference has every option: of each command, and of Python beside the command line, LangChain and the policy."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

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
