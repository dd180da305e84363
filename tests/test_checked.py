"""Numbers are checked where they are set: a truth value, a text or a fraction is no seed and no limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripted import AnsweringEngine, confidence_scorer

from guard.certification.fixed_sequence import Trials, find_threshold
from guard.data.questions import Question, read_rows, split_questions
from guard.errors import InputError
from guard.evaluation.evaluate import EvaluationPlan
from guard.policy.policy import InvalidPolicyError, parse_policy
from guard.records import Limits, Sampling
from guard.runtime.guard import Guard

BAD_SEEDS: list[Any] = [-1, 1.5, 1.0, "7", True, False, float("nan"), [1], np.float64(1), 2**63]
TRIALS = Trials.from_scores(np.linspace(0.01, 0.99, 30), np.arange(30) > 20)
ROWS = [Question(id=str(number), question=str(number), answers=("x",)) for number in range(9)]


def chat(**settings: Any) -> Any:
    from guard.langchain import ChatGuard

    engine = AnsweringEngine(lambda prompt, number: ("42", 0.1))
    return ChatGuard(engine=engine, scorer=confidence_scorer(), **settings)


@pytest.mark.parametrize("seed", BAD_SEEDS)
@pytest.mark.parametrize(
    "made",
    [
        lambda seed: Sampling(0.5, seed=seed),
        lambda seed: chat(temperature=0.5, seed=seed),
        lambda seed: chat(temperature=0.5).invoke("q", seed=seed),
        lambda seed: find_threshold(TRIALS, risk=0.5, confidence=0.5, seed=seed),
        lambda seed: EvaluationPlan(seed=seed),
        lambda seed: split_questions(ROWS, seed=seed, shares={"a": 0.5, "b": 0.5}),
        lambda seed: read_rows("nowhere.jsonl", seed=seed),
    ],
    ids=["Sampling", "ChatGuard", "a call", "certify", "evaluate", "split", "read"],
)
def test_a_seed_that_is_none_is_refused_where_it_is_set(made: Callable[[Any], Any], seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be"):
        made(seed)


@pytest.mark.parametrize("seed", ["-1", "1.5", '"7"', "true", "4294967296", "seven"])
def test_a_policy_with_such_a_seed_is_refused(seed: str) -> None:
    with pytest.raises(InvalidPolicyError, match=r"retry\.seed must be"):
        parse_policy(f"version: 1\nname: t\nrules: [{{retry: {{below: 0.5, seed: {seed}}}}}, abstain]")


def test_a_seed_that_is_one_is_taken() -> None:
    assert Sampling(0.5, seed=np.int64(7)).seed == 7  # type: ignore[arg-type]
    assert type(Sampling(0.5, seed=np.int64(7)).seed) is int  # type: ignore[arg-type]
    assert Sampling(0.5, seed=0).seed == 0
    assert Sampling(0.5, seed=2**32 + 19).seed == 2**32 + 19, "the last of many retries"
    assert chat(temperature=0.5, seed=7).invoke("q").response_metadata["guard"]["sampling"]["seed"] == 7


@pytest.mark.parametrize("value", ["1", True, None, float("nan"), float("inf"), [0.5]])
def test_other_settings_must_be_numbers_too(value: Any) -> None:
    for name in ("temperature", "top_p"):
        with pytest.raises(InputError, match=f"{name} must be"):
            Sampling(**{name: value})
    for name, kind in (("top_k", Sampling), ("max_tokens", Limits)):
        with pytest.raises(InputError, match=f"{name} must be"):
            kind(**{name: value})
    if value is not None:
        with pytest.raises(InputError, match="timeout_s must be"):
            Limits(timeout_s=value)
        for name in ("temperature", "top_p", "top_k", "max_tokens", "timeout"):
            with pytest.raises(InputError, match=f"{name}.* must be"):
                chat(**{name: value})


def test_one_stop_string_is_not_taken_for_its_characters() -> None:
    with pytest.raises(InputError, match="stop must be a tuple"):
        Limits(stop="ab")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="stop must be a tuple"):
        chat().invoke("q", stop="ab")


def test_a_score_of_a_sampled_answer_is_not_called_calibrated() -> None:
    rules = "rules: [{accept: {below: 0.1}}, {retry: {below: 0.9, temperature: 0.5}}, {abstain: {}}]"
    policy = parse_policy(f"version: 1\nname: t\n{rules}")
    guard = Guard(AnsweringEngine(lambda prompt, number: ("42", 0.5)), confidence_scorer(), policy)
    first, second = guard.ask("q").attempts
    assert first.score is not None
    assert second.score is not None
    assert (first.score.calibrated, second.score.calibrated) == (True, False)
    assert guard.score("q", "42").calibrated
    assert chat().invoke("q").response_metadata["guard"]["calibrated"] is True
    assert chat(temperature=0.5).invoke("q").response_metadata["guard"]["calibrated"] is False
