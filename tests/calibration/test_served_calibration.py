"""From questions asked of a server to a scorer that reads its log-probabilities, by command and in Python."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Listener, serving
from typer.testing import CliRunner

import guard
from guard.cli import app
from guard.errors import ScorerMismatchError
from guard.langchain import ChatGuard, read_score
from guard.scores import SERVED
from guard.scoring.scorer import load_scorer

ROWS = 200


def answers(body: dict[str, Any], number: int) -> tuple[str, float]:
    """Right and sure, or wrong and unsure, with some of each the other way round."""
    asked = body["messages"][-1]["content"]
    draw = random.Random(zlib.crc32(asked.encode()))
    right = draw.random() < 0.5
    unsure = 0.35 + 0.3 * draw.random() if (draw.random() < 0.1) == right else 0.05 + 0.2 * draw.random()
    return ("yes" if right else "no", unsure)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Listener]:
    with serving(answers=answers) as found:
        yield found


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = ({"id": str(n), "question": f"Is {n} fine?", "answers": ["yes"]} for n in range(ROWS))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def scorer(endpoint: Listener, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorer") / "scorer.json"
    guard.calibrate(questions, out=out, model=endpoint.url)
    return out


def test_the_scorer_has_the_score_of_log_probabilities_alone(scorer: Path) -> None:
    artefact = load_scorer(scorer).artefact
    assert [*artefact.scores] == ["log-probabilities"]
    first, *others = artefact.reads("log-probabilities")
    assert first == SERVED
    assert set(others) <= {"margins", "length"}
    assert artefact.metrics["log-probabilities"]["auroc"] > 0.7
    assert artefact.binding.served == "tiny on vLLM, fingerprint fp_1, top 20 log-probabilities"
    assert artefact.ood_detector is None


def test_every_built_in_policy_decides_by_it(scorer: Path, endpoint: Listener) -> None:
    for policy in ("strict", "balanced", "permissive", "shadow"):
        with guard.Guard.load(
            endpoint.url, scorer=scorer, policy=policy, handlers={"review": lambda case: None}
        ) as own:
            attempt = own.ask("Is 1 fine?").attempts[0]
            assert attempt.score is not None, attempt.error
            assert (attempt.score.decides, attempt.score.calibrated) == ("log-probabilities", True)
    with pytest.raises(guard.GuardError, match="'ilis'"):
        guard.Guard.load(endpoint.url, scorer=scorer, policy="ilis")


def test_records_of_a_served_model_give_the_same_scorer(
    scorer: Path, endpoint: Listener, questions: Path, tmp_path: Path
) -> None:
    guard.record(questions, out=tmp_path / "answers.parquet", model=endpoint.url)
    guard.calibrate_records(tmp_path / "answers.parquet", out=tmp_path / "again.json")
    again, first = load_scorer(tmp_path / "again.json").artefact, load_scorer(scorer).artefact
    assert again.scores == first.scores
    assert again.binding == first.binding


def test_evaluate_says_that_there_are_no_layers(endpoint: Listener, questions: Path, tmp_path: Path) -> None:
    guard.record(questions, out=tmp_path / "answers.parquet", model=endpoint.url)
    with pytest.raises(guard.GuardError, match="shows no layers"):
        guard.evaluate([tmp_path / "answers.parquet"], out=tmp_path / "report.html")


def test_the_scorer_does_not_fit_a_local_model(scorer: Path) -> None:
    from scripted import AnsweringEngine

    with pytest.raises(ScorerMismatchError, match="engine: fitted on openai"):
        guard.Guard(AnsweringEngine(lambda prompt, number: ("a", 0.1)), load_scorer(scorer), "permissive")


def test_the_command_line_asks_a_served_model(scorer: Path, endpoint: Listener, tmp_path: Path) -> None:
    run = CliRunner()
    asked = ["ask", "Is 1 fine?", "--model", endpoint.url, "--policy", "shadow", "--json"]
    found = run.invoke(app, [*asked, "--scorer", str(scorer)])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["attempts"][0]["decides"] == "log-probabilities"
    named = ["--model", "tiny", "--engine", "openai", "--base-url", endpoint.url, "--top-logprobs", "20"]
    assert run.invoke(app, ["ask", "Is 1 fine?", *named, "--scorer", str(scorer), "--policy", "shadow"]).exit_code == 0
    look = run.invoke(app, ["ask", "Is 1 fine?", "--model", endpoint.url])
    assert look.exit_code == 3, look.output  # there is no scorer
    assert "uncalibrated" in look.output
    report = run.invoke(app, ["doctor", "--model", endpoint.url, "--scorer", str(scorer), "--json"])
    checks = {each["name"]: each for each in json.loads(report.stdout)["checks"]}
    assert checks["model"]["detail"] == "tiny on vLLM, fingerprint fp_1, top 20 log-probabilities"
    assert checks["scorer"]["ok"] is True
    assert checks["answer"]["ok"] is True


async def test_langchain_uses_a_served_model(scorer: Path, endpoint: Listener) -> None:
    chat = ChatGuard(model=endpoint.url, scorer=str(scorer))
    for message in (chat.invoke("Is 1 fine?"), await chat.ainvoke("Is 1 fine?")):
        scored = read_score(message)
        assert scored is not None
        assert (scored.decides, scored.p_wrong is not None) == ("log-probabilities", True)
    pieces = [chunk.text for chunk in chat.stream("Is 1 fine?")]
    assert "".join(pieces) in ("yes", "no")
    decided = ChatGuard(model=endpoint.url, scorer=str(scorer), policy="shadow")
    assert decided.invoke("Is 1 fine?").text in ("yes", "no")
