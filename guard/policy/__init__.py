"""From a score to a decision, by a strict YAML file. Pure: deciding does no I/O.

`load_policy` reads a policy, `decide` says what happens to an answer, `explain` says why. Certificates give thresholds
to policies that state an error rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.policy.certificate import (
        Certificate,
        CertificateError,
        Certificates,
        load_certificates,
    )
    from guard.policy.explanation import (
        explain,
    )
    from guard.policy.policy import (
        Policy,
        builtin_policies,
        decide,
        decide_error,
        json_schema,
        load_policy,
        parse_policy,
    )
    from guard.policy.yaml_source import (
        InvalidPolicyError,
    )

__all__ = [
    "Certificate",
    "CertificateError",
    "Certificates",
    "InvalidPolicyError",
    "Policy",
    "builtin_policies",
    "decide",
    "decide_error",
    "explain",
    "json_schema",
    "load_certificates",
    "load_policy",
    "parse_policy",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "certificate": (
            "Certificate",
            "CertificateError",
            "Certificates",
            "load_certificates",
        ),
        "explanation": ("explain",),
        "policy": (
            "Policy",
            "builtin_policies",
            "decide",
            "decide_error",
            "json_schema",
            "load_policy",
            "parse_policy",
        ),
        "yaml_source": ("InvalidPolicyError",),
    },
)
