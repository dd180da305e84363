"""People in the loop: escalation handlers and the durable review queue.

`Store` keeps cases in SQLite or PostgreSQL; the handler `ReviewQueue` adds them. People claim and decide cases through
the store; callers get a `ReviewResult` by the decision id. A `Deliverer` notifies `Endpoints`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.review.delivery import Deliverer
    from guard.review.endpoints import (
        Endpoint,
        Endpoints,
    )
    from guard.review.handlers import (
        Decide,
        PersonAnswer,
        ReviewQueue,
        WaitingQueue,
        log_handler,
    )
    from guard.review.labels import MarkedAnswers
    from guard.review.pages import (
        CaseFilter,
        Page,
    )
    from guard.review.results import ReviewResult
    from guard.review.span_marks import SpanMark
    from guard.review.store import (
        Review,
        ReviewEvent,
        ReviewStatus,
        Store,
    )
    from guard.review.verdicts import Opinion

__all__ = [
    "CaseFilter",
    "Decide",
    "Deliverer",
    "Endpoint",
    "Endpoints",
    "MarkedAnswers",
    "Opinion",
    "Page",
    "PersonAnswer",
    "Review",
    "ReviewEvent",
    "ReviewQueue",
    "ReviewResult",
    "ReviewStatus",
    "SpanMark",
    "Store",
    "WaitingQueue",
    "log_handler",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "delivery": ("Deliverer",),
        "endpoints": (
            "Endpoint",
            "Endpoints",
        ),
        "handlers": (
            "Decide",
            "PersonAnswer",
            "ReviewQueue",
            "WaitingQueue",
            "log_handler",
        ),
        "pages": (
            "CaseFilter",
            "Page",
        ),
        "labels": ("MarkedAnswers",),
        "results": ("ReviewResult",),
        "span_marks": ("SpanMark",),
        "store": (
            "Review",
            "ReviewEvent",
            "ReviewStatus",
            "Store",
        ),
        "verdicts": ("Opinion",),
    },
)
