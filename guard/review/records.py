"""Reviews as records, and their conversion from cases to rows and from rows to reviews."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Literal

import sqlalchemy as sa

from guard.errors import InputError, StoreError
from guard.files.stored_text import stored_text
from guard.outcome_export import readings, span_list
from guard.records import Attempt, Escalation, Prompt
from guard.review.answer_signals import kept_tokens, pack_map
from guard.review.span_marks import SpanMark, marks_from_json
from guard.review_terms import PRIORITIES, CaseKind, LateAction, Priority

#: Metadata and messages are cut off at this depth, which also ends cycles.
_DEPTH = 64

#: A reviewer's verdict on the model's own answer.
Draft = Literal["right", "wrong"]


class ReviewStatus(StrEnum):
    """The status of a review."""

    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"


#: Seconds during which a decision can be undone; until then, only reviewers see it.
UNDO_S = 10.0

#: Stored numbers of priorities; the most urgent sorts first.
_RANKS: dict[Priority, int] = {name: rank for rank, name in enumerate(reversed(PRIORITIES))}


@dataclass(frozen=True, slots=True)
class Review:
    """One case and what became of it: an answer that was escalated, or an accepted one that was drawn to be checked.

    Attributes:
        id: six characters, easy to type; ``o`` is read as ``0``, ``i`` and ``l`` as ``1``.
        decision_id: id of the guarded call.
        created_at: when the call escalated; ISO 8601 in UTC, like all times here.
        route: the caller's route, or None.
        policy: the policy's name.
        model: the model's name.
        question: text of the question, for display.
        prompt: the whole prompt.
        answer: the answer that was not accepted; None when generation itself failed.
        p_wrong: its probability of being wrong; None when scoring failed.
        rule: the rule that fired.
        reason: one sentence.
        attempts: all attempts, in order, each with ``answer``, ``source``, ``p_wrong``, ``decides`` (the name of the
            score that it is), ``scores`` (all that the scorer gives, with what each reads), ``spans`` (its lines, list
            items and sentences, each with ``start``, ``end``, ``text``, ``p_wrong`` and ``claim``; None where there
            are none), ``spans_above`` (those above the policy's limit), ``ood_score``, ``calibrated``,
            ``action``, ``rule``, ``reason``, ``prompt_tokens``, ``completion_tokens``, ``seconds``, ``sampling``,
            ``error``, ``finish_reason``, ``reasoning``, ``tokens`` and ``layer_map`` (see
            `guard.review.answer_signals`), and ``instruction`` (added to the prompt of the next attempt).
        metadata: metadata of the caller; values that JSON lacks are stored as text.
        status: pending, or the reviewer's verdict.
        draft: the reviewer's judgement of the model's answer, right or wrong; None while pending, or without an
            answer.
        final_answer: the answer after review, or None.
        reviewer: login name of the reviewer.
        note: note of the reviewer.
        decided_at: time of the decision.
        repeats: number of identical cases that arrived while this one waited; see `guard.review.store.Store.repeats`.
        scorer: digest of the scorer of p_wrong, or None if unknown.
        due_at: due time; None if the case may wait forever.
        priority: ``high``, ``normal`` or ``low``.
        reviews_wanted: 1, or 2 for a second opinion that does not see the first.
        late: the policy's action once the case is late.
        claimed_by, claimed_until: holder and end of the claim; an expired claim has no effect.
        assigned_to: the only person who may claim the case, or None.
        opinions: number of opinions so far, if two are wanted.
        disputed: whether two opinions differ, so that a third person decides.
        final_at: until when the decision can be undone. The caller gets nothing before.
        late_at: when the case was found to be late: the caller has what `late` says, and a decision is a label only.
        kind: ``escalation``, or ``audit`` for an accepted answer that was drawn to be checked: its caller has it.
        certificate: of an audit case, digest of the certificate whose guarantee covers the answer; None without one.
        audit_rate: of an audit case, the share of the accepted answers that was drawn then.
        span_marks: spans of the last attempt's answer that the reviewer called wrong or right.
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
    scorer: str | None
    due_at: str | None
    priority: Priority
    reviews_wanted: int
    late: LateAction | None
    claimed_by: str | None
    claimed_until: str | None
    assigned_to: str | None
    opinions: int
    disputed: bool
    final_at: str | None
    late_at: str | None
    kind: CaseKind
    certificate: str | None
    audit_rate: float | None
    span_marks: tuple[SpanMark, ...] = ()

    def holder(self, at: str) -> str | None:
        """Return the holder of the case at a time, or None.

        Args:
            at: ISO 8601, UTC.
        """
        return self.claimed_by if self.claimed_until is not None and self.claimed_until > at else None

    @property
    def is_blind(self) -> bool:
        """Whether nothing may lead the verdict: of two opinions, or of an audit of what the score let out.

        Then reviewers see neither the score, its parts nor the rule. The verdict would otherwise be the score's.
        """
        two = self.reviews_wanted > 1 and not self.disputed
        return self.status is ReviewStatus.PENDING and (two or self.kind == "audit")


@dataclass(frozen=True, slots=True)
class Repeat:
    """A case identical to a waiting one: same prompt, answer, policy, model and route.

    Attributes:
        decision_id: id of the guarded call.
        created_at, p_wrong, rule, reason, attempts, metadata, due_at, late: as in `Review`.
    """

    decision_id: str
    created_at: str
    p_wrong: float | None
    rule: str
    reason: str
    attempts: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]
    due_at: str | None
    late: LateAction | None


