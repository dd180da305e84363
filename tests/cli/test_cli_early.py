"""Early decisions at the command line: what guard ask shows of an answer that was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model, with_early
from typer.testing import CliRunner, Result

import guard.engines
import guard.runtime.guard
from guard.cli import app

LONG = "It is Lyon, as everybody knows"
POLICY = (
    "version: 1\nname: mine\nrules: [{accept: {below: 0.99}}, {abstain: {text: No.}}]\n"
    "early: {above: 0.8, then: {abstain: {text: Stopped.}}}\n"
)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run guard ask with that policy on an engine that is likely to be wrong."""
    engine = AnsweringEngine(lambda prompt, number: (LONG, 0.9), model=scripted_model(name="m.gguf"))
    for module in (guard.engines, guard.runtime.guard):
        monkeypatch.setattr(module, "load_engine", lambda model, **options: engine)
    with_early(confidence_scorer()).save(tmp_path / "scorer.json")
    (tmp_path / "policy.yaml").write_text(POLICY)

    def run(*options: str) -> Result:
        files = ["--scorer", str(tmp_path / "scorer.json"), "--policy", str(tmp_path / "policy.yaml")]
        return CliRunner().invoke(app, ["ask", "Why?", "--model", "m.gguf", *files, "--max-tokens", "60", *options])

    return run


def test_the_policys_text_stands_in_place_of_the_stopped_answer(ask: Callable[..., Result]) -> None:
    found = ask()
    assert found.output.splitlines()[0] == "Stopped."
    assert "rule: early" in found.output
    assert LONG[:3] not in found.output


def test_json_says_how_it_ended_and_why(ask: Callable[..., Result]) -> None:
    found = ask("--json")
    said = json.loads(found.stdout)
    assert (said["answer"], said["action"], said["rule"], said["finish_reason"]) == (
        "Stopped.",
        "abstain",
        "early",
        "early",
    )
    assert "after 2 tokens p_wrong is 0.9, above 0.8" in said["reason"]
    assert found.exit_code == ask().exit_code != 0
