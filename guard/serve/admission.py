"""Admission control: concurrent requests, and requests and tokens per minute of each key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from guard.serve.callers import Caller
from guard.serve.request_errors import RequestError

_MINUTE = 60.0


class Admission:
    """Counts the running and waiting requests of one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.running = 0

    @property
    def is_full(self) -> bool:
        """Whether the next request is refused."""
        return self.running >= self._most

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is being answered.

        Raises:
            RequestError: with status 429, if the server is full.
        """
        if self.is_full:
            raise RequestError(
                "The server is at its limit of concurrent requests",
                fix="Try again in a second",
                status=429,
                kind="server_overloaded",
                code="overloaded",
                headers={"retry-after": "1"},
            )
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


@dataclass(slots=True)
class _Used:
    """The usage of a key in the minute that started at ``began``."""

    began: float
    requests: int = 0
    tokens: int = 0


class RateLimits:
    """Requests and tokens of each key in fixed minutes. Every server process counts on its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, _Used] = {}

    def take(self, caller: Caller) -> dict[str, str]:
        """Count a request, and return OpenAI's rate limit headers.

        Raises:
            RequestError: with status 429, if a limit is reached. Tokens are counted after the answer.
        """
        used, limits = self._current(caller.id), caller.limits
        if limits.tokens_per_month is not None and caller.used_tokens >= limits.tokens_per_month:
            raise _reached("tokens of this month", limits.tokens_per_month, code="insufficient_quota")
        wait = max(0.0, used.began + _MINUTE - self._clock())
        for what, limit, now in (
            ("requests", limits.requests_per_minute, used.requests),
            ("tokens", limits.tokens_per_minute, used.tokens),
        ):
            if limit is not None and now >= limit:
                raise _reached(f"{what} per minute", limit, headers=self._headers(caller, used), wait=wait)
        used.requests += 1
        return self._headers(caller, used)

    def charge(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answer."""
        self._current(caller.id).tokens += tokens

    def _current(self, key: str) -> _Used:
        now = self._clock()
        if len(self._used) > 10_000:
            self._used = {name: used for name, used in self._used.items() if now - used.began < _MINUTE}
        used = self._used.get(key)
        if used is None or now - used.began >= _MINUTE:
            used = self._used[key] = _Used(now)
        return used

    def _headers(self, caller: Caller, used: _Used) -> dict[str, str]:
        left = f"{max(0.0, used.began + _MINUTE - self._clock()):.3f}s"
        limits = {
            "requests": (caller.limits.requests_per_minute, used.requests),
            "tokens": (caller.limits.tokens_per_minute, used.tokens),
        }
        return {
            f"x-ratelimit-{name}": value
            for what, (limit, now) in limits.items()
            if limit is not None
            for name, value in (
                (f"limit-{what}", str(limit)),
                (f"remaining-{what}", str(max(0, limit - now))),
                (f"reset-{what}", left),
            )
        }


def _reached(
    what: str,
    limit: int,
    *,
    code: str = "rate_limit_exceeded",
    headers: dict[str, str] | None = None,
    wait: float = 0.0,
) -> RequestError:
    return RequestError(
        f"This API key has used its {limit} {what}",
        status=429,
        kind="rate_limit_error",
        code=code,
        headers={**(headers or {}), **({"retry-after": str(math.ceil(wait))} if wait else {})},
    )
