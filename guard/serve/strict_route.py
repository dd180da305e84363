"""Routes that parse JSON strictly and return every error in OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guard.errors import did_you_mean
from guard.serve.event_stream import ClientLeft
from guard.serve.request_errors import RequestError, to_request_error
from guard.serve.server import log

#: nginx's status for a client that closed its connection; only logs and counters see it.
CLIENT_CLOSED = 499


class _StrictRequest(Request):
    """A request whose JSON has no NaN, no lone surrogates and bounded depth."""

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
            except RequestValidationError as error:
                return error_response(_invalid(error, self._body))
            except Exception as error:  # noqa: BLE001 - every error is an answer; a traceback might quote a prompt
                return error_response(error)

        return answer

    @property
    def _body(self) -> Any:
        """The class of the request body, or None."""
        return None if self.body_field is None else self.body_field.field_info.annotation


def error_response(error: Exception) -> JSONResponse:
    """Return the response for an exception, and log errors of the server by class."""
    failure = _to_failure(error)
    if failure.status >= 500:
        log.error("request failed with %s: %s", failure.status, type(error).__name__)
    return JSONResponse(failure.body(), failure.status, failure.headers)


def _to_failure(error: Exception) -> RequestError:
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
    405: "This endpoint does not support that method",
    400: "The body cannot be read",
}
_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def _invalid(error: RequestValidationError, body: Any) -> RequestError:
    """Return the error for an invalid request. Unknown options come first: they may be misspelt.

    Args:
        error: the validation errors.
        body: the class of the request body.
    """
    found = [
        (error["type"], [*error["loc"]][1:], error["msg"])  # behind the place: body, query or path
        for error in error.errors()
    ]
    for kind, path, _ in found:
        known = _options_at(body, path[:-1]) if kind == "extra_forbidden" else None
        if known is not None:
            return _unknown(path, known)
    kind, path, message = found[0]
    if kind == "extra_forbidden":
        return _unknown(path, ())
    name = _written(path)
    return RequestError(f"{name}: {message:.200}" if name else f"{message:.200}", param=name or None)


def _unknown(path: Sequence[str | int], known: Iterable[str]) -> RequestError:
    name = _written(path)
    fix = did_you_mean(str(path[-1]), known)
    return RequestError(f"There is no option '{name}'", fix=fix, code="unknown_parameter", param=name)


def _written(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))[:100]


def _options_at(body: Any, path: Iterable[str | int]) -> list[str] | None:
    """Return the options at a path of a body, or None if the path leads through a union.

    For a union, the errors of all its members are listed: an option unknown to one may be valid in another.
    """
    for step in path:
        if isinstance(step, str):
            parts = _models_in(_fields(body).get(step))
            if len(parts) != 1:
                return None
            body = parts[0]
    return [*_fields(body)]


def _fields(body: type[BaseModel]) -> dict[str, Any]:
    """Return the types of the options by their names for clients."""
    return {field.alias or name: field.annotation for name, field in body.model_fields.items()}


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models_in(part)]
