"""From labelled answers to a scorer, bound to its model.

Part of the laboratory: production packages never import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.calibration.early_procedure import EarlyCalibration, calibrate_early
    from guard.calibration.procedure import (
        CalibrationResult,
        calibrate,
    )
    from guard.calibration.rebinding import ReboundScorer, rebind
    from guard.calibration.recorded import calibrate_records
    from guard.calibration.scorer_fit import (
        FittedScorer,
        Labelled,
        fit_scorer,
    )
    from guard.calibration.span_procedure import SpanCalibration, calibrate_spans

__all__ = [
    "CalibrationResult",
    "EarlyCalibration",
    "FittedScorer",
    "Labelled",
    "ReboundScorer",
    "SpanCalibration",
    "calibrate",
    "calibrate_early",
    "calibrate_records",
    "calibrate_spans",
    "fit_scorer",
    "rebind",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "early_procedure": ("EarlyCalibration", "calibrate_early"),
        "procedure": (
            "CalibrationResult",
            "calibrate",
        ),
        "rebinding": ("ReboundScorer", "rebind"),
        "recorded": ("calibrate_records",),
        "scorer_fit": (
            "FittedScorer",
            "Labelled",
            "fit_scorer",
        ),
        "span_procedure": ("SpanCalibration", "calibrate_spans"),
    },
)
