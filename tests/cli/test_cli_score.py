"""``guard score``: rows that cannot be scored, on a tiny model with random weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from scripted import tiny_artefact
from tiny_gguf import write_tiny_gguf
from typer.testing import CliRunner

from guard.cli import app
from guard.engines.llama_cpp import LlamaCppEngine
from guard.scoring.scorer import Scorer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("score")
    model = write_tiny_gguf(folder / "tiny.gguf")
    with LlamaCppEngine.load(model, threads=1) as engine:
        Scorer(tiny_artefact(engine.model)).save(folder / "scorer.json")
    return ["--model", str(model), "--scorer", str(folder / "scorer.json"), "--threads", "1"]


def score(lines: bytes, options: list[str], *, file: Path | None = None) -> tuple[int, list[dict[str, Any]]]:
    if file is not None:
        file.write_bytes(lines)
    done = CliRunner().invoke(app, ["score", str(file or "-"), *options], input=None if file else lines)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()]


GOOD = b'{"id": "good", "prompt": "Hi", "response": "Ho"}'
BAD = [
    b'{"id": NaN, "prompt": "Hi", "response": "Ho"}',
    b'{"id": "\\ud800", "prompt": "Hi", "response": "Ho"}',
    b'{"id": 1, "prompt": "Hi\\udfff", "response": "Ho"}',
    b'{"id": 1e999, "prompt": "Hi", "response": "Ho"}',
    b"not JSON",
    b"[1]",
    b'{"id": 5}',
    b'{"id": 5, "prompt": 3}',
    b'{"id": 5, "prompt": "Hi", "response": 3}',
    b'{"id": 5, "prompt": [], "response": "Ho"}',
    b'{"id": 5, "prompt": [{"role": "user"}], "response": "Ho"}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_said_and_the_rest_is_scored(options: list[str], bad: bytes, tmp_path: Path) -> None:
    code, (first, second, third) = score(b"\n".join([GOOD, bad, GOOD]), options, file=tmp_path / "rows.jsonl")
    assert code == 3
    assert second.keys() == {"id", "error"}
    assert second["error"]
    assert first == third
    assert 0 <= first["p_wrong"] <= 1


def test_a_line_separator_in_a_text_ends_no_row(options: list[str], tmp_path: Path) -> None:
    line = json.dumps({"id": "\u2028\x85", "prompt": "Hi\u2028you", "response": "Ho"}, ensure_ascii=False).encode()
    for content in (line, gzip.compress(line)):
        code, (row,) = score(content, options, file=tmp_path / "rows")
        assert (code, row["id"]) == (0, "\u2028\x85")
