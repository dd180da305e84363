"""The messages on the troubleshooting page are the code's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "troubleshooting.md"
QUOTED = re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def template(node: ast.AST) -> str | None:
    """A string of the code, with … for each value that is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def templates() -> Iterator[str]:
    """First arguments of all calls in the package: what messages are made from."""
    for file in (ROOT / "guard").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and (text := template(node.args[0])):
                yield text


@pytest.fixture(scope="module")
def messages() -> set[str]:
    return set(templates())


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_code(quoted: str, messages: set[str]) -> None:
    assert quoted in messages


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) > 30
    assert len(set(QUOTED)) == len(QUOTED)
