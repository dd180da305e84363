"""Labelled questions, graders, and recordings of a model's answers with their signals.

Part of the laboratory: production packages never import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.data.answers import (
        Answers,
    )
    from guard.data.graders import (
        grade,
        grader_for,
        load_grader,
    )
    from guard.data.procedure import (
        RecordingResult,
        record,
    )
    from guard.data.progress import (
        Progress,
        ProgressCallback,
    )
    from guard.data.questions import (
        LabelledResponse,
        Question,
        read_rows,
    )
    from guard.data.recording import (
        Record,
        record_rows,
    )

__all__ = [
    "Answers",
    "LabelledResponse",
    "Progress",
    "ProgressCallback",
    "Question",
    "Record",
    "RecordingResult",
    "grade",
    "grader_for",
    "load_grader",
    "read_rows",
    "record",
    "record_rows",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "progress": (
            "Progress",
            "ProgressCallback",
        ),
        "procedure": (
            "RecordingResult",
            "record",
        ),
        "answers": ("Answers",),
        "graders": (
            "grade",
            "grader_for",
            "load_grader",
        ),
        "questions": (
            "LabelledResponse",
            "Question",
            "read_rows",
        ),
        "recording": (
            "Record",
            "record_rows",
        ),
    },
)
