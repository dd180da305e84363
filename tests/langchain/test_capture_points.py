"""Engines that LangChain's chat models load record where their scorer was fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, scripted_model, tiny_artefact

from guard.langchain import ChatGuard, GuardMiddleware, close_engines, read_score
from guard.langchain.chat import shared_engines
from guard.policy.policy import parse_policy
from guard.scoring.scorer import Scorer

FALLING_BACK = """
version: 1
name: test
rules: [{accept: {below: 0.3}}, {fallback: {below: 0.9, to: bigger}}, {abstain: {}}]
fallbacks:
  bigger: {model: bigger.gguf, scorer: SCORER}
"""


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The capture point of each engine that was loaded, by model."""
    points: dict[str, str] = {}

    def load(model: str | Path, *, engine: str | None = None, **options: Any) -> AnsweringEngine:
        made = AnsweringEngine(lambda prompt, number: ("yes", 0.1 if "bigger" in str(model) else 0.5))
        made.capture_point = points[str(model)] = options.get("capture_point", "mlp")
        return made

    monkeypatch.setattr(shared_engines, "load_engine", load)
    monkeypatch.setattr(shared_engines, "_engines", {})
    yield points
    close_engines()


@pytest.fixture
def scorer_file(tmp_path: Path) -> Callable[[Any], str]:
    def save(point: Any) -> str:
        file = tmp_path / f"{point}.json"
        Scorer(tiny_artefact(scripted_model(), point)).save(file)
        return str(file)

    return save


@pytest.mark.parametrize("point", ["mlp", "block"])
def test_a_chat_model_records_where_its_scorer_was_fitted(
    loaded: dict[str, str], scorer_file: Callable[[Any], str], point: str
) -> None:
    message = ChatGuard(model="model.gguf", scorer=scorer_file(point)).invoke("why?")
    score = read_score(message)
    assert score is not None
    assert (score.p_wrong, score.calibrated) == (pytest.approx(0.5), True)
    assert loaded == {"model.gguf": point}


@pytest.mark.parametrize("point", ["mlp", "block"])
def test_declared_fallbacks_record_where_their_scorers_were_fitted(
    loaded: dict[str, str], scorer_file: Callable[[Any], str], point: str
) -> None:
    policy = parse_policy(FALLING_BACK.replace("SCORER", scorer_file(point)))
    model = ChatGuard(model="model.gguf", scorer=scorer_file("mlp"), policy=policy)
    assert model.invoke("why?").response_metadata["guard"]["decision"]["action"] == "fallback"
    assert loaded == {"model.gguf": "mlp", "bigger.gguf": point}
    close_engines()
    loaded.clear()
    GuardMiddleware(policy)
    assert loaded == {"bigger.gguf": point}
