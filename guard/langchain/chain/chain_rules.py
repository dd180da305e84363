"""The rules of a guarded chain: what every call of it is decided by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import Runnable
from langchain_core.runnables.base import coerce_to_runnable

from guard.audit.log import AuditLog
from guard.langchain.attempts.trusted_fallbacks import fallback_steps, trusted_names
from guard.monitoring.acceptance import AcceptanceMonitor
from guard.policy.policy import Calls, Policy
from guard.records import Outcome
from guard.review.handlers import Handler
from guard.runtime.sources import missing_fallback


@dataclass(frozen=True, slots=True)
class ChainRules:
    """The settings of a guarded chain, shared by all its calls.

    Attributes:
        runnable: the chain.
        policy: decides.
        route: section of the policy, or None.
        join: which scores of a chain's model calls decide.
        fallbacks: runnables by the names of the policy, as the caller gave them.
        handlers: returns the escalation handlers by name; the first call that needs the review queue opens it.
        handler_timeout_s: deadline of each handler, in seconds.
        output: makes the output that replaces a rejected answer; None for the policy's text.
        return_outcome: whether the caller gets a `GuardedOutcome` in place of the output.
        audit_log: gets every decision; None keeps none.
        monitor: returns what draws audit cases, or None; the first call that needs it opens the store.
    """

    runnable: Runnable[Any, Any]
    policy: Policy
    route: str | None
    join: Calls
    fallbacks: Mapping[str, Any]
    handlers: Callable[[], Mapping[str, Handler]]
    handler_timeout_s: float
    output: Callable[[Outcome], Any] | None
    return_outcome: bool
    audit_log: AuditLog | None
    monitor: Callable[[], AcceptanceMonitor | None]

    def fallback(self, name: str) -> Runnable[Any, Any]:
        """Return a fallback by its name in the policy.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.fallbacks:
            declared = name in self.policy.fallbacks
            why = "an engine that a policy declares cannot replace a chain" if declared else ""
            fix = "Pass a runnable of that name in fallbacks="
            raise missing_fallback(self.policy, name, self.fallbacks, why=why, fix=fix)
        runnable: Runnable[Any, Any] = coerce_to_runnable(fallback_steps(self.fallbacks)[name])
        return runnable

    def trusts(self, name: str) -> bool:
        """Return whether a fallback's answer is final without a score."""
        return name in trusted_names(self.fallbacks)
