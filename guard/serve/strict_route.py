"""Routes that read JSON strictly and answer every error in OpenAI's shape."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guard.serve.event_stream import ClientLeft
from guard.serve.request_errors import RequestError, to_request_error
from guard.serve.server import log

#: Of nginx: the client closed its connection. Nobody reads the response; logs and counters do.
CLIENT_CLOSED = 499


class _StrictRequest(Request):
    """A request whose JSON has no NaN, no half characters and bounded depth."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise RequestError("The body is not JSON", why=f"{error}"[:200]) from error


class StrictRoute(APIRoute):
    """A route of the API."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(_StrictRequest(request.scope, request.receive))
            except ClientLeft:
                return Response(status_code=CLIENT_CLOSED)
            except Exception as error:  # noqa: BLE001 - every error is an answer; a traceback might quote a prompt
                return error_response(error)

        return answer


def error_response(error: Exception) -> JSONResponse:
    """Return the response for any exception, and log faults of the server by their class."""
    failure = _to_failure(error)
    if failure.status >= 500:
        log.error("request failed with %s: %s", failure.status, type(error).__name__)
    return JSONResponse(failure.body(), failure.status, failure.headers)


def _to_failure(error: Exception) -> RequestError:
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return RequestError(
            _PHRASES.get(error.status_code, str(error.detail)),
            status=error.status_code,
            code=_CODES.get(error.status_code),
            headers=error.headers,
        )
    return to_request_error(error)


_PHRASES = {
    404: "guard serve has no such endpoint",
    405: "This endpoint does not take that method",
    400: "The body cannot be read",
}
_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def _invalid(error: RequestValidationError) -> RequestError:
    """Describe the first thing that is wrong with a request, by its option's name."""
    first = error.errors()[0]
    path = [str(step) for step in first["loc"] if step != "body"]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known_options(error, len(path))
        near = difflib.get_close_matches(path[-1], known, n=1)
        fix = f"Did you mean '{near[0]}'?" if near else ""
        return RequestError(f"There is no option '{name:.100}'", fix=fix, code="unknown_parameter", param=name[:100])
    return RequestError(
        f"{name:.100}: {first['msg']:.200}" if name else f"{first['msg']:.200}", param=name[:100] or None
    )


def _known_options(error: RequestValidationError, depth: int) -> list[str]:
    """Return the options at the top of the request's body, where the misspelt one stood there."""
    from guard.serve.bodies import ChatBody

    return [*ChatBody.model_fields] if depth == 1 else []
