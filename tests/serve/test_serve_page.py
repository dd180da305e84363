"""The commands of docs/how-to/serve.md against ``guard serve`` on the embedded model, and what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text("utf-8")
ADDRESS = "127.0.0.1:8080"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-\d+)?(?![\w.-])")

pytestmark = pytest.mark.model


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def curls() -> list[tuple[str, str]]:
    """The page's commands that use curl, each with what it prints. A command's later lines are indented by four."""
    written = [each for block in blocks("console") for each in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    found = [re.fullmatch(r"([^\n]*\n(?: {4}[^\n]*\n)*)(.*)", each, re.DOTALL) for each in written if "curl" in each]
    return [(each[1], each[2]) for each in found if each is not None]


@pytest.fixture(scope="module")
def address(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server that the page starts, on a port of its own."""
    (first,) = re.findall(r"^\$ guard (serve --model .*) --port 8080$", PAGE, re.MULTILINE)
    command = [sys.executable, "-m", "guard", *first.split(), "--port", "0"]
    store = str(tmp_path_factory.mktemp("page") / "reviews.db")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GUARD_STORE": store}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1].removeprefix("http://")
        finally:
            process.terminate()


def alike(printed: str) -> str:
    """Make ids and digits, which differ, equal, and leave out blanks, at which the page breaks lines."""
    text = NUMBER.sub("1", UUID.sub("ID", printed))
    return re.sub(r"\s", "", re.sub(r"(review-id: )\w+", r"\1ID", text))


def numbers(printed: str) -> list[float]:
    return [float(each) for each in NUMBER.findall(UUID.sub("ID", printed))]


@pytest.mark.parametrize(("command", "expected"), curls())
def test_a_command_prints_what_the_page_shows(address: str, command: str, expected: str, tmp_path: Path) -> None:
    shell = ["bash", "-c", command.replace(ADDRESS, address)]
    printed = subprocess.run(shell, capture_output=True, text=True, timeout=120, cwd=tmp_path).stdout
    assert alike(printed) == alike(expected), printed
    for found, shown in zip(numbers(printed), numbers(expected), strict=True):
        assert found == pytest.approx(shown, rel=0.1, abs=0.05) or found > 1_000_000_000, printed  # a time


def test_the_pages_programs_run(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    for program in blocks("python"):
        exec(compile(program.replace(ADDRESS, address), "serve.md", "exec"), {})  # noqa: S102 - our own text
    assert "Paris" in capsys.readouterr().out


def test_the_page_shows_commands() -> None:
    assert len(curls()) >= 6
