"""Evaluation of scores: measures, protocols, intervals, figures and a report.

    records -> AnswerTable -> protocol (fit, predict) -> Predictions -> bootstrap -> summary -> result -> report

`protocol` defines methods and tables, and fits and tests methods within sets, across sets and across engines or
precisions; `measures` evaluates the probabilities; `bootstrap` computes paired intervals of all differences; `summary`
combines them in the `result` (JSON), which `figures` and `report` show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.evaluation.measures import (
        Measure,
        measure_named,
    )
    from guard.evaluation.methods import (
        methods_for,
    )
    from guard.evaluation.predictions import (
        Predictions,
    )
    from guard.evaluation.protocol import (
        AnswerTable,
        Method,
    )
    from guard.evaluation.report import (
        render,
    )
    from guard.evaluation.result import (
        EvaluationResult,
    )

__all__ = [
    "AnswerTable",
    "EvaluationResult",
    "Measure",
    "Method",
    "Predictions",
    "measure_named",
    "methods_for",
    "render",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "measures": (
            "Measure",
            "measure_named",
        ),
        "methods": ("methods_for",),
        "predictions": ("Predictions",),
        "protocol": (
            "Method",
            "AnswerTable",
        ),
        "report": ("render",),
        "result": ("EvaluationResult",),
    },
)
