"""Outcomes as plain data: complete, and JSON whatever a handler returned."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import date
from typing import Any

import pytest

from guard.records import Action, Attempt, Decision, Outcome, Sampling
from guard.scores import Score, ScoreReading

DECISION = Decision(Action.ESCALATE, "doubtful", "p_wrong 0.6 is not below 0.5", 0.6)
SCORES = {
    "guard": ScoreReading(0.6, ("log-probabilities", "activations")),
    "ilis": ScoreReading(0.5, ("signature (last token)",)),
}
PLAIN_SCORES = {
    "guard": {"p_wrong": 0.6, "reads": ["log-probabilities", "activations"]},
    "ilis": {"p_wrong": 0.5, "reads": ["signature (last token)"]},
}
SCORE = Score(p_wrong=0.6, calibrated=True, seconds=0.001, ood_score=0.97, scores=SCORES)
ATTEMPT = Attempt(
    answer="Rome",
    source="model",
    score=SCORE,
    decision=DECISION,
    prompt_tokens=7,
    completion_tokens=2,
    seconds=0.1,
    sampling=Sampling(temperature=0.5, seed=3),
    finish_reason="stop",
    reasoning="Italy",
)
OUTCOME = Outcome(
    answer=None,
    action=Action.ESCALATE,
    rule="doubtful",
    reason="p_wrong 0.6 is not below 0.5",
    p_wrong=0.6,
    decision_id="a1",
    route="money",
    mode="enforce",
    would_be=None,
    attempts=(ATTEMPT,),
    escalated_to=("review",),
    errors=("late",),
    seconds=0.2,
    receipts={"review": 12},
)


def test_an_outcome_as_a_dict() -> None:
    assert OUTCOME.to_dict() == {
        "action": "escalate",
        "answer": None,
        "rule": "doubtful",
        "reason": "p_wrong 0.6 is not below 0.5",
        "p_wrong": 0.6,
        "ood_score": 0.97,
        "scores": PLAIN_SCORES,
        "spans": None,
        "p_any_wrong": None,
        "finish_reason": "stop",
        "decision_id": "a1",
        "route": "money",
        "mode": "enforce",
        "would_be": None,
        "escalated_to": ["review"],
        "receipts": {"review": 12},
        "errors": ["late"],
        "seconds": 0.2,
        "reasoning": None,
        "attempts": [
            {
                "answer": "Rome",
                "source": "model",
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "seconds": 0.1,
                "error": None,
                "finish_reason": "stop",
                "reasoning": "Italy",
                "redirected": None,
                "p_wrong": 0.6,
                "ood_score": 0.97,
                "decides": "guard",
                "scores": PLAIN_SCORES,
                "spans": None,
                "p_any_wrong": None,
                "spans_above": [],
                "unlike": None,
                "calibrated": True,
                "score_seconds": 0.001,
                "action": "escalate",
                "rule": "doubtful",
                "reason": "p_wrong 0.6 is not below 0.5",
                "temperature": 0.5,
                "top_p": 1.0,
                "top_k": 0,
                "seed": 3,
            }
        ],
    }


def test_json_is_the_dict() -> None:
    assert json.loads(OUTCOME.to_json()) == OUTCOME.to_dict() == json.loads(OUTCOME.to_json(indent=2))


def test_nothing_is_left_out() -> None:
    """A new attribute must be exported; the parts of an attempt have keys of their own."""
    assert {field.name for field in fields(Outcome)} <= set(OUTCOME.to_dict())
    attempt = OUTCOME.to_dict()["attempts"][0]
    assert {field.name for field in fields(Attempt)} - {"score", "decision", "sampling", "generation"} <= set(attempt)
    assert {field.name for field in fields(Sampling)} <= set(attempt)
    assert {field.name for field in fields(Score)} - {"seconds", "layer_map"} <= set(attempt)  # no numbers for people


def test_shadow_mode_has_the_decision_and_an_attempt_without_score_has_none() -> None:
    shadow = replace(OUTCOME, would_be=DECISION, attempts=(replace(ATTEMPT, score=None, error="no layers"),)).to_dict()
    assert shadow["would_be"] == {"action": "escalate", "rule": "doubtful", "reason": DECISION.reason, "p_wrong": 0.6}
    assert (shadow["ood_score"], shadow["attempts"][0]["p_wrong"], shadow["attempts"][0]["error"]) == (
        *(None, None),
        "no layers",
    )


@pytest.mark.parametrize(
    ("receipt", "written"),
    [
        ({"id": [1, (2.5, None)]}, {"id": [1, [2.5, None]]}),
        (date(2026, 11, 25), "2026-11-25"),
        (float("nan"), "nan"),
        ({7: b"x"}, {"7": "b'x'"}),
    ],
)
def test_receipts_are_plain_data(receipt: Any, written: Any) -> None:
    outcome = replace(OUTCOME, receipts={"ticket": receipt})
    assert json.loads(outcome.to_json())["receipts"] == {"ticket": written}


def test_receipts_may_contain_themselves() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert isinstance(replace(OUTCOME, receipts={"ticket": endless}).to_json(), str)


def test_the_ood_score_is_that_of_the_last_attempt() -> None:
    earlier = replace(ATTEMPT, score=replace(SCORE, ood_score=0.1))
    assert replace(OUTCOME, attempts=(earlier, ATTEMPT)).ood_score == 0.97
    assert replace(OUTCOME, attempts=()).ood_score is None
