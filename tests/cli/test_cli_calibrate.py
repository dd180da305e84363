"""``guard calibrate``: what is said before anything is asked, and what is said at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from typer.testing import CliRunner

from guard.calibration.at_thresholds import AtThreshold
from guard.calibration.scorer_fit import FittedScorer, check_enough_rows
from guard.cli import app
from guard.cli.calibrate import _gain_line, _print_thresholds, _threshold_facts
from guard.data.questions import Question
from guard.errors import CalibrationError, InputError
from guard.scoring.metrics import BrierGain


def questions(count: int) -> list[Question]:
    return [Question(f"{at}", f"Question number {at}?", ("yes",)) for at in range(count)]


def test_too_few_rows_are_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    """There is no such model, and nothing is left behind."""
    data = tmp_path / "few.jsonl"
    data.write_text("".join(json.dumps({"question": f"Question {at}?", "answers": ["a"]}) + "\n" for at in range(20)))
    options = ["--data", str(data), "--out", str(tmp_path / "scorer.json"), "--model", str(tmp_path / "none.gguf")]
    done = CliRunner().invoke(app, ["calibrate", *options])
    assert isinstance(done.exception, CalibrationError), done.output
    assert "20 questions are too few to fit and test a scorer" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["few.jsonl"]


def test_a_missing_extra_is_named_before_anything_is_done(tmp_path: Path) -> None:
    """After ``make demo`` this is what is missing."""
    program = "import sys; sys.modules['lightgbm'] = None; from guard.cli import main; main()"
    options = ["calibrate", "--data", "none.jsonl", "--out", "scorer.json"]
    run = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 4, run.stderr
    assert "pip install 'ilis-guard[calibrate]'" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--records", "a.parquet", "--data", "b.jsonl"], "--data does not go with --records"),
        (["--records", "a.parquet", "--max-tokens", "8"], "--max-tokens does not go with --records"),
        (["--records", "a.parquet", "--threads", "1"], "--threads does not go with --records"),
        (["--records", "a.parquet", "--grader", "text"], "--grader does not go with --records"),
        ([], "There is nothing to fit on"),
        (["--records", "none.parquet"], "There is no file"),
    ],
)
def test_what_recorded_answers_exclude_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["calibrate", *options, "--out", str(tmp_path / "scorer.json")])
    assert isinstance(done.exception, InputError), done.output
    assert said in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_enough_rows_pass() -> None:
    check_enough_rows(questions(150), seed=0)
    for count in (1, 20, 59):
        with pytest.raises(CalibrationError, match=f"{count} questions are too few"):
            check_enough_rows(questions(count), seed=0)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (BrierGain(0.02, 0.01, 0.03), "significantly better (+0.020, 95 % interval +0.010 to +0.030"),
        (BrierGain(-0.02, -0.03, -0.01), "significantly worse (-0.020"),
        (BrierGain(-0.01, -0.03, 0.01), "no significant difference (-0.010"),
    ],
)
def test_noise_is_called_noise(gain: BrierGain, said: str) -> None:
    assert said in _gain_line(gain)


def test_thresholds_are_shown_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    _print_thresholds([AtThreshold(0.05, 0, 0, 50), AtThreshold(0.2, 20, 1, 50)])
    shown = capsys.readouterr().out
    assert "on 50 answers" in shown
    assert "0: 0% (0% to 7%)" in shown
    assert "20: 40% (26% to 55%)" in shown
    assert "1: 5% (<1% to 25%)" in shown
    assert "95 % intervals" in shown
    assert "guard certify" in shown
    assert {"thresholds", "brier_gain"} <= set(FittedScorer.__dataclass_fields__)


@pytest.mark.parametrize("columns", [60, 80])
def test_the_table_of_thresholds_fits(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands of answers, each row is still one line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [AtThreshold(0.05, 0, 0, 1580), AtThreshold(0.2, 163, 4, 1580), AtThreshold(0.5, 1422, 1180.25, 1580)]
    _print_thresholds(rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    (last,) = (" ".join(line.split()) for line in lines if line.strip().startswith("0.5"))
    assert last == "0.5 1422: 90% (88% to 91%) 1180.25: 83% (81% to 85%)"


def test_json_has_both_shares_with_their_intervals() -> None:
    found = json.loads(json.dumps(_threshold_facts(AtThreshold(0.2, 20, 1, 50))))
    assert (found["below"], found["accepted"], found["wrong"], found["n"]) == (0.2, 20, 1, 50)
    assert found["coverage"] == pytest.approx([0.4, 0.2641, 0.5482], abs=1e-4)
    assert found["error_rate"] == pytest.approx([0.05, 0.0013, 0.2487], abs=1e-4)
    assert _threshold_facts(AtThreshold(0.05, 0, 0, 50))["error_rate"] is None
