"""Admission control: concurrent requests, and requests and tokens per minute of each key."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from guard.serve.callers import Caller
from guard.serve.request_errors import RequestError

if TYPE_CHECKING:
    from guard.access import KeyLimits
    from guard.access.keys import Keys
    from guard.access.minutes import MinuteUse


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


class RateLimits:
    """Each key's requests and tokens, counted in the database, so that all servers of it keep the limits together.

    Args:
        keys: of the server; None where it has none, and so no limits.
    """

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    async def take(self, caller: Caller) -> dict[str, str]:
        """Count a request, and return OpenAI's headers about what is left.

        Raises:
            RequestError: with status 429, if a limit is reached. Tokens are counted after the answer.
        """
        limits = caller.limits
        if limits.tokens_per_month is not None and caller.used_tokens >= limits.tokens_per_month:
            raise _reached("tokens of this month", limits.tokens_per_month, code="insufficient_quota")
        if self._keys is None or not limits.of_a_minute:
            return {}
        used = await asyncio.to_thread(self._keys.take, caller.id, limits)
        headers = _headers(limits, used)
        if used.reached is not None:
            limit = limits.of_a_minute[used.reached]
            raise _reached(f"{used.reached} per minute", limit, headers=headers, wait=used.left_s)
        return headers

    async def charge(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answer; they are on disk when this returns."""
        if self._keys is not None:
            await asyncio.to_thread(self._keys.charge, caller.id, tokens)


def _headers(limits: KeyLimits, used: MinuteUse) -> dict[str, str]:
    now = {"requests": used.requests, "tokens": used.tokens}
    return {
        f"x-ratelimit-{name}": value
        for what, limit in limits.of_a_minute.items()
        for name, value in (
            (f"limit-{what}", str(limit)),
            (f"remaining-{what}", str(max(0, limit - now[what]))),
            (f"reset-{what}", f"{used.left_s:.3f}s"),
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
