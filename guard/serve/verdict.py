"""The verdict on an answer. It is in the body, the headers and ``refusal``, since clients drop different parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from guard.outcome_export import readings, span_list
from guard.policy.cuts import released_spans
from guard.records import Action, Outcome
from guard.serve.asked import Asked

#: The action of an answer without a policy.
UNGUARDED = "unguarded"


def verdict(outcome: Outcome, asked: Asked) -> dict[str, Any]:
    """Return the object ``guard`` of a response."""
    score = outcome.attempts[-1].score if outcome.attempts else None
    return {
        "action": outcome.action.value,
        "p_wrong": outcome.p_wrong,
        "scores": readings(outcome.scores),
        "spans": span_list(released_spans(outcome)),
        "p_any_wrong": outcome.p_any_wrong,
        "ood_score": outcome.ood_score,
        "unlike": score.unlike if score else None,
        "calibrated": score.calibrated if score else False,
        "rule": outcome.rule,
        "reason": outcome.reason,
        "decision_id": outcome.decision_id,
        "review_id": _review_id(outcome),
        "route": outcome.route,
        "policy": asked.target.guard.policy.name,
        "mode": outcome.mode,
        "would_be": outcome.would_be.action.value if outcome.would_be else None,
        "attempts": len(outcome.attempts),
    }


def verdict_headers(said: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers ``x-guard-*`` of a verdict.

    Examples:
        >>> verdict_headers({"action": "accept", "p_wrong": 0.25, "rule": "règle", "review_id": None})
        {'x-guard-action': 'accept', 'x-guard-p-wrong': '0.25', 'x-guard-rule': 'r%C3%A8gle'}
    """
    names = ("action", "p_wrong", "ood_score", "rule", "decision_id", "review_id", "route", "policy")
    found = {name: said.get(name) for name in names}
    return {f"x-guard-{name.replace('_', '-')}": _header(value) for name, value in found.items() if value is not None}


def _header(value: Any) -> str:
    """Return a value for a header: printable ASCII, the rest percent-encoded."""
    return f"{value:.6g}" if isinstance(value, float) else quote(str(value), safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")


def used_tokens(outcome: Outcome | None) -> tuple[int, int]:
    """Return the prompt tokens and the completion tokens of all attempts; 0 without an outcome."""
    attempts = outcome.attempts if outcome is not None else ()
    return sum(attempt.prompt_tokens for attempt in attempts), sum(attempt.completion_tokens for attempt in attempts)


def _review_id(outcome: Outcome) -> str | None:
    receipt = outcome.receipts.get("review")
    return receipt if isinstance(receipt, str) else None


def is_models(outcome: Outcome) -> bool:
    """Return whether the caller gets the answer of a model or a fallback, and not the policy's own text."""
    return outcome.action in (Action.ACCEPT, Action.FALLBACK) and outcome.answer == outcome.attempts[-1].answer
