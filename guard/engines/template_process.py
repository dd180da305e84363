"""Rendering of chat templates in processes of their own.

A template comes with the weights and is a stranger's program. jinja2's sandbox keeps it from Python's
internals but not from using minutes and gigabytes in a single call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from guard.engines.bounded_process import MAX_MEMORY, ProcessPool, StoppedError
from guard.engines.template_sandbox import FailureKind, RenderError, find_variables, render_template

_pool = ProcessPool("renders chat templates")


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One rendering.

    Attributes:
        template: jinja2 source.
        variables: plain JSON values by name; None to get the names that the template reads instead.
        now: what the template's clock shows.
        max_seconds: after which the process is ended.
        max_characters: the longest text that is made.
    """

    template: str
    variables: dict[str, Any] | None
    now: datetime
    max_seconds: float
    max_characters: int

    def run(self) -> tuple[dict[str, Any], str]:
        """Return the text, or the kind, line and words of a failure."""
        try:
            return {}, self._text()
        except RenderError as error:
            return {"kind": error.kind, "line": error.line}, error.why

    def _text(self) -> str:
        if self.variables is None:
            return json.dumps(sorted(find_variables(self.template)))
        return render_template(self.template, self.variables, now=self.now, max_characters=self.max_characters)


def render_bounded(request: RenderRequest) -> str:
    """Render in a process of its own, within `MAX_MEMORY` and the request's limits.

    Raises:
        RenderError: the template fails, or breaks its bound.
        EngineError: no process can be started.
        RecursionError: the variables are nested too deeply.
    """
    try:
        header, text = _pool.run(request, max_seconds=request.max_seconds)
    except StoppedError as error:
        raise RenderError("stopped", error.why) from error
    if header:
        raise RenderError(cast(FailureKind, header["kind"]), text, header["line"])
    return text


def variables_bounded(template: str, *, max_seconds: float) -> frozenset[str]:
    """`find_variables`, in a process of its own: constants are computed for it.

    Raises:
        RenderError: the template is not valid, or breaks its bound.
        EngineError: no process can be started.
    """
    request = RenderRequest(template, None, datetime.min, max_seconds, MAX_MEMORY)
    return frozenset(json.loads(render_bounded(request)))
