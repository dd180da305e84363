"""Outcomes as plain data for JSON: the form of `Outcome.to_dict` and of ``guard ask --json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


class OutcomeExport:
    """Base of `Outcome` that turns it into plain data."""

    __slots__ = ()

    def to_dict(self: Any) -> dict[str, Any]:
        """Return everything about the call except the prompt, as dicts, lists, texts, numbers, booleans and None.

        The keys are the attributes' names. Of the score, the attempts and ``would_be``:

        - ``ood_score`` and ``scores`` belong to the answer that the decision is about, as ``p_wrong`` does; ``scores``
          has every probability that was computed, by score, with what it reads;
        - ``spans`` has a dict for each span of that answer, before any is cut (``start``, ``end``, ``text``,
          ``p_wrong``, ``claim``), and ``p_any_wrong`` is the probability that any of them is wrong; None where the
          scorer gives none. In ``attempts``, ``spans_above`` has those above the policy's limit;
        - each of ``attempts`` has its score (``p_wrong``, ``decides``: the name of the score that it is, ``scores``,
          ``ood_score``, ``unlike``, ``calibrated``, ``score_seconds``; None without a score), its decision (``action``,
          ``rule``, ``reason``), and its sampling (``temperature``, ``top_p``, ``top_k``, ``seed``) beside its own
          attributes;
        - ``would_be`` is None, or a dict of ``action``, ``rule``, ``reason`` and ``p_wrong``.

        Receipts that are not plain data become texts.
        """
        names = ("answer", "rule", "reason", "p_wrong", "ood_score", "finish_reason", "decision_id", "route", "mode")
        return {
            "action": self.action.value,
            **{name: getattr(self, name) for name in names},
            "scores": readings(self.scores),
            "spans": span_list(self.spans),
            "p_any_wrong": self.p_any_wrong,
            "would_be": _decision(self.would_be) if self.would_be else None,
            "escalated_to": list(self.escalated_to),
            "receipts": _plain(self.receipts),
            "errors": list(self.errors),
            "seconds": self.seconds,
            "reasoning": self.reasoning,
            "attempts": [_attempt(attempt) for attempt in self.attempts],
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict` as JSON text. Characters beyond ASCII are escaped."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def readings(scores: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """Return scores as plain data: by name, each with its ``p_wrong`` and its inputs (``reads``)."""
    return {name: {"p_wrong": each.p_wrong, "reads": list(each.reads)} for name, each in scores.items()}


def span_list(spans: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Return spans as plain data; None where there are none."""
    names = ("start", "end", "text", "p_wrong")
    return (
        spans
        if spans is None
        else [{**{name: getattr(each, name) for name in names}, "claim": list(each.claim)} for each in spans]
    )


def _decision(decision: Any) -> dict[str, Any]:
    return {
        "action": decision.action.value,
        "rule": decision.rule,
        "reason": decision.reason,
        "p_wrong": decision.p_wrong,
    }


def _attempt(attempt: Any) -> dict[str, Any]:
    score, sampling = attempt.score, attempt.sampling
    own = ("answer", "source", "prompt_tokens", "completion_tokens", "seconds", "error", "finish_reason", "reasoning")
    return {
        **{name: getattr(attempt, name) for name in own},
        "redirected": attempt.generation.redirected if attempt.generation else None,
        **{name: getattr(score, name) if score else None for name in ("p_wrong", "ood_score", "unlike", "calibrated")},
        "decides": score.decides if score else None,
        "scores": readings(score.scores) if score else {},
        "spans": span_list(score.spans) if score else None,
        "p_any_wrong": score.p_any_wrong if score else None,
        "spans_above": span_list(attempt.decision.spans),
        "score_seconds": score.seconds if score else None,
        "action": attempt.decision.action.value,
        "rule": attempt.decision.rule,
        "reason": attempt.decision.reason,
        **{name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")},
    }


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a handler's value as plain data; values that JSON cannot represent become texts."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth < 8 and isinstance(value, Mapping):
        return {str(key): _plain(part, depth + 1) for key, part in value.items()}
    if depth < 8 and isinstance(value, list | tuple):
        return [_plain(part, depth + 1) for part in value]
    return str(value)
