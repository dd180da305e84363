"""Answers requests: admission, guarded call, record."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from guard.records import Generation, Outcome
from guard.runtime.guard import Guard
from guard.serve.admission import Admission, RateLimits
from guard.serve.answer_message import AnswerMessage, answer_message, read_answer
from guard.serve.asked import Asked, prefix_key
from guard.serve.callers import Caller
from guard.serve.recent_decisions import RecentDecisions
from guard.serve.side_requests import KnownConversations
from guard.serve.token_logprobs import token_logprobs
from guard.serve.verdict import UNGUARDED, is_models, used_tokens, verdict


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """An answer, independent of the API's output format.

    Attributes:
        message: the message for the caller.
        said: the verdict.
        model: id of the model.
        prompt_tokens, completion_tokens: tokens of all attempts.
        logprobs: log-probabilities of the answer's tokens in OpenAI's form; None if not requested.
        created: seconds since 1970.
    """

    message: AnswerMessage
    said: Mapping[str, Any]
    model: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: dict[str, Any] | None
    created: int

    @property
    def usage(self) -> dict[str, int]:
        """The token counts in OpenAI's form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Watcher(Protocol):
    """Observes answers and errors for metrics, traces and logs; it must not record texts."""

    def answered(self, asked: Asked, said: Mapping[str, Any], outcome: Outcome | None, seconds: float) -> None:
        """Record an answer."""

    def failed(self, asked: Asked, error: BaseException, seconds: float) -> None:
        """Record a request that failed or was abandoned."""


async def _outcome(asked: Asked, guard: Guard) -> tuple[Asked, Outcome]:
    """Ask a guard; return its outcome, and the request as it was put."""
    outcome = await guard.aask(
        asked.prompt,
        route=asked.target.route,
        sampling=asked.sampling,
        limits=asked.limits,
        metadata=asked.metadata,
        cache_key=asked.cache_key,
    )
    return replace(asked, target=replace(asked.target, guard=guard)), outcome


async def _generation(asked: Asked, guard: Guard) -> Generation:
    """Ask a guard's engine, without its policy."""
    prompt = replace(asked.prompt, cache_key=asked.cache_key)
    return await guard.engine.agenerate(prompt, sampling=asked.sampling, limits=asked.limits)


@dataclass(slots=True)
class Responder:
    """Answers requests on one event loop.

    Attributes:
        admission: counts requests at the same time.
        rates: counts each key's requests and tokens.
        decisions: the most recent decisions.
        watchers: observe every answer and error.
        charge: counts tokens towards a key's quota; None if there are no keys.
        content_filter: as in `guard.serve.settings.ServeSettings`.
        conversations: accepted conversations, for side requests; None if none is answered unguarded.
    """

    admission: Admission
    rates: RateLimits
    decisions: RecentDecisions
    watchers: tuple[Watcher, ...] = ()
    charge: Any = None
    content_filter: bool = False
    conversations: KnownConversations | None = None

    async def answer(self, asked: Asked, caller: Caller) -> ServedAnswer:
        """Answer a request; cancelling the task stops the generation.

        Raises:
            RequestError: the server is full, or the answer lacks the requested form.
            Exception: as for `Guard.ask`.
        """
        started = time.monotonic()
        try:
            with self.admission.admitted():
                answered = await (self._unguarded(asked, caller) if asked.unguarded else self._guarded(asked, caller))
        except BaseException as error:
            for watcher in self.watchers:
                watcher.failed(asked, error, time.monotonic() - started)
            raise
        return answered

    async def _guarded(self, asked: Asked, caller: Caller) -> ServedAnswer:
        started = time.monotonic()
        asked, outcome = await asked.target.model.ask(prefix_key(asked), asked.target.guard, partial(_outcome, asked))
        said = verdict(outcome, asked)
        tokens = used_tokens(outcome)
        await self._record(asked, caller, said, outcome, sum(tokens), started)
        last = outcome.attempts[-1]
        if self.conversations is not None and outcome.accepted and outcome.mode == "enforce" and outcome.answer:
            await self.conversations.add(caller.id, asked.prompt, outcome.answer)
        return ServedAnswer(
            message=answer_message(outcome, asked, content_filter=self.content_filter),
            said=said,
            model=asked.target.id,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            logprobs=self._logprobs(asked, last.generation if is_models(outcome) else None),
            created=int(time.time()),
        )

    async def _unguarded(self, asked: Asked, caller: Caller) -> ServedAnswer:
        """Answer without a policy, with the verdict ``unguarded``."""
        started = time.monotonic()
        target = asked.target
        generation = await target.model.ask(prefix_key(asked), target.guard, partial(_generation, asked))
        said = {"action": UNGUARDED, "p_wrong": None, "rule": None, "decision_id": str(uuid.uuid4()), "review_id": None}
        tokens = (generation.prompt_tokens, generation.completion_tokens)
        await self._record(asked, caller, said, None, sum(tokens), started)
        message = read_answer(generation.text, generation.finish_reason, asked.form, reasoning=generation.reasoning)
        logprobs = self._logprobs(asked, generation)
        return ServedAnswer(message, said, asked.target.id, *tokens, logprobs, int(time.time()))

    async def _record(
        self,
        asked: Asked,
        caller: Caller,
        said: Mapping[str, Any],
        outcome: Outcome | None,
        tokens: int,
        started: float,
    ) -> None:
        await self.decisions.add(caller.id, said)
        self.rates.charge(caller, tokens)
        for watcher in self.watchers:
            watcher.answered(asked, said, outcome, time.monotonic() - started)
        if self.charge is not None:
            await asyncio.to_thread(self.charge, caller.id, tokens)

    @staticmethod
    def _logprobs(asked: Asked, generation: Generation | None) -> dict[str, Any] | None:
        return token_logprobs(generation, asked.target.guard.engine) if asked.logprobs else None
