"""The simulation behind docs/evidence/watch.md, in small: alarm, new certificate, guarantee restored."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "watched_guarantees.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("watched_guarantees", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def test_a_world_that_changes_half_way_is_noticed_and_the_guarantee_restored(simulation: ModuleType) -> None:
    stories = [simulation.live(0.2, number) for number in range(12)]
    assert sum(story.early for story in stories) <= 1
    noticed = [story for story in stories if story.delay is not None]
    assert len(noticed) >= 10
    renewed = [story for story in noticed if story.renewed]
    assert len(renewed) >= 6
    assert all(story.wrong["unnoticed"] > 0.1 for story in noticed)
    assert sum(story.wrong["after"] <= simulation.RISK for story in renewed) >= 0.8 * len(renewed)


def test_the_tables_can_be_made(simulation: ModuleType) -> None:
    for table in (simulation.change_table, simulation.shift_table, simulation.story_table):
        lines = list(table(2))
        assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_with_recorded_answers_the_change_is_noticed_and_the_guarantee_restored(simulation: ModuleType) -> None:
    *_, world = simulation.recorded_worlds(simulation.SCORES)
    stories = [simulation.live(0.2, number, world=world) for number in range(8)]
    noticed = [story for story in stories if story.delay is not None]
    assert len(noticed) >= 6
    assert all(story.wrong["before"] < world.risk < story.wrong["unnoticed"] for story in noticed)
    renewed = [story for story in noticed if story.renewed]
    assert len(renewed) >= 5
    assert sum(story.wrong["after"] <= world.risk for story in renewed) >= 0.8 * len(renewed)


def test_recorded_answers_become_wrong_more_often_by_the_odds_that_are_stated(simulation: ModuleType) -> None:
    world, *_ = simulation.recorded_worlds(simulation.SCORES)
    usual, harder = (
        world.draw(np.random.default_rng(0), 50_000, each)[1].mean() for each in (0.0, simulation.HARDER_RECORDED)
    )
    assert harder / (1 - harder) == pytest.approx(4 * usual / (1 - usual), rel=0.1)
