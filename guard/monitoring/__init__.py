"""Watched guarantees: audit cases drawn from accepted answers, and anytime-valid tests.

`risk_evidence` tests a certificate's guarantee on the verdicts of audit cases, `ShiftTest` the traffic's
out-of-distribution scores without labels. `CertificateWatch` keeps both in the review store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.monitoring.acceptance import AcceptanceMonitor
    from guard.monitoring.certificate_watch import CertificateWatch, WatchedCertificate
    from guard.monitoring.risk_test import RiskEvidence, risk_evidence
    from guard.monitoring.shift_test import ShiftTest

__all__ = [
    "AcceptanceMonitor",
    "CertificateWatch",
    "RiskEvidence",
    "ShiftTest",
    "WatchedCertificate",
    "risk_evidence",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "acceptance": ("AcceptanceMonitor",),
        "certificate_watch": ("CertificateWatch", "WatchedCertificate"),
        "risk_test": ("RiskEvidence", "risk_evidence"),
        "shift_test": ("ShiftTest",),
    },
)
