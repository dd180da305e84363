"""Monitoring of accepted answers: look up certificates, count inputs, and send a few answers to people.

A guard has one monitor where its policy has an ``audit`` section. A failure of the store fails the call: a guarantee
that nobody can watch is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace

from guard.monitoring.certificate_watch import CertificateWatch
from guard.monitoring.sampling import hash_share, is_drawn
from guard.policy.guarantee import suspend
from guard.policy.policy import Policy
from guard.policy.rules import RoutePlan
from guard.records import Escalation
from guard.review.store import Store
from guard.review_terms import AuditDraw, ReviewTerms

#: Seconds between two looks at which certificates are suspended, and between two at the evidence.
STATE_S, EVIDENCE_S = 1.0, 10.0

#: The evidence is read less often where that takes long: it may take this share of the time.
_SHARE_OF_TIME = 0.02

#: Scores of inputs are kept in memory until there is this number of them, or for this number of seconds.
_BATCH, _BATCH_S = 50, 10.0

_log = logging.getLogger("guard.monitoring")


@dataclass(slots=True)
class _Inputs:
    """Scores of inputs on their way to the store."""

    scores: list[tuple[float, float]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        return len(self.scores) >= _BATCH or time.monotonic() - self.since >= _BATCH_S


class AcceptanceMonitor:
    """Watches the certificates of one policy and draws its audit cases. Safe under threads."""

    def __init__(
        self, store: Store, policy: Policy, *, state_s: float = STATE_S, evidence_s: float = EVIDENCE_S
    ) -> None:
        """
        Args:
            store: store for the audit cases; the caller closes it.
            policy: the policy, with the thresholds of its certificates.
            state_s: seconds for which the known state of certificates is reused.
            evidence_s: seconds between two reads of the evidence.

        Raises:
            StoreError: the store failed.
        """
        self.store = store
        self._policy = policy
        self._watch = CertificateWatch(store)
        self._key = self._watch.sampling_key()
        self._ids = self._watch.begin(policy) if policy.mode == "enforce" else ()
        self._state_s, self._evidence_s = state_s, evidence_s
        self._mutex = threading.Lock()
        self._current = policy
        self._state_at = self._evidence_at = -float("inf")
        self._inputs: defaultdict[str, _Inputs] = defaultdict(_Inputs)

    @property
    def is_stale(self) -> bool:
        """Whether `current_policy` would read the store."""
        return bool(self._ids) and time.monotonic() >= self._state_at + self._state_s

    def current_policy(self) -> Policy:
        """Return the policy, with those routes closed whose certificate is suspended.

        Raises:
            StoreError: the store failed; accept no answer on the previous state.
        """
        with self._mutex:
            if self.is_stale:
                self._look()
            return self._current

    def _look(self) -> None:
        began = time.monotonic()
        if began >= self._evidence_at:
            self._watch.refresh(self._ids)
            took = time.monotonic() - began
            self._evidence_at = began + self._evidence_s * max(1.0, took / (_SHARE_OF_TIME * EVIDENCE_S))
        self._current = suspend(self._policy, self._watch.suspended(self._ids))
        self._state_at = time.monotonic()

    # -- accepted answers ----------------------------------------------------------------------

    def draws(self, plan: RoutePlan, decision_id: str) -> bool:
        """Return whether an accepted answer is drawn as an audit case."""
        return plan.audit is not None and is_drawn(self._key, decision_id, plan.audit.rate)

    def add(self, plan: RoutePlan, case: Escalation) -> str:
        """Put an accepted answer into the review queue; it is on disk when this returns.

        Args:
            plan: that accepted it, with an ``audit`` section.
            case: the call.

        Returns:
            The review's id.

        Raises:
            StoreError: it could not be written.
        """
        assert plan.audit is not None
        rule = plan.certified
        draw = AuditDraw(plan.audit.rate, rule.certificate if rule else None)
        terms = ReviewTerms(within_s=plan.audit.within, priority=plan.audit.priority, audit=draw)
        return self.store.add(replace(case, terms=terms)).id

    # -- inputs --------------------------------------------------------------------------------

    def note_input(self, plan: RoutePlan, decision_id: str, ood_score: float | None) -> bool:
        """Count an input in the label-free test; return whether `write_inputs` is due."""
        rule = plan.certified
        if ood_score is None or rule is None or rule.certificate not in self._ids:
            return False
        with self._mutex:
            inputs = self._inputs[rule.certificate]
            inputs.scores.append((float(ood_score), hash_share(self._key, "tie", decision_id)))
            return inputs.due

    def write_inputs(self) -> None:
        """Hand the scores of inputs to the store.

        Raises:
            StoreError: the store failed.
        """
        with self._mutex:
            waiting, self._inputs = self._inputs, defaultdict(_Inputs)
        for certificate, inputs in waiting.items():
            self._watch.note_inputs(certificate, inputs.scores)

    def close(self) -> None:
        """Hand over what is left; a store that fails is not an error here."""
        try:
            self.write_inputs()
        except Exception as error:  # noqa: BLE001 - what is closed must close, and these scores are one of many
            _log.warning("the last scores of inputs were not written: %s", error)
