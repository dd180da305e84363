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
    from guard.data.merging import (
        MergeResult,
        merge_shards,
    )
    from guard.data.on_ray import (
        run_on_ray,
        score_on_ray,
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
    from guard.data.scored_rows import (
        score_rows,
    )

__all__ = [
    "Answers",
    "LabelledResponse",
    "MergeResult",
    "Progress",
    "ProgressCallback",
    "Question",
    "Record",
    "RecordingResult",
    "grade",
    "grader_for",
    "load_grader",
    "merge_shards",
    "read_rows",
    "record",
    "record_rows",
    "run_on_ray",
    "score_on_ray",
    "score_rows",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "progress": (
            "Progress",
            "ProgressCallback",
        ),
        "merging": (
            "MergeResult",
            "merge_shards",
        ),
        "on_ray": (
            "run_on_ray",
            "score_on_ray",
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
        "scored_rows": ("score_rows",),
    },
)
