"""What a policy asks of the people who review a case: by when, how urgently, how many, and what happens if nobody does.

The policy states them in ``escalate: {to: [review], within: 4h, priority: high, reviews: 2, late: abstain}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

#: Which cases come first; of the same priority, the one that is due first.
Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

#: What the caller of a case gets that nobody decided in time.
LateActionName = Literal["abstain", "fallback"]


@dataclass(frozen=True, slots=True)
class LateAction:
    """What takes the place of a person's answer once a case is late.

    Attributes:
        action: ``abstain``, or ``fallback`` to a fixed text.
        text: what the caller gets; None for no answer.
    """

    action: LateActionName = "abstain"
    text: str | None = None


#: What a case is: an answer that was not accepted, or an accepted one that was drawn to be checked.
CaseKind = Literal["escalation", "audit"]
CASE_KINDS: tuple[CaseKind, ...] = get_args(CaseKind)


@dataclass(frozen=True, slots=True)
class AuditDraw:
    """How an accepted answer was drawn to be checked.

    Attributes:
        rate: share of the accepted answers that is drawn, above 0 and at most 1.
        certificate: digest of the certificate whose guarantee covers the answer; None without one.
    """

    rate: float
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class ReviewTerms:
    """How a case should be reviewed.

    Attributes:
        within_s: seconds from the escalation until the case is due; None where it may wait forever.
        priority: ``low``, ``normal`` or ``high``.
        reviews: 1, or 2 for a blind second opinion and an adjudication where the two differ.
        late: what the caller gets once the case is late; None where there is no due time, and for audit cases, whose
            caller has the answer.
        audit: how an accepted answer was drawn; None for a case that was escalated.
    """

    within_s: float | None = None
    priority: Priority = "normal"
    reviews: int = 1
    late: LateAction | None = None
    audit: AuditDraw | None = None

    @property
    def kind(self) -> CaseKind:
        """What the case is."""
        return "escalation" if self.audit is None else "audit"
