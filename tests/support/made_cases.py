"""Escalations for tests of the review store, its handlers and its command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from guard.records import Action, Attempt, Decision, Escalation, Generation, Prompt, Sampling
from guard.scores import Score, ScoreReading, Span

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


#: An answer of three spans, with their places.
SPANNED = "Norway:\n- Capital: Bergen\n- Founded: 1040"
PLACES = ((0, 7), (10, 25), (28, 41))


def make_spanned(number: int = 0, **changes: Any) -> Escalation:
    """A case whose last attempt has scored spans and tokens; the second is above the policy's limit."""
    case = make_escalation(number, answer=SPANNED)
    spans = tuple(
        Span(start, end, SPANNED[start:end], p_wrong, (SPANNED[start:end],))
        for (start, end), p_wrong in zip(PLACES, (0.1, 0.9, 0.3), strict=True)
    )
    ends = np.arange(1, len(SPANNED) + 1, dtype=np.int32)
    logprobs = np.full(len(ends), -0.1, np.float32)
    offsets = np.stack([ends - 1, ends], axis=1)
    kept = Generation(SPANNED, tuple(ends.tolist()), logprobs, logprobs, logprobs, 3, "stop", Sampling(), 0, 0)
    last = case.attempts[-1]
    assert last.score is not None
    attempt = replace(
        last,
        answer=SPANNED,
        score=replace(last.score, spans=spans),
        decision=replace(last.decision, spans=spans[1:2]),
        generation=replace(kept, offsets=offsets),
    )
    return replace(case, **{"attempts": (attempt,), **changes})


#: What a score says of an answer beyond its bound.
UNLIKE = "it has 40 tokens, those of the calibration at most 32"


def make_long(number: int = 0, **changes: Any) -> Escalation:
    """A case of two attempts: one that was cut, and one with spans that is longer than those of the calibration."""
    case = make_spanned(number)
    (last,) = case.attempts
    assert last.score is not None
    whole = replace(last, finish_reason="stop", score=replace(last.score, ood_score=1.0, unlike=UNLIKE))
    cut = replace(last, answer="Norway:\n- Cap", finish_reason="length", score=replace(last.score, spans=None))
    return replace(case, **{"attempts": (cut, whole), **changes})
