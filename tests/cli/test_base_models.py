"""Models without a chat template on the command line: calibrated, asked, certified, checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from documented_json import differences, documented
from scripted import tiny_artefact
from tiny_gguf import write_tiny_gguf
from typer.testing import CliRunner

from guard.cli import app
from guard.data.prompts import completion_prompt
from guard.data.questions import Question
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import CalibrationError, GuardError, InputError, ScorerError
from guard.runtime.guard import Guard
from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer, load_scorer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("base") / "base.gguf", template=None)


@pytest.fixture(scope="module")
def scorer(model: Path) -> Path:
    path = model.with_name("scorer.json")
    with LlamaCppEngine.load(model, threads=1) as engine:
        artefact = tiny_artefact(engine.model)
    prompting = Prompting(system="", max_tokens=4, completion=True)
    Scorer(artefact.model_copy(update={"prompting": prompting})).save(path)
    return path


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*arguments, "--threads", "1"])
    if isinstance(done.exception, GuardError):
        raise done.exception
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def rows(folder: Path, count: int) -> str:
    path = folder / "rows.jsonl"
    lines = (json.dumps({"id": f"{at}", "question": f"Is {at}?", "answers": ["a"]}) for at in range(count))
    path.write_text("\n".join(lines))
    return str(path)


def test_a_base_model_is_asked_by_a_text(model: Path, scorer: Path) -> None:
    code, shown = run("ask", "Is 1?", "--model", str(model), "--scorer", str(scorer), "--policy", "shadow", "--json")
    assert code == 0
    assert json.loads(shown)["p_wrong"] is not None
    with Guard.load(model, scorer=scorer, policy="shadow", engine_options={"threads": 1}) as guard:
        assert guard.to_prompt("Is 1?") == completion_prompt(Question("1", "Is 1?", ("a",)))
        assert guard.limits.stop == ("\n",)


def test_how_a_base_model_is_asked_is_kept_with_its_scorer(scorer: Path) -> None:
    assert load_scorer(scorer).artefact.prompting.completion


def test_a_base_model_is_put_through_calibration(model: Path, tmp_path: Path) -> None:
    """A model of noise is never right, so that there is nothing to fit: but all questions were asked."""
    data = rows(tmp_path, 130)
    options = ["--data", data, "--out", str(tmp_path / "s.json"), "--model", str(model), "--max-tokens", "2"]
    with pytest.raises(CalibrationError, match="Too few labels"):
        run("calibrate", *options)
    with pytest.raises(InputError, match="no system message"):
        run("calibrate", *options, "--system", "Be brief.")


def test_a_base_model_is_certified(model: Path, scorer: Path, tmp_path: Path) -> None:
    options = ["--data", rows(tmp_path, 20), "--out", str(tmp_path / "c.json"), "--policy", "certified"]
    code, shown = run("certify", *options, "--model", str(model), "--scorer", str(scorer), "--json")
    assert (code, json.loads(shown)["certified"]) == (12, False)


def test_doctor_says_what_a_base_model_lacks(model: Path) -> None:
    _, shown = run("doctor", "--model", str(model), "--json")
    assert not differences(json.loads(shown), documented("guard doctor --json"))
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    assert "base model" in checks["chat template"]["detail"]


def test_a_run_that_fails_before_its_first_row_leaves_no_journal(tmp_path: Path) -> None:
    refusing = write_tiny_gguf(tmp_path / "refusing.gguf", template="{{ raise_exception('no') }}")
    options = ["--data", rows(tmp_path, 130), "--out", str(tmp_path / "s.json"), "--model", str(refusing)]
    with pytest.raises(GuardError, match="refuses the messages"):
        run("calibrate", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refusing.gguf", "rows.jsonl"]


def test_a_model_without_a_scorer_gives_a_first_look_that_is_no_acceptance(model: Path) -> None:
    code, shown = run("ask", "Is 1?", "--model", str(model), "--max-tokens", "4")
    assert code == 3, "a program must not take the answer for an accepted one"
    assert "uncalibrated: there is no scorer for this model" in shown
    code, printed = run("ask", "Is 1?", "--model", str(model), "--max-tokens", "4", "--json")
    look = json.loads(printed)
    assert (code, look["p_wrong"], look["calibrated"]) == (3, None, False)
    assert look["least_logprob"] <= look["mean_logprob"] <= 0 <= look["mean_entropy"] <= look["greatest_entropy"]
    assert look["scorers"] == []


def test_a_first_look_names_the_scorer_on_the_shelf_and_does_not_use_it(
    model: Path, scorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_SCORERS", str(tmp_path))
    shutil.copy(scorer, tmp_path / "noise.json")
    code, shown = run("ask", "Is 1?", "--model", str(model), "--max-tokens", "4")
    assert code == 3
    assert "On the shelf, fitted on this very model: --scorer noise" in " ".join(shown.split())
    code, printed = run("ask", "Is 1?", "--model", str(model), "--max-tokens", "4", "--json")
    look = json.loads(printed)
    assert (code, look["p_wrong"], look["scorers"]) == (3, None, ["noise"])
    _, checked = run("doctor", "--model", str(model), "--json")
    details = {check["name"]: check["detail"] for check in json.loads(checked)["checks"]}
    assert details["scorer"] == "none given; on the shelf, fitted on this model: noise"


@pytest.mark.parametrize(
    "option", [["--policy", "strict"], ["--policy", "balanced"], ["--route", "medical"], ["--audit-log"]]
)
def test_no_policy_takes_a_first_look_for_a_probability(
    model: Path, option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_STORE", str(tmp_path / "reviews.db"))
    with pytest.raises(ScorerError, match=r"There is no scorer for .* None on the shelf was fitted on this model"):
        run("ask", "Is 1?", "--model", str(model), *option)


def test_a_policy_without_a_scorer_names_the_one_that_fits_and_no_other(
    model: Path, scorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_SCORERS", str(tmp_path))
    shutil.copy(scorer, tmp_path / "noise.json")
    with pytest.raises(ScorerError) as caught:
        run("ask", "Is 1?", "--model", str(model), "--policy", "strict")
    assert "--scorer noise. " in caught.value.fix
    assert "smollm2" not in caught.value.fix
    assert "scorers check" not in caught.value.fix
