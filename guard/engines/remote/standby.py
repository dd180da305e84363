"""A served model that others stand by for: where it cannot answer, its caller may ask another one instead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from guard.engines.protocols import Observer
from guard.engines.remote.client import UnavailableError
from guard.engines.remote.engine import OpenAIEngine, find_served
from guard.errors import GuardError, HandOverError
from guard.records import Generation, Limits, Prompt, Sampling

_others: ContextVar[bool] = ContextVar("others_stand_by", default=False)

#: Seconds in which a server that works lists its models.
HEALTH_S = 3.0


@contextmanager
def others_stand_by() -> Iterator[None]:
    """In this block, a `StandbyEngine` that cannot be reached raises `HandOverError`, which no policy decides about."""
    token = _others.set(True)
    try:
        yield
    finally:
        _others.reset(token)


class StandbyEngine(OpenAIEngine):
    """A served model whose requests are handed over where the server cannot answer now."""

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        observer: Observer | None = None,
        completion: str | None = None,
    ) -> Generation:
        """`OpenAIEngine.agenerate`.

        Raises:
            HandOverError: the server cannot be reached, is busy or has ended in mid-answer, and others stand by.
        """
        options: dict[str, Any] = {"sampling": sampling, "limits": limits, "observer": observer}
        try:
            return await super().agenerate(prompt, completion=completion, **options)
        except UnavailableError as error:
            if not _others.get():
                raise
            raise HandOverError(error.what, why=error.why, fix=error.fix) from error

    def is_up(self) -> bool:
        """Return whether the server lists the model; it takes `HEALTH_S` seconds at most."""

        async def look() -> None:
            async with asyncio.timeout(HEALTH_S):
                await find_served(self._client, self.model.name)

        try:
            self._loop.call(look())
        except (GuardError, TimeoutError):
            return False
        return True
