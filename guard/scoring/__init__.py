"""From activations and log-probabilities to a calibrated probability of being wrong.

`Scorer` applies what ``guard calibrate`` fitted; `SignatureObserver` folds activations into a signature while the
model answers. Production code: it reads scorer files and fits nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.scoring.scorer import (
        Scorer,
        load_scorer,
        parse_scorer,
        shipped_scorer,
    )
    from guard.scoring.scorer_file import Artefact
    from guard.scoring.signature import (
        FeatureSchema,
        SignatureObserver,
        pairwise_kl,
    )

__all__ = [
    "Artefact",
    "FeatureSchema",
    "Scorer",
    "SignatureObserver",
    "load_scorer",
    "pairwise_kl",
    "parse_scorer",
    "shipped_scorer",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "scorer": (
            "Scorer",
            "load_scorer",
            "parse_scorer",
            "shipped_scorer",
        ),
        "scorer_file": ("Artefact",),
        "signature": (
            "FeatureSchema",
            "SignatureObserver",
            "pairwise_kl",
        ),
    },
)
