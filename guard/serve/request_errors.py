"""Errors as OpenAI's clients expect them: a status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import (
    AbstainedError,
    ChatTemplateError,
    EngineTimeoutError,
    EscalationError,
    GuardError,
    InputError,
    OutOfMemoryError,
    PromptTooLongError,
    StoreError,
)

INVALID = "invalid_request_error"
_SERVER = "server_error"


class RequestError(GuardError):
    """A request gets an error instead of an answer.

    Args:
        what, why, fix: as in `GuardError`; the client gets them.
        status: the HTTP status.
        kind: the ``type`` of the error.
        code: the code for programs.
        param: the invalid option.
        headers: headers of the response.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        status: int = 400,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        return error_body(str(self), kind=self.kind, code=self.code, param=self.param)


def error_body(
    message: str, *, kind: str = INVALID, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return an error in OpenAI's shape.

    Examples:
        >>> error_body("No.")
        {'error': {'message': 'No.', 'type': 'invalid_request_error', 'param': None, 'code': None}}
    """
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class _Form:
    """The response for a class of errors; without ``shown``, the client gets the class name only."""

    status: int
    kind: str
    code: str | None
    shown: bool = True


#: By class, the most specific first.
_FORMS: tuple[tuple[type[Exception], _Form], ...] = (
    (AbstainedError, _Form(422, "guard_abstained", "abstained")),
    (PromptTooLongError, _Form(400, INVALID, "context_length_exceeded")),
    (ChatTemplateError, _Form(400, INVALID, "unsupported_messages")),
    (InputError, _Form(400, INVALID, None)),
    (EngineTimeoutError, _Form(504, _SERVER, "timeout")),
    (OutOfMemoryError, _Form(503, _SERVER, "out_of_memory", shown=False)),
    (EscalationError, _Form(503, _SERVER, "escalation_failed", shown=False)),
    (StoreError, _Form(503, _SERVER, "store_unavailable", shown=False)),
)
_UNEXPECTED = _Form(500, _SERVER, "internal_error", shown=False)


def to_request_error(error: Exception) -> RequestError:
    """Return the error that a client gets for any exception.

    Errors of the caller keep their message. Errors of the server do not: it may name files, hosts and handlers.

    Examples:
        >>> to_request_error(PromptTooLongError("The prompt has 9 tokens")).code
        'context_length_exceeded'
        >>> str(to_request_error(ValueError("a secret")))
        'The server failed (ValueError).'
    """
    if isinstance(error, RequestError):
        return error
    form = next((form for kind, form in _FORMS if isinstance(error, kind)), _UNEXPECTED)
    what = str(error) if form.shown else f"The server failed ({type(error).__name__})"
    return RequestError(what, status=form.status, kind=form.kind, code=form.code)


def not_offered(option: str, *, why: str = "", fix: str = "") -> RequestError:
    """Return the error for an unsupported option or value."""
    return RequestError(f"guard serve does not support {option}", why=why, fix=fix, code="unsupported", param=option)
