"""Metrics for Prometheus: decisions, scores, times, tokens and the review queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from guard.errors import StoreError, missing_extra
from guard.records import Outcome
from guard.serve.asked import Asked
from guard.serve.request_errors import to_request_error
from guard.serve.verdict import used_tokens

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from guard.review.store import Store
    from guard.serve.admission import Admission

_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
#: Largest number of cases that one scrape reads, oldest first.
_MOST_CASES = 1000


class ServeMetrics:
    """Metrics of one server, in a registry of its own.

    Args:
        admission: counts the requests.
        store: the review store, or None.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """

    def __init__(self, admission: Admission, store: Store | None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise missing_extra("prometheus_client", "serve") from error
        self._prometheus = prometheus
        self.registry = registry = prometheus.CollectorRegistry()
        by_route = ("model", "policy", "route")
        self._decisions = prometheus.Counter(
            "guard_decisions", "Answers by action.", (*by_route, "action", "rule"), registry=registry
        )
        self._errors = prometheus.Counter(
            "guard_request_errors", "Requests without an answer.", ("model", "code"), registry=registry
        )
        self._p_wrong = self._histogram("guard_p_wrong", "Probability of being wrong.", by_route, _SHARES)
        self._ood = self._histogram("guard_ood_score", "Out-of-distribution score.", by_route, _SHARES)
        self._hold = self._histogram("guard_hold_seconds", "Time from the request to its decision.", by_route, _SECONDS)
        self._queue = self._histogram(
            "guard_queue_seconds", "Wait of the first attempt for the engine.", by_route, _SECONDS
        )
        self._tokens = prometheus.Counter("guard_tokens", "Tokens by kind.", ("model", "kind"), registry=registry)
        running = prometheus.Gauge("guard_requests_running", "Running and waiting requests.", registry=registry)
        running.set_function(lambda: admission.running)
        if store is not None:
            registry.register(_QueueMetrics(store, prometheus))

    def _histogram(self, name: str, text: str, labels: Iterable[str], buckets: Iterable[float]) -> Any:
        return self._prometheus.Histogram(name, text, labels, buckets=(*buckets, float("inf")), registry=self.registry)

    def answered(self, asked: Asked, said: Mapping[str, Any], outcome: Outcome | None, seconds: float) -> None:
        """Count an answer."""
        target = asked.target
        labels = (target.model.name, target.guard.policy.name, target.route or "")
        self._decisions.labels(*labels, said["action"], said["rule"] or "").inc()
        self._hold.labels(*labels).observe(seconds)
        if outcome is None:
            return
        for histogram, value in ((self._p_wrong, outcome.p_wrong), (self._ood, outcome.ood_score)):
            if value is not None:
                histogram.labels(*labels).observe(value)
        first = outcome.attempts[0].generation
        if first is not None:
            self._queue.labels(*labels).observe(first.queue_s)
        for kind, count in zip(("prompt", "completion"), used_tokens(outcome), strict=True):
            self._tokens.labels(target.model.name, kind).inc(count)

    def failed(self, asked: Asked, error: BaseException, seconds: float) -> None:
        """Count a request that failed or was abandoned."""
        code = to_request_error(error).code if isinstance(error, Exception) else "client_left"
        self._errors.labels(asked.target.model.name, code or "invalid").inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return self._prometheus.generate_latest(self.registry)


class _QueueMetrics:
    """Reads the queue at each scrape."""

    def __init__(self, store: Store, prometheus: Any) -> None:
        self._store, self._prometheus = store, prometheus

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        pending = GaugeMetricFamily("guard_reviews_pending", "Cases that wait for a person.", labels=("route",))
        oldest = GaugeMetricFamily("guard_review_age_seconds", "Age of the oldest waiting case.", labels=("route",))
        try:
            cases = self._store.reviews(status="pending", limit=_MOST_CASES)
        except StoreError:  # the other metrics are still available
            return
        now, ages = datetime.now(UTC), dict[str, list[float]]()
        for case in cases:
            age = (now - datetime.fromisoformat(case.created_at)).total_seconds()
            ages.setdefault(case.route or "", []).append(age)
        for route, found in ages.items():
            pending.add_metric((route,), len(found))
            oldest.add_metric((route,), max(found))
        yield pending
        yield oldest
