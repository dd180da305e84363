"""Certifies a threshold's error rate on labelled answers, or states why that is impossible.

Part of the laboratory: production packages never import it. (The package is not called ``certify``, because
`guard.certify` is the function.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.certification.base_rate import (
        BaseRate,
        forced_abstention,
    )
    from guard.certification.fixed_sequence import (
        Certified,
        NotCertifiable,
        Trials,
        find_threshold,
    )
    from guard.certification.procedure import (
        CertificationResult,
        certify,
    )

__all__ = [
    "BaseRate",
    "CertificationResult",
    "Certified",
    "NotCertifiable",
    "Trials",
    "certify",
    "find_threshold",
    "forced_abstention",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "base_rate": ("BaseRate", "forced_abstention"),
        "procedure": (
            "CertificationResult",
            "certify",
        ),
        "fixed_sequence": (
            "Certified",
            "NotCertifiable",
            "Trials",
            "find_threshold",
        ),
    },
)
