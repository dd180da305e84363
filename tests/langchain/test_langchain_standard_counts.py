"""The counts of LangChain's standard suites in docs/how-to/langchain.md are those of a run."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "how-to" / "langchain.md"
#: Tests of the unit suite that return at once where a model has no tools; the document does not count them.
EMPTY = 2

#: The suites of other versions have other tests.
pytestmark = pytest.mark.skipif(
    not version("langchain-tests").startswith("1.1."), reason="the documented counts are those of langchain-tests 1.1"
)


def documented(model: str) -> tuple[int, ...]:
    """Return the counts in a row of the document's table: passed, skipped, failed."""
    (row,) = re.findall(rf"^\| {re.escape(model)}[^|]*\|([\d |]+)\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return tuple(int(cell) for cell in row.split("|"))


def counted(file: str, chosen: str) -> tuple[int, ...]:
    """Run a part of the suites in a process of its own and return its counts."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / file, "-k", chosen]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=280)
    last = done.stdout.splitlines()[-1]
    found = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped|failed|error)", last)}
    return tuple(found.get(word, 0) for word in ("passed", "skipped", "failed"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        ("a scripted model with tools, objects by JSON Schema", "TestUnitWithTools or TestIntegrationWithTools"),
        ("the same, objects by a tool call (integration suite)", "TestIntegrationByCalls"),
    ],
)
def test_the_counts_of_a_model_with_tools_are_the_documents(model: str, chosen: str) -> None:
    assert counted("test_langchain_standard_tools.py", chosen) == documented(model)


def test_the_counts_of_the_embedded_model_add_up_to_what_is_collected() -> None:
    """The tests themselves run in test_langchain_standard.py, where they need the model."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, FOLDER / "test_langchain_standard.py"], cwd=FOLDER.parents[1], capture_output=True, text=True
    )
    collected = sum("::" in line for line in done.stdout.splitlines())
    assert sum(documented("SmolLM2-135M, no tools")) == collected - 2 * EMPTY, "two engines"
