"""What a long command says of how far it is."""

from __future__ import annotations

import pytest

from guard.cli import progress
from guard.cli.progress import ProgressBars
from guard.data.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; tests set it."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_in_a_log_there_is_a_line_a_minute_and_one_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBars() as report:
        for clock[0], done in ((0.0, 0), (59.0, 1), (61.0, 2), (62.0, 3), (63.0, 4)):
            report(Progress("asking", done, 4))
        report(Progress("[within]", 1, 9))
    out, err = capsys.readouterr()
    assert err.splitlines() == ["asking: 0 of 4", "asking: 2 of 4", "asking: 4 of 4", "[within]: 1 of 9"]
    assert not out, "standard output is for results"


def test_on_a_terminal_there_are_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with ProgressBars() as report:
        report(Progress("asking", 3, 4))
        report(Progress("asking", 4, 4))
    err = capsys.readouterr().err
    assert "4/4" in err
    assert "of 4" not in err
