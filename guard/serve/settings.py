"""What an operator sets, beside models and policies; `guard.serve.config` reads it from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field

from guard.serve.asked import Bounds
from guard.serve.bodies import Hold


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of a server.

    Attributes:
        bounds: what one request may ask for.
        most_requests: that are answered or wait at the same time; more get 429.
        body_bytes: of a request, at most.
        body_seconds: in which a request's head must have arrived, and then its body.
        hold: what a held stream sends before its decision: comment lines, or nothing, so that headers have the verdict.
        comment_seconds: interval of the comment lines of a held stream.
        content_filter: whether an abstention has the finish reason ``content_filter`` instead of ``stop``.
        unguarded_keys: names of API keys whose side requests are answered without a policy.
        review_seconds: longest time that a request may wait for a person's decision.
        shutdown_seconds: time that running requests get when the server stops.
        open_metrics: whether ``/metrics`` needs no key even if the other endpoints do.
    """

    bounds: Bounds = field(default_factory=Bounds)
    most_requests: int = 128
    body_bytes: int = 4_000_000
    body_seconds: float = 30.0
    hold: Hold = "comments"
    comment_seconds: float = 10.0
    content_filter: bool = False
    unguarded_keys: tuple[str, ...] = ()
    review_seconds: float = 60.0
    shutdown_seconds: float = 30.0
    open_metrics: bool = False
