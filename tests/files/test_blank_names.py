"""A file whose name nobody can see is not written: it is lost in its folder, or committed by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from guard.calibration.kept_answers import KeptAnswers
from guard.cli import app
from guard.errors import InputError
from guard.files.output_file import check_writable
from guard.files.write_whole import replacing, write_whole

BLANK = (" ", "\t", "\u200b", "folder/ ")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    return tmp_path


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", BLANK)
def test_nothing_is_written_under_a_blank_name(here: Path, name: str) -> None:
    with pytest.raises(OSError, match="blank"):
        write_whole(Path(name), "content")
    with pytest.raises(OSError, match="blank"), replacing(Path(name)):
        pass
    with pytest.raises(InputError, match=r"Cannot write the scorer to .*blank"):
        check_writable(Path(name), "scorer")
    with pytest.raises(InputError, match=r"journal's path .* is blank"):
        KeptAnswers(name, {})
    assert files(here) == []


def test_commands_refuse_blank_places(here: Path) -> None:
    runner = CliRunner(env={"GUARD_STORE": "reviews.db", "COLUMNS": "200"})
    exported = runner.invoke(app, ["review", "export", "--out", "  "])
    assert "the name is blank" in f"{exported.output} {exported.exception}"
    begun = runner.invoke(app, ["policy", "init", "strict", "--out", " "])
    assert "the name is blank" in f"{begun.output} {begun.exception}"
    listed = runner.invoke(app, ["review", "list", "--store", "  "])
    assert "is blank" in f"{listed.output} {listed.exception}"
    assert not [name for name in files(here) if not name.startswith("reviews.db")]
