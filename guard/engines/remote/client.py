"""HTTP to a server of models: bounded, retried, without redirects; no key, prompt or answer in any error."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from pydantic import SecretStr

from guard.engines.remote.address import KEY_VARIABLE, Address
from guard.errors import EngineError, PromptTooLongError, missing_extra

try:
    import httpx
    import tenacity
except ImportError as error:
    raise missing_extra(error.name or "httpx", "openai") from error

#: Statuses after which the same request may well succeed.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Bytes of an error's body that are read.
_ERROR_BYTES = 64 * 1024
#: Longest wait that a server can ask for, in seconds.
_LONGEST_WAIT_S = 60.0

_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|maximum.{0,20}(context|model).{0,20}len|too (long|large)", re.I
)
_WORD = re.compile(r"[\w.-]{1,64}")


class UnavailableError(EngineError):
    """The server cannot be reached, or cannot answer now; it may later.

    Attributes:
        after_s: seconds that the server asks to wait.
    """

    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may take.

    Attributes:
        attempts: tries of one request.
        timeout_s: of one request, in seconds, where the caller gives no time.
        max_bytes: of one response.
    """

    attempts: int
    timeout_s: float
    max_bytes: int


class Client:
    """A pool of connections to one server. All of it runs in one event loop."""

    def __init__(self, address: Address, key: SecretStr | None, limits: RequestLimits, *, connections: int) -> None:
        self._address, self._key, self._limits, self._connections = address, key, limits, connections
        self._http: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.aclose()

    async def get(self, path: str) -> Any:
        """Return the JSON of a resource; errors as for `events`."""
        async with AsyncExitStack() as stack:
            response = await self._retried(stack, self._limits.timeout_s, "GET", path, None)
            return _json(b"".join([part async for part in self._body(response)]))

    async def events(self, path: str, body: Mapping[str, Any], seconds: float) -> AsyncGenerator[Any]:
        """Yield the JSON of each server-sent event, until ``[DONE]`` or the end.

        Tries again until the server begins to answer; an answer that breaks off is not asked for again.

        Args:
            path: below the base URL.
            body: sent as JSON.
            seconds: that all tries together have.

        Raises:
            EngineError: the server cannot be reached, refuses, redirects, or sends something else.
            PromptTooLongError: the server says so.
        """
        async with AsyncExitStack() as stack:
            response = await self._retried(stack, seconds, "POST", path, body)
            async for event in self._events(response):
                yield event

    async def _retried(self, stack: AsyncExitStack, seconds: float, *request: Any) -> httpx.Response:
        """Send a request, again while the server cannot answer now; the stack closes its response."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(UnavailableError),
            wait=_wait,
            stop=tenacity.stop_after_attempt(self._limits.attempts) | tenacity.stop_before_delay(seconds),
            reraise=True,
        )

        async def send() -> httpx.Response:
            return await stack.enter_async_context(self._response(*request))

        return await retrying(send)

    @asynccontextmanager
    async def _response(self, method: str, path: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx.Response]:
        """Send a request; raises what its status says, and translates what goes wrong while the response is read."""
        try:
            async with self._open().stream(method, f"{self._address.base_url}{path}", json=body) as response:
                if response.status_code != 200:
                    raise _refusal(response, await _beginning(response))
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise EngineError("The server compresses its response, which was not asked for")
                yield response
        except httpx.TransportError as error:
            raise _broken(error) from None  # its own text may have the URL, and its cause the request
        except httpx.HTTPError as error:
            raise EngineError("The server's response cannot be read", why=type(error).__name__) from None

    def _open(self) -> httpx.AsyncClient:
        if self._http is None:
            bearer = {} if self._key is None else {"Authorization": f"Bearer {self._key.get_secret_value()}"}
            self._http = httpx.AsyncClient(
                headers={"Accept-Encoding": "identity", "User-Agent": "ilis-guard", **bearer},
                timeout=httpx.Timeout(self._limits.timeout_s, connect=min(10.0, self._limits.timeout_s), pool=None),
                limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
                follow_redirects=False,
                trust_env=not self._address.is_loopback,  # no proxy leads to this machine
            )
        return self._http

    async def _body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        size = 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > self._limits.max_bytes:
                raise EngineError(f"The server's response has more than {self._limits.max_bytes} bytes")
            yield part

    async def _events(self, response: httpx.Response) -> AsyncIterator[Any]:
        rest = b""
        async for part in self._body(response):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if (data := _data(line)) == b"[DONE]":
                    return
                if data:
                    yield _json(data)
        if data := _data(rest):
            yield _json(data)


def _data(line: bytes) -> bytes:
    """Return the data of a line of an event stream; empty for any other line."""
    return line[5:].strip() if line.startswith(b"data:") else b""


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise EngineError("The server's response is not JSON", fix="Check that the address ends with /v1") from None


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after_s if isinstance(error, UnavailableError) else None
    drawn: float = tenacity.wait_random_exponential(multiplier=0.25, max=8)(state)
    return drawn if asked is None else max(asked, min(drawn, 0.1))


def _broken(error: httpx.TransportError) -> EngineError:
    why = type(error).__name__
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):  # the server may still be computing: no second time
        return EngineError("The server did not answer in time", why=why)
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError):
        return EngineError("The server cannot be reached", why=why)
    return UnavailableError("The connection to the server failed", why=why, fix="Check that it runs at this address")


async def _beginning(response: httpx.Response) -> bytes:
    found = b""
    async for part in response.aiter_raw():
        found += part
        if len(found) > _ERROR_BYTES:
            break
    return found[:_ERROR_BYTES]


def _refusal(response: httpx.Response, body: bytes) -> EngineError:
    """Return the error that a status stands for, without the server's words, which may quote the prompt or the key."""
    status, (kind, message) = response.status_code, _said(body)
    why = f"status {status}{f' ({kind})' if kind else ''}"
    if status in _PASSING:
        error = UnavailableError("The server cannot answer now", why=why)
        error.after_s = _after(response.headers.get("retry-after"))
        return error
    if 300 <= status < 400:
        return EngineError("The server redirects to another address, which is not followed", why=why)
    if status in (401, 403):
        return EngineError("The server refuses the key", why=why, fix=f"Set {KEY_VARIABLE}, or name another variable")
    if status == 404:
        return EngineError("The server has no such model or address", why=why, fix="The address mostly ends with /v1")
    if kind == "context_length_exceeded" or (status in (400, 413, 422, 500) and _TOO_LONG.search(message)):
        return PromptTooLongError("The prompt is too long for the served model", why=why, fix="Shorten the prompt")
    return EngineError("The server refuses the request", why=why)


def _said(body: bytes) -> tuple[str, str]:
    """Return the code and the message of an error's body, as far as it has OpenAI's form."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        codes = [error.get(name) for name in ("code", "type")]
    except (ValueError, AttributeError, RecursionError):
        return "", ""
    code = next((code for code in codes if isinstance(code, str) and _WORD.fullmatch(code)), "")
    return code, str(error.get("message", ""))


def _after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for: a number, or a date."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)
