"""Decisions in the audit log: each is written before it is carried out, so that no answer is without an entry."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from guard.errors import InputError
from guard.policy.defects import find_defects
from guard.records import Attempt, Escalation
from guard.runtime.call_state import CallState
from guard.runtime.steps import Step, Steps
from guard.scores import Score

if TYPE_CHECKING:
    from guard.audit.log import AuditLog
    from guard.policy.policy import Policy


def log_decision(log: AuditLog | None, state: CallState, find_case: Callable[[], Escalation]) -> Steps[None]:
    """Write the last decision of a call to the log, if there is one.

    Args:
        log: None writes nothing.
        state: of the call.
        find_case: returns the call as a reviewer would get it.

    Raises:
        StoreError: the log cannot be written; the caller gets no answer.
    """
    if log is None:
        return
    case = find_case()
    append = partial(log.append, "decision", case.decision_id, _fields(state, case), texts=_texts(case))
    yield Step(append, partial(asyncio.to_thread, append))


def log_policy(log: AuditLog | None, policy: Policy) -> None:
    """Write to the log which policy decides from now on, unless its last entry about this policy says the same.

    Raises:
        InputError: it is no log.
        StoreError: the log cannot be written.
    """
    if log is None:
        return
    from guard.audit.log import AuditLog

    if not isinstance(log, AuditLog):
        raise InputError(f"audit_log must be an AuditLog, got {type(log).__name__}", fix="Pass store.audit_log()")
    thresholds = {route or "default": _thresholds(policy, route) for route in policy.plans}
    fields = {
        "policy_sha256": policy.sha256,
        "mode": policy.mode,
        "score": policy.score,
        "thresholds": thresholds,
        "document": policy.document,
    }
    log.append_changed("policy", f"policy {policy.name}", fields)


def _fields(state: CallState, case: Escalation) -> dict[str, Any]:
    last = state.attempts[-1]
    return {
        **{name: getattr(case, name) for name in ("route", "policy", "model", "rule", "p_wrong")},
        "policy_sha256": state.policy.sha256,
        "mode": state.policy.mode,
        "action": last.decision.action.value,
        "source": last.source,
        "attempts": len(state.attempts),
        "finish_reason": last.finish_reason,
        "tokens": state.tokens_used,
        "failed": last.error is not None,
        **_score(last.score),
        "tried": [_tried(attempt, state.policy) for attempt in state.attempts],
    }


def _tried(attempt: Attempt, policy: Policy) -> dict[str, Any]:
    """Return what another policy would need to decide an attempt again."""
    score = attempt.score
    scores = _score(score)["scores"]
    defects = () if attempt.answer is None else find_defects(attempt.answer, attempt.finish_reason)
    return {
        "source": attempt.source,
        "scores": scores if score is None else {**scores, policy.score: score.p_wrong},
        "ood_score": score.ood_score if score else None,
        "failed": attempt.error is not None,
        "defects": list(defects),
    }


def _score(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"scores": {}, "ood_score": None, "calibrated": None}
    scores = {name: each.p_wrong for name, each in score.scores.items()}
    return {"scores": scores, "ood_score": score.ood_score, "calibrated": score.calibrated}


def _texts(case: Escalation) -> dict[str, str | None]:
    return {"question": case.question, "answer": case.answer, "reason": case.reason}


def _thresholds(policy: Policy, route: str | None) -> list[float | None]:
    return [None if rule.below == math.inf else rule.below for rule in policy.plan(route).rules]