@dataclass(frozen=True, slots=True)
class ReviewEvent:
    """An event in a review's audit trail.

    Attributes:
        at: ISO 8601, UTC.
        who: the reviewer, or ``guard`` for its own actions.
        what: ``added``, ``claimed``, ``released``, ``skipped``, ``assigned``, ``opinion`` (one of two),
            ``withdrawn`` (that opinion), ``approved``, ``edited``, ``rejected``, ``undone`` (that verdict), ``late``.
        draft, final_answer, note: the decision or the opinion, as in `Review`.
        verdict: verdict of an opinion: ``approved``, ``edited`` or ``rejected``.
        whom: the person to whom the case was assigned.
        span_marks: of the decision or the opinion, as in `Review`.
    """

    at: str
    who: str
    what: str
    draft: Draft | None
    final_answer: str | None
    note: str | None
    verdict: str | None
    whom: str | None
    span_marks: tuple[SpanMark, ...] = ()

    def blind(self) -> ReviewEvent:
        """Return the event without the contents of an opinion."""
        if self.what != "opinion":
            return self
        return replace(self, draft=None, final_answer=None, note=None, verdict=None, span_marks=())


#: Columns of a verdict: in the review and in the trail.
VERDICT = {
    "status": "what",
    "reviewer": "who",
    "decided_at": "at",
    "draft": "draft",
    "final_answer": "final_answer",
    "note": "note",
    "span_marks": "span_marks",
}


#: Columns that only the database uses.
_NOT_SHOWN = ("fingerprint", "sort_key", "doubt", "number", "claimed_at")


# -- from cases to rows ------------------------------------------------------------------------


def to_row(escalation: Escalation) -> dict[str, Any]:
    """Return a case as a row of ``reviews``, without the id."""
    prompt, audit = escalation.prompt, escalation.terms.audit
    row = {
        **to_repeat_row(escalation),
        "route": storable_text(escalation.route),
        "policy": storable_text(escalation.policy),
        "model": storable_text(escalation.model),
        "question": storable_text(escalation.question),
        "prompt": _plain(
            {
                "messages": prompt.messages,
                "text": prompt.text,
                "tools": prompt.tools,
                "template_options": prompt.template_options,
                "plain": prompt.plain,
            }
        ),
        "answer": storable_text(escalation.answer),
        "status": ReviewStatus.PENDING.value,
        "scorer": storable_text(escalation.scorer),
        "priority": priority_rank(escalation.terms.priority),
        "reviews_wanted": escalation.terms.reviews,
        "kind": escalation.terms.kind,
        "certificate": audit.certificate if audit else None,
        "audit_rate": audit.rate if audit else None,
    }
    return {**row, **_ordering(row), "fingerprint": _fingerprint(row)}


