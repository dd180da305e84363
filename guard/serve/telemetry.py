"""OpenTelemetry with its GenAI conventions (status: development, as of November 2026): a span, metrics, a score event.

None of them has prompts or answers. Only this module has the names, since the conventions still change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from guard.errors import missing_extra
from guard.records import Outcome
from guard.serve.asked import Asked
from guard.serve.request_errors import to_request_error
from guard.serve.responder import Times
from guard.serve.verdict import used_tokens

_SCOPE = "guard.serve"
_EVALUATION = "gen_ai.evaluation.result"


class Telemetry:
    """Sends to the providers of the process, which OpenTelemetry's environment variables configure.

    Args:
        tracers, meters, loggers: providers; by default the process's own.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, *, tracers: Any = None, meters: Any = None, loggers: Any = None) -> None:
        try:
            from opentelemetry import _logs, metrics, trace
        except ImportError as error:
            raise missing_extra("opentelemetry-api", "otel") from error
        self._trace, self._logs = trace, _logs
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracers)
        self._logger = _logs.get_logger(_SCOPE, logger_provider=loggers)
        meter = metrics.get_meter(_SCOPE, meter_provider=meters)
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", unit="s")
        self._first = meter.create_histogram("gen_ai.server.time_to_first_token", unit="s")

    def answered(self, asked: Asked, said: Mapping[str, Any], outcome: Outcome | None, times: Times) -> None:
        """Record a span, its metrics, and the score as an event."""
        base = _attributes(asked)
        used = dict(zip(("input", "output"), used_tokens(outcome), strict=True))
        response = {
            "gen_ai.response.model": asked.target.guard.engine.model.name,
            "gen_ai.response.id": said["decision_id"],
            "gen_ai.usage.input_tokens": used["input"],
            "gen_ai.usage.output_tokens": used["output"],
            "guard.action": said["action"],
            "guard.rule": said["rule"] or "",
            "guard.route": asked.target.route or "",
        }
        context = self._span({**base, **response}, times.decided_s)
        for kind, count in used.items():
            self._tokens.record(count, {**base, "gen_ai.token.type": kind}, context=context)
        self._duration.record(times.decided_s, base, context=context)
        self._first.record(times.first_text_s, base, context=context)
        if said["p_wrong"] is not None:
            self._event(said, context)

    def failed(self, asked: Asked, error: BaseException, seconds: float) -> None:
        """Record a span and its duration with the error's code."""
        code = (to_request_error(error).code if isinstance(error, Exception) else None) or type(error).__name__
        attributes = {**_attributes(asked), "error.type": code}
        context = self._span(attributes, seconds, error=code)
        self._duration.record(seconds, attributes, context=context)

    def _span(self, attributes: Mapping[str, Any], seconds: float, *, error: str | None = None) -> Any:
        """Record a span that ends now; return its context."""
        end = time.time_ns()
        span = self._tracer.start_span(
            f"chat {attributes['gen_ai.request.model']}",
            kind=self._trace.SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=end - int(seconds * 1e9),
        )
        if error is not None:
            span.set_status(self._trace.StatusCode.ERROR, error)
        span.end(end)
        return self._trace.set_span_in_context(span)

    def _event(self, said: Mapping[str, Any], context: Any) -> None:
        self._logger.emit(
            timestamp=time.time_ns(),
            context=context,
            severity_number=self._logs.SeverityNumber.INFO,
            event_name=_EVALUATION,
            attributes={
                "gen_ai.evaluation.name": "guard.p_wrong",
                "gen_ai.evaluation.score.value": said["p_wrong"],
                "gen_ai.evaluation.score.label": said["action"],
                "gen_ai.evaluation.explanation": said["reason"],
                "gen_ai.response.id": said["decision_id"],
            },
        )


def _attributes(asked: Asked) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "guard",
        "gen_ai.request.model": asked.target.id,
    }
