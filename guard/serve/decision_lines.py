"""One JSON line per request on standard error: ids, verdicts and times, without prompts and answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from guard.records import Outcome
from guard.serve.asked import Asked
from guard.serve.request_errors import to_request_error
from guard.serve.responder import Times
from guard.serve.verdict import used_tokens

log = logging.getLogger("guard.serve.decisions")

_OF_VERDICT = ("action", "rule", "p_wrong", "ood_score", "decision_id", "review_id", "attempts", "mode")


class DecisionLines:
    """Writes a line for each answer and each error."""

    def answered(self, asked: Asked, said: Mapping[str, Any], outcome: Outcome | None, times: Times) -> None:
        """Log an answer."""
        found = {name: said.get(name) for name in _OF_VERDICT}
        tokens = {}
        if outcome is not None:
            tokens = dict(zip(("prompt_tokens", "completion_tokens"), used_tokens(outcome), strict=True))
        self._write("answered", asked, {**found, **tokens, "seconds": round(times.decided_s, 4)})

    def failed(self, asked: Asked, error: BaseException, seconds: float) -> None:
        """Log a request without an answer by the class of the error: its message may quote a prompt."""
        code = to_request_error(error).code if isinstance(error, Exception) else "client_left"
        self._write("failed", asked, {"error": type(error).__name__, "code": code, "seconds": round(seconds, 4)})

    def _write(self, event: str, asked: Asked, values: Mapping[str, Any]) -> None:
        target = asked.target
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "model": target.model.name,
            "policy": target.guard.policy.name,
            "route": target.route,
            "key": asked.metadata.get("guard_key"),
            **values,
        }
        log.info("%s", json.dumps(line, ensure_ascii=True))
