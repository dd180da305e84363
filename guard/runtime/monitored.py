"""Steps of a guarded call that watch its guarantee: find the policy in force, and draw audit cases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from guard.policy.policy import Policy
from guard.records import Action, Escalation
from guard.runtime.call_state import CallState
from guard.runtime.steps import Step, Steps

if TYPE_CHECKING:
    from guard.monitoring.acceptance import AcceptanceMonitor
    from guard.review.store import Store


def audits(policy: Policy) -> bool:
    """Return whether a policy audits accepted answers; in shadow mode nothing goes to people."""
    return policy.mode == "enforce" and any(plan.audit for plan in policy.plans.values())


def find_monitor(policy: Policy, find_store: Callable[[], Store]) -> AcceptanceMonitor | None:
    """Return the monitor of a policy; None if it has no audits.

    Args:
        policy: the policy, with the thresholds of its certificates.
        find_store: opens the store; called only if needed.

    Raises:
        StoreError: the store failed.
    """
    if not audits(policy):
        return None
    from guard.monitoring.acceptance import AcceptanceMonitor

    return AcceptanceMonitor(find_store(), policy)


def watch_step(monitor: AcceptanceMonitor | None, state: CallState) -> Steps[None]:
    """Switch a call to the policy in force: a suspended certificate accepts nothing.

    Raises:
        StoreError: the store cannot be read; the caller gets no answer.
    """
    if monitor is None:
        return
    look = monitor.current_policy
    state.policy = (yield Step(look, partial(asyncio.to_thread, look))) if monitor.is_stale else look()


def audit_steps(
    monitor: AcceptanceMonitor | None, state: CallState, find_case: Callable[[], Escalation]
) -> Steps[None]:
    """Count a call's input, and put an accepted answer that is drawn into the review queue.

    Args:
        monitor: None does nothing.
        state: of the call, decided.
        find_case: returns the call as a reviewer gets it.

    Raises:
        StoreError: the store cannot be written; the caller gets no answer.
    """
    if monitor is None or state.shadow:
        return
    plan, score = state.policy.plan(state.route), state.attempts[0].score
    if monitor.note_input(plan, state.decision_id, score.ood_score if score else None):
        yield Step(monitor.write_inputs, partial(asyncio.to_thread, monitor.write_inputs))
    if state.decision.action is Action.ACCEPT and monitor.draws(plan, state.decision_id):
        add = partial(monitor.add, plan, find_case())
        yield Step(add, partial(asyncio.to_thread, add))
