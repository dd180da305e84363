"""Decide recorded calls again: what another policy would have accepted, sent to people, and got wrong.

`replay` reads the decisions of an audit log and the verdicts of the review store beside it, and compares a policy with
what was decided. Nothing is generated and nothing changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.replay.comparison import PolicyComparison, replay
    from guard.replay.deciding import Replayed, replay_call
    from guard.replay.documents import PolicyLine
    from guard.replay.figures import ExpectedErrors, PolicyFigures
    from guard.replay.recorded import RecordedAttempt, RecordedCall

__all__ = [
    "ExpectedErrors",
    "PolicyComparison",
    "PolicyFigures",
    "PolicyLine",
    "RecordedAttempt",
    "RecordedCall",
    "Replayed",
    "replay",
    "replay_call",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "comparison": ("PolicyComparison", "replay"),
        "deciding": ("Replayed", "replay_call"),
        "documents": ("PolicyLine",),
        "figures": ("ExpectedErrors", "PolicyFigures"),
        "recorded": ("RecordedAttempt", "RecordedCall"),
    },
)