def _ordering(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns for ordering: cases without a due time come last, the oldest first.

    A case without a score counts as the most doubtful.
    """
    due, p_wrong = row["due_at"], row["p_wrong"]
    return {"sort_key": due or f"none {row['created_at']}", "doubt": 2.0 if p_wrong is None else p_wrong}


def priority_rank(priority: Priority) -> int:
    """Return the stored number of a priority."""
    return _RANKS[priority]


def to_repeat_row(escalation: Escalation) -> dict[str, Any]:
    """Return a case as a row of ``review_repeats``, without the review that it repeats."""
    terms, created_at = escalation.terms, _utc(escalation.created_at)
    late = (terms.late or LateAction()) if terms.within_s is not None and terms.audit is None else None
    return {
        "decision_id": storable_text(escalation.decision_id),
        "created_at": created_at,
        "due_at": None if terms.within_s is None else later(created_at, terms.within_s),
        "late_action": late.action if late else None,
        "late_text": storable_text(late.text) if late else None,
        "p_wrong": None if escalation.p_wrong is None else float(escalation.p_wrong),
        "rule": storable_text(escalation.rule),
        "reason": storable_text(escalation.reason),
        "attempts": [_attempt(attempt) for attempt in escalation.attempts],
        "metadata": _plain(escalation.metadata),
    }


def _fingerprint(row: Mapping[str, Any]) -> str:
    """Return the same for cases that a person would decide in the same way; every audit case counts by itself."""
    same = [row[name] for name in ("prompt", "question", "answer", "policy", "model", "route")]
    if row["kind"] == "audit":
        same.append(row["decision_id"])
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
            "spans": span_list(score.spans) if score else None,
            "spans_above": span_list(decision.spans),
            "ood_score": score.ood_score if score else None,
            "unlike": score.unlike if score else None,
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
            "tokens": kept_tokens(attempt.generation),
            "layer_map": pack_map(score.layer_map if score else None),
            "redirected": attempt.generation.redirected if attempt.generation else None,
            "instruction": getattr(decision.settings, "instruction", None),
        }
    )


# -- from rows to records ----------------------------------------------------------------------


def to_review(row: sa.Row[Any]) -> Review:
    """Return the review of a row, whose verdict must be the one in the trail.

    Raises:
        StoreError: the verdict differs, so one of the two was changed outside guard.
        KeyError, TypeError, ValueError: a column has a form that guard never writes.
    """
    values = dict(row._mapping)
    _check_verdict(values)
    prompt = values.pop("prompt")
    messages = None if prompt["messages"] is None else tuple(prompt["messages"])
    for name in _NOT_SHOWN:
        del values[name]
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
        priority=_priority(values.pop("priority")),
        disputed=bool(values.pop("disputed")),
        late=_late(values),
        span_marks=marks_from_json(values.pop("span_marks")),
        **values,
    )


def to_event(row: sa.Row[Any]) -> ReviewEvent:
    """Return the event of a row of the trail."""
    values = {name: row._mapping[name] for name in ReviewEvent.__dataclass_fields__}
    return ReviewEvent(**{**values, "span_marks": marks_from_json(values["span_marks"])})


def _priority(rank: int) -> Priority:
    return next(name for name, each in _RANKS.items() if each == rank)


def _late(values: dict[str, Any]) -> LateAction | None:
    action, text = values.pop("late_action"), values.pop("late_text")
    return None if action is None else LateAction(action, text)


def _check_verdict(values: dict[str, Any]) -> None:
    """Remove the trail's verdict from the row, and compare it with the review's."""
    kept = {column: values.pop(f"trail_{column}") for column in VERDICT}
    if kept["status"] in (None, "undone"):
        kept = {**dict.fromkeys(kept), "status": ReviewStatus.PENDING.value}
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
    attempts, metadata, late = tuple(values.pop("attempts")), dict(values.pop("metadata")), _late(values)
    return Repeat(attempts=attempts, metadata=metadata, late=late, **values)


def to_labelled_row(review: Review) -> dict[str, Any]:
    """Return a decided review as a row for `guard calibrate`."""
    return {
        "id": review.id,
        **prompt_row(answered_prompt(review)),
        "response": review.answer,
        "label": 0 if review.draft == "right" else 1,
        "model": review.model,
        "policy": review.policy,
        "route": review.route,
        "verdict": review.status.value,
        "better": None if review.final_answer == review.answer else review.final_answer,
        "note": review.note,
        "reviewer": review.reviewer,
        "created_at": review.created_at,
        "kind": review.kind,
        "weight": 1.0 if review.audit_rate is None else 1.0 / review.audit_rate,
    }


def answered_prompt(review: Review) -> Prompt:
    """Return the prompt of the last answer, with the instruction of the retry that led to it, if one is stored."""
    instruction = review.attempts[-2].get("instruction") if len(review.attempts) > 1 else None
    return review.prompt.with_instruction(instruction) if instruction else review.prompt


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as the keys of a labelled row, so that a replay has no other prompt."""
    messages = prompt.messages
    more = {
        "tools": [dict(tool) for tool in prompt.tools],
        "template_options": dict(prompt.template_options),
        "raw": messages is None,
        "control_tokens": messages is None and not prompt.plain,
    }
    asked = prompt.text if messages is None else [dict(message) for message in messages]
    return {"prompt": asked, **{name: value for name, value in more.items() if value}}


# -- values ------------------------------------------------------------------------------------


def _plain(value: Any, depth: int = 0) -> Any:
    """Return the value in JSON types. Other values become text, so that no case is refused for them."""
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
        return {storable_text(_str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes | bytearray):
        return [_plain(item, depth + 1) for item in value]
    return storable_text(_str(value))


def _str(value: Any) -> str:
    """Return the text of a value, or its class name if it has none: the case must not be lost."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - code of others
        return f"<{type(value).__name__}>"


def storable_text(text: str | None) -> str | None:
    """Return a text as every database can hold it; None stays None."""
    return None if text is None else stored_text(text)


def _utc(time: str) -> str:
    """Return a time in the stored form, which sorts as text."""
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError as error:
        raise InputError(f"created_at must be an ISO 8601 time, got {time!r:.60}") from error
    return text_of_time(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))


def text_of_time(time: datetime) -> str:
    """Return a time in that form."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def later(time: str, seconds: float) -> str:
    """Return the time that is a number of seconds later; both in that form."""
    return text_of_time(datetime.fromisoformat(time) + timedelta(seconds=seconds))
