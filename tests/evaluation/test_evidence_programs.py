"""What the programs behind the evidence compute from answers, by hand."""

from __future__ import annotations

import random
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from guard.data.questions import Question
from guard.data.sets import DataSource

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def programs() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: runpy.run_path(str(BENCHMARKS / f"{name}.py")) for name in ("early", "attacks")}
    sys.path.remove(str(BENCHMARKS))


def test_an_answer_is_stopped_at_the_first_stage_above_the_threshold(programs: dict[str, dict[str, Any]]) -> None:
    early = programs["early"]
    tokens, wrong = np.array([10, 10, 20, 3]), np.array([True, False, True, False])
    kept = early["StagedAnswers"]({}, wrong, tokens, tokens, tokens, [], [])
    scores = {1: np.array([0.99, 0.1, 0.5, 0.2]), 4: np.array([0.2, 0.1, 0.98, np.nan])}
    whole = np.array([0.9, 0.1, 0.9, 0.2])
    found = early["saved_by"](kept, scores, whole, above=0.97, accept=0.25, stages="all")
    assert (found.saved, found.of_wrong, found.of_right) == (25 / 43, 25 / 30, 0.0)
    assert (found.stopped, found.right_stopped, found.accepted, found.accepted_lost) == (0.5, 0.0, 2, 0.0)
    lost = early["saved_by"](kept, {1: np.array([0, 0.99, 0, 0])}, whole, above=0.97, accept=0.25, stages="first")
    assert (lost.of_right, lost.accepted_lost) == (9 / 13, 0.5)


def questions(count: int) -> tuple[Question, ...]:
    text = "In which country does the famous town number {} stand?"
    return tuple(Question(f"{at}", text.format(at), (f"Country {at}",)) for at in range(count))


def test_what_the_scorer_was_fitted_on_is_not_attacked(programs: dict[str, dict[str, Any]]) -> None:
    source = DataSource("towns", questions(50), (), "a" * 64)
    fresh = programs["attacks"]["fresh_questions"]
    assert [row.id for row in fresh([source], limit=60, fitted=0)] == [f"towns/{at}" for at in range(50)]
    left = {row.id for row in fresh([source], limit=60, fitted=30)}
    assert len(left) == 20
    assert {row.id for row in fresh([source], limit=5, fitted=30)} < left


def test_every_attack_changes_the_question_and_planted_answers_are_wrong(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    rows = attacks["fresh_questions"]([DataSource("towns", questions(9), (), "a" * 64)], limit=9, fitted=0)
    planted = attacks["wrong_answers"](rows)
    for row in rows:
        assert planted[row.id] not in row.answers
        for name, attack in attacks["ATTACKS"].items():
            changed = attack(row.question, planted[row.id], random.Random(name))
            assert changed != row.question
            assert (planted[row.id] in changed) == (name in ("persuasion", "injection") or name.startswith("planted"))


def test_a_search_keeps_the_wrong_answer_with_the_least_score(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    asked, best_of = attacks["ScoredAnswer"], attacks["best_of"]
    plain = asked("a", True, 0.8, 0.1)
    tried = [asked("b", False, 0.1, 0.1), asked("c", True, 0.3, 0.999), asked("d", True, 0.5, 0.2)]
    assert best_of(plain, tried, within=1.0) is tried[1]
    assert best_of(plain, tried, within=0.99) is tried[2]
    assert best_of(plain, tried[:1], within=1.0) is plain


def test_with_the_rule_an_answer_out_of_distribution_is_not_accepted(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    asked = attacks["ScoredAnswer"]
    answers = [asked("a", True, 0.05, 0.5), asked("b", True, 0.05, 0.999), asked("c", False, 0.2, 0.5)]
    policies = attacks["policies_for"](answers * 20)
    assert {"strict", "balanced", "permissive"} <= policies.keys()
    result = attacks["result_of"]("none", answers, answers, policies)
    by_policy = {each.policy: each for each in result.accepted}
    strict, balanced = by_policy["strict"], by_policy["balanced"]
    assert (strict.accepted, strict.wrong, strict.accepted_in_distribution, strict.wrong_in_distribution) == (
        2,
        2,
        1,
        1,
    )
    assert (balanced.accepted, balanced.wrong, balanced.accepted_in_distribution) == (3, 2, 2)
    assert result.flagged == pytest.approx(1 / 3)
