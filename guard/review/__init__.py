"""People in the loop: escalation handlers and the durable review queue.

`Store` keeps cases in SQLite or PostgreSQL, `ReviewQueue` is the handler that puts them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.review.handlers import (
        ReviewQueue,
        log_handler,
    )
    from guard.review.store import (
        Review,
        ReviewEvent,
        ReviewStatus,
        Store,
    )

__all__ = [
    "Review",
    "ReviewEvent",
    "ReviewQueue",
    "ReviewStatus",
    "Store",
    "log_handler",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "handlers": (
            "ReviewQueue",
            "log_handler",
        ),
        "store": (
            "Review",
            "ReviewEvent",
            "ReviewStatus",
            "Store",
        ),
    },
)
