"""Reviews as records: what the queue's rows mean, and how a case becomes a row and a row a review."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Any, Literal

import sqlalchemy as sa

from guard.errors import InputError, StoreError
from guard.outcome_export import readings
from guard.records import Attempt, Escalation, Prompt

#: Metadata and messages that nest deeper are cut off here; this also ends a cycle.
_DEPTH = 64

#: A reviewer's verdict on the model's own answer.
Draft = Literal["right", "wrong"]


class ReviewStatus(StrEnum):
    """Where a review stands."""

    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Review:
    """One escalated case and what became of it.

    Attributes:
        id: six characters, easy to type; ``o`` is read as ``0``, ``i`` and ``l`` as ``1``.
        decision_id: the guarded call that it came from.
        created_at: when that call escalated; ISO 8601, UTC, as all times here.
        route: the caller's route, or None.
        policy: the policy's name.
        model: the model's name.
        question: the question's text, for people.
        prompt: the whole prompt.
        answer: the answer that was not accepted; None when generation itself failed.
        p_wrong: its probability of being wrong; None when scoring failed.
        rule: the rule that fired.
        reason: one sentence.
        attempts: all attempts, in order, each with ``answer``, ``source``, ``p_wrong``, ``decides`` (the name of the
            score that it is), ``scores`` (all that the scorer gives, with what each reads), ``calibrated``,
            ``action``, ``rule``, ``reason``, ``prompt_tokens``, ``completion_tokens``, ``seconds``, ``sampling``,
            ``error``, ``finish_reason``.
        metadata: what the caller attached; values that JSON lacks are kept as their text.
        status: pending, or what the reviewer decided.
        draft: whether the model's answer was right or wrong, as the reviewer says; None while
            pending, and where there was no answer.
        final_answer: the answer that the reviewer lets stand, or None.
        reviewer: who decided.
        note: the reviewer's note.
        decided_at: when.
        repeats: how many identical cases came in while this one waited; see `guard.review.store.Store.repeats`.
    """

    id: str
    decision_id: str
    created_at: str
    route: str | None
    policy: str
    model: str
    question: str
    prompt: Prompt
    answer: str | None
    p_wrong: float | None
    rule: str
    reason: str
    attempts: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]
    status: ReviewStatus
    draft: Draft | None
    final_answer: str | None
    reviewer: str | None
    note: str | None
    decided_at: str | None
    repeats: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """A case like one that waits already: same prompt, answer, policy, model and route.

    Attributes:
        decision_id: the guarded call that it came from.
        created_at, p_wrong, rule, reason, attempts, metadata: as in `Review`.
    """

    decision_id: str
    created_at: str
    p_wrong: float | None
    rule: str
    reason: str
    attempts: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReviewEvent:
    """One line of a review's audit trail.

    Attributes:
        at: ISO 8601, UTC.
        who: the reviewer; ``guard`` where the escalation itself added the case.
        what: ``added``, ``approved``, ``edited`` or ``rejected``.
        draft, final_answer, note: the decision, as in `Review`.
    """

    at: str
    who: str
    what: str
    draft: Draft | None
    final_answer: str | None
    note: str | None


#: What a verdict consists of: the column of the review, and that of the trail.
VERDICT = {
    "status": "what",
    "reviewer": "who",
    "decided_at": "at",
    "draft": "draft",
    "final_answer": "final_answer",
    "note": "note",
}


# -- from cases to rows ------------------------------------------------------------------------


def to_row(escalation: Escalation) -> dict[str, Any]:
    """Return a case as a row of ``reviews``, without the id."""
    prompt = escalation.prompt
    row = {
        **to_repeat_row(escalation),
        "route": text_of(escalation.route),
        "policy": text_of(escalation.policy),
        "model": text_of(escalation.model),
        "question": text_of(escalation.question),
        "prompt": _plain(
            {
                "messages": prompt.messages,
                "text": prompt.text,
                "tools": prompt.tools,
                "template_options": prompt.template_options,
                "plain": prompt.plain,
            }
        ),
        "answer": text_of(escalation.answer),
        "status": ReviewStatus.PENDING.value,
    }
    return {**row, "fingerprint": _fingerprint(row)}


def to_repeat_row(escalation: Escalation) -> dict[str, Any]:
    """Return a case as a row of ``review_repeats``, without the review that it repeats."""
    return {
        "decision_id": text_of(escalation.decision_id),
        "created_at": _utc(escalation.created_at),
        "p_wrong": None if escalation.p_wrong is None else float(escalation.p_wrong),
        "rule": text_of(escalation.rule),
        "reason": text_of(escalation.reason),
        "attempts": [_attempt(attempt) for attempt in escalation.attempts],
        "metadata": _plain(escalation.metadata),
    }


def _fingerprint(row: Mapping[str, Any]) -> str:
    """Return the same for cases that a person would decide in the same way."""
    same = [row[name] for name in ("prompt", "question", "answer", "policy", "model", "route")]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _attempt(attempt: Attempt) -> Any:
    score, decision, sampling = attempt.score, attempt.decision, attempt.sampling
    return _plain(
        {
            "answer": attempt.answer,
            "source": attempt.source,
            "p_wrong": score.p_wrong if score else None,
            "decides": score.decides if score else None,
            "scores": readings(score.scores) if score else {},
            "calibrated": score.calibrated if score else None,
            "action": decision.action,
            "rule": decision.rule,
            "reason": decision.reason,
            "prompt_tokens": attempt.prompt_tokens,
            "completion_tokens": attempt.completion_tokens,
            "seconds": attempt.seconds,
            "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")},
            "error": attempt.error,
            "finish_reason": attempt.finish_reason,
            "reasoning": attempt.reasoning,
            "redirected": attempt.generation.redirected if attempt.generation else None,
        }
    )


# -- from rows to records ----------------------------------------------------------------------


def to_review(row: sa.Row[Any]) -> Review:
    """Return the review of a row, whose verdict must be the one in the trail.

    Raises:
        StoreError: it is not: somebody has changed one of the two past guard.
        KeyError, TypeError, ValueError: a column has a form that guard does not give it.
    """
    values = dict(row._mapping)
    _check_verdict(values)
    prompt = values.pop("prompt")
    messages = None if prompt["messages"] is None else tuple(prompt["messages"])
    del values["fingerprint"]
    return Review(
        prompt=Prompt(
            messages,
            prompt["text"],
            tuple(prompt["tools"]),
            prompt.get("template_options") or {},
            plain=prompt.get("plain", False),
        ),
        attempts=tuple(values.pop("attempts")),
        metadata=dict(values.pop("metadata")),
        status=ReviewStatus(values.pop("status")),
        **values,
    )


def _check_verdict(values: dict[str, Any]) -> None:
    """Compare, and take out of the row, what the trail says of the verdict."""
    kept = {column: values.pop(f"trail_{column}") for column in VERDICT}
    if kept["status"] is None:
        kept["status"] = ReviewStatus.PENDING.value
    if any(values[column] != said for column, said in kept.items()):
        raise StoreError(
            f"The verdict of review {values['id']} is not the one in its audit trail",
            why=f"the review says '{values['status']}' by {values['reviewer']}, the trail '{kept['status']}' "
            f"by {kept['reviewer']}; one of them was changed past guard",
            fix="Find out who changed the database, and restore it from a backup",
        )


def to_repeat(row: sa.Row[Any]) -> Repeat:
    """Return the record of a row of ``review_repeats``."""
    values = dict(row._mapping)
    del values["review_id"]
    return Repeat(attempts=tuple(values.pop("attempts")), metadata=dict(values.pop("metadata")), **values)


def to_labelled_row(review: Review) -> dict[str, Any]:
    """Return a decided review as a row for `guard calibrate`."""
    messages = review.prompt.messages
    row: dict[str, Any] = {
        "id": review.id,
        "prompt": review.prompt.text if messages is None else [dict(message) for message in messages],
        "response": review.answer,
        "label": 0 if review.draft == "right" else 1,
        "model": review.model,
        "policy": review.policy,
        "route": review.route,
        "verdict": review.status.value,
        "better": None if review.final_answer == review.answer else review.final_answer,
        "note": review.note,
        "reviewer": review.reviewer,
    }
    # Without these, replaying such a case would be another prompt.
    more = {
        "tools": [dict(tool) for tool in review.prompt.tools],
        "template_options": dict(review.prompt.template_options),
        "raw": messages is None,
        "control_tokens": messages is None and not review.prompt.plain,
    }
    return row | {name: value for name, value in more.items() if value}


# -- values ------------------------------------------------------------------------------------


def _plain(value: Any, depth: int = 0) -> Any:
    """Return the value in JSON's types; what JSON lacks becomes its text, so that no case is refused for it."""
    if value is None or isinstance(value, bool):
        return value
    if depth > _DEPTH:
        return "..."
    if isinstance(value, Enum):
        return _plain(value.value, depth + 1)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {text_of(_str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes | bytearray):
        return [_plain(item, depth + 1) for item in value]
    return text_of(_str(value))


def _str(value: Any) -> str:
    """Return a value's text, or its class where it has none: the case is worth more than a detail of it."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - code of others
        return f"<{type(value).__name__}>"


def text_of(text: str | None) -> str | None:
    """Text that every database can hold: no lone surrogates (UTF-8) and no NUL (PostgreSQL)."""
    if text is None:
        return None
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _utc(time: str) -> str:
    """One form for all times, so that their text sorts as they do."""
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError as error:
        raise InputError(f"created_at must be an ISO 8601 time, got {time!r:.60}") from error
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="microseconds")


def now() -> str:
    """Return the present time in that form."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def case_event(review: Review) -> dict[str, Any]:
    """Return a case as an event of the audit log; arguments of `guard.audit.log.AuditLog.append`."""
    names = ("route", "policy", "model", "p_wrong", "rule", "created_at")
    fields = {name: getattr(review, name) for name in names}
    texts = {"question": review.question, "prompt": _prompt_json(review.prompt), "answer": review.answer}
    return {"subject": review.decision_id, "fields": {**fields, "review_id": review.id}, "texts": texts}


def verdict_event(review: Review) -> dict[str, Any]:
    """Return a verdict as an event of the audit log; arguments of `guard.audit.log.AuditLog.append`."""
    names = ("draft", "reviewer", "decided_at")
    fields = {name: getattr(review, name) for name in names}
    return {
        "subject": review.decision_id,
        "fields": {**fields, "review_id": review.id, "status": review.status.value},
        "texts": {"answer": review.answer, "final_answer": review.final_answer, "note": review.note},
    }


def _prompt_json(prompt: Prompt) -> str:
    parts = {"messages": prompt.messages, "text": prompt.text, "tools": prompt.tools}
    return json.dumps(parts, sort_keys=True, default=str)
