"""Make a new scorer and certificate from old and new labels, and switch to them on request.

Part of the laboratory: production packages never import it. New labels are verdicts of the review store; those that
make the certificate are a random sample of the answers, and the scorer is not fitted on their questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.recalibration.dividing import HELD_OUT, DividedAnswers, JudgedAnswer, divide
    from guard.recalibration.expected import ExpectedChange
    from guard.recalibration.procedure import RecalibrationResult, recalibrate

__all__ = [
    "HELD_OUT",
    "DividedAnswers",
    "ExpectedChange",
    "JudgedAnswer",
    "RecalibrationResult",
    "divide",
    "recalibrate",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "dividing": ("HELD_OUT", "DividedAnswers", "JudgedAnswer", "divide"),
        "expected": ("ExpectedChange",),
        "procedure": ("RecalibrationResult", "recalibrate"),
    },
)
