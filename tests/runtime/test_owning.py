"""Who loads an engine or opens a store closes it; what is passed in stays open. Engines load as their scorer needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model, tiny_artefact

import guard.runtime.guard
from guard.errors import ScorerMismatchError
from guard.policy.policy import parse_policy
from guard.records import Action
from guard.review.store import Store
from guard.runtime.guard import Guard
from guard.runtime.sources import Source, find_capture_point
from guard.scoring.scorer import Scorer

REVIEWED = "version: 1\nname: test\nrules: [escalate: {to: review}]"
FALLING_BACK = """
version: 1
name: test
rules: [{accept: {below: 0.3}}, {fallback: {below: 0.9, to: bigger}}, {abstain: {}}]
fallbacks:
  bigger: {model: bigger.gguf, scorer: SCORER}
"""


class Loaders:
    """Loads scripted engines, which record at the given capture point."""

    def __init__(self) -> None:
        self.engines: dict[str, AnsweringEngine] = {}

    def __call__(self, model: str | Path, *, engine: str | None = None, **options: Any) -> AnsweringEngine:
        loaded = AnsweringEngine(lambda prompt, number: ("no", 0.5), model=scripted_model())
        loaded.capture_point = options.get("capture_point", "mlp")
        self.engines[str(model)] = loaded
        return loaded


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loaders:
    loads = Loaders()
    monkeypatch.setattr(guard.runtime.guard, "load_engine", loads)
    return loads


@pytest.fixture
def scorer_file(tmp_path: Path) -> Callable[..., Path]:
    def save(point: Any = "mlp") -> Path:
        file = tmp_path / f"{point}.json"
        Scorer(tiny_artefact(scripted_model(), point)).save(file)
        return file

    return save


def made(**options: Any) -> tuple[Guard, AnsweringEngine]:
    engine = AnsweringEngine(lambda prompt, number: ("no", 0.5))
    return Guard(engine, confidence_scorer(), parse_policy(REVIEWED), **options), engine


def test_an_engine_that_was_passed_in_stays_open(tmp_path: Path) -> None:
    guarded, engine = made(store=tmp_path / "reviews.db")
    with guarded:
        guarded.ask("why?")
    assert engine.closed == 0


def test_a_store_is_closed_by_who_opened_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Store] = []
    monkeypatch.setattr(Store, "close", lambda store: closed.append(store))
    made(store=Store.open(tmp_path / "given.db"))[0].close()
    assert not closed
    guarded, _ = made(store=tmp_path / "reviews.db")
    guarded.close()
    assert [store.place for store in closed] == [str(tmp_path / "reviews.db")]


def test_what_was_loaded_is_closed_once(loader: Loaders, scorer_file: Any) -> None:
    file = scorer_file()
    passed = AnsweringEngine(lambda prompt, number: ("yes", 0.1))
    policy = parse_policy(FALLING_BACK.replace("SCORER", str(file)))
    with Guard.load("model.gguf", scorer=file, policy=policy) as guarded:
        twin = guarded.with_scorer(guarded.scorer)
        twin.close()
        assert [engine.closed for engine in loader.engines.values()] == [0, 0]
    assert {name: engine.closed for name, engine in loader.engines.items()} == {"model.gguf": 1, "bigger.gguf": 1}
    given = {"bigger": Source("bigger", passed, confidence_scorer())}
    with Guard.load("model.gguf", scorer=file, policy=policy, fallbacks=given) as guarded:
        assert guarded.ask("why?").answer == "yes"
    assert passed.closed == 0


def test_what_was_loaded_is_closed_where_loading_fails(loader: Loaders, scorer_file: Any) -> None:
    other = scorer_file("block")
    policy = parse_policy(FALLING_BACK.replace("SCORER", str(other)))
    with pytest.raises(ScorerMismatchError):
        Guard.load("model.gguf", scorer=scorer_file(), policy=policy, engine_options={"capture_point": "block"})
    assert {name: engine.closed for name, engine in loader.engines.items()} == {"model.gguf": 1, "bigger.gguf": 1}


@pytest.mark.parametrize("point", ["mlp", "block"])
def test_each_engine_records_where_its_own_scorer_was_fitted(loader: Loaders, scorer_file: Any, point: Any) -> None:
    other = "block" if point == "mlp" else "mlp"
    policy = parse_policy(FALLING_BACK.replace("SCORER", str(scorer_file(other))))
    with Guard.load("model.gguf", scorer=scorer_file(point), policy=policy) as guarded:
        fallback: Any = guarded.sources["bigger"]
        assert (find_capture_point(guarded.engine), find_capture_point(fallback.engine)) == (point, other)
        outcome = guarded.ask("why?")
    assert outcome.action in set(Action)
    assert all(attempt.score is not None for attempt in outcome.attempts)
