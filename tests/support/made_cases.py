"""Escalations for tests of the review store, its handlers and its command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guard.records import Action, Attempt, Decision, Escalation, Prompt, Sampling
from guard.scores import Score, ScoreReading

#: Every score of the made attempts.
SCORES = {
    "guard": ScoreReading(0.75, ("log-probabilities", "activations")),
    "ilis": ScoreReading(0.5, ("signature (last token)",)),
}


def make_escalation(number: int = 0, **changes: Any) -> Escalation:
    """A case that can be told from its number, so that a reader can check that it is whole."""
    decision = Decision(Action.ESCALATE, "rules[1]", "too likely wrong", 0.75)
    attempt = Attempt(
        answer=f"Answer {number} " + "x" * 500,
        source="model",
        score=Score(0.75, calibrated=True, seconds=0.001, scores=SCORES),
        decision=decision,
        prompt_tokens=20,
        completion_tokens=9,
        seconds=0.25,
        sampling=Sampling(temperature=0.7, seed=number),
    )
    failed = replace(attempt, answer=None, score=None, error="The layers were not recorded")
    case = Escalation(
        decision_id=f"decision-{number}",
        question=f"Question {number}?",
        prompt=Prompt.chat(f"Question {number}?", system="Be brief."),
        answer=attempt.answer,
        p_wrong=0.75,
        rule="rules[1]",
        reason="too likely wrong",
        route="medical",
        policy="balanced",
        model="tiny",
        attempts=(failed, attempt),
        metadata={"customer": number},
        created_at=f"2026-01-01T00:00:{number % 60:02d}Z",
    )
    return replace(case, **changes)
