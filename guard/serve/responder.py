"""Answers requests: admission, guarded call, record."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from guard.engines.protocols import Engine
from guard.engines.tokenizing import TokenizingEngine
from guard.records import Generation, Outcome
from guard.runtime.guard import Guard
from guard.serve.admission import Admission, RateLimits
from guard.serve.answer_message import AnswerMessage, answer_message, read_answer
from guard.serve.asked import Asked, prefix_key
from guard.serve.callers import Caller
from guard.serve.json_schemas import beside_the_loop
from guard.serve.recent_decisions import RecentDecisions
from guard.serve.side_requests import KnownConversations
from guard.serve.token_logprobs import answering_engine, token_logprobs
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


@dataclass(frozen=True, slots=True)
class Times:
    """When an answer was there, in seconds from its request.

    Attributes:
        first_text_s: the first text for the client; as ``decided_s`` where the answer was held.
        decided_s: the decision.
    """

    first_text_s: float
    decided_s: float


class Watcher(Protocol):
    """Observes answers and errors for metrics, traces and logs; it must not record texts."""

    def answered(self, asked: Asked, said: Mapping[str, Any], outcome: Outcome | None, times: Times) -> None:
        """Record an answer."""

    def failed(self, asked: Asked, error: BaseException, seconds: float) -> None:
        """Record a request that failed or was abandoned."""


async def _outcome(asked: Asked, guard: Guard) -> tuple[Asked, Outcome]:
    """Ask a guard; return its outcome, and the request as it was put."""
    outcome = await guard.aask(asked.prompt, **_options(asked))
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
        decisions: the newest verdicts.
        watchers: see every answer and error.
        content_filter: as in `guard.serve.settings.ServeSettings`.
        conversations: accepted conversations, for side requests; None if none is answered unguarded.
    """

    admission: Admission
    rates: RateLimits
    decisions: RecentDecisions
    watchers: tuple[Watcher, ...] = ()
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

    async def live(self, asked: Asked, caller: Caller) -> AsyncGenerator[str | ServedAnswer, None]:
        """Yield an answer's text as it grows, then the whole with its verdict; errors as for `answer`.

        A client that leaves before the end is charged for what it was sent.
        """
        started, first_s, sent = time.monotonic(), None, list[str]()
        try:
            with self.admission.admitted():
                async with aclosing(asked.target.guard.astream(asked.prompt, **_options(asked))) as pieces:
                    async for piece in pieces:
                        first_s = time.monotonic() - started if first_s is None else first_s
                        if isinstance(piece, str):
                            sent.append(piece)
                            yield piece
                        else:
                            sent.clear()  # all of it is charged now
                            yield await self._decided(asked, caller, piece, started, first_s)
        except BaseException as error:
            for watcher in self.watchers:
                watcher.failed(asked, error, time.monotonic() - started)
            if sent:
                await self.rates.charge(caller, await asyncio.to_thread(_count_sent, asked, sent))
            raise

    async def _guarded(self, asked: Asked, caller: Caller) -> ServedAnswer:
        started = time.monotonic()
        asked, outcome = await asked.target.model.ask(prefix_key(asked), asked.target.guard, partial(_outcome, asked))
        return await self._decided(asked, caller, outcome, started)

    async def _decided(
        self, asked: Asked, caller: Caller, outcome: Outcome, started: float, first_s: float | None = None
    ) -> ServedAnswer:
        """Record an outcome, and return what the caller gets."""
        said = verdict(outcome, asked)
        tokens = used_tokens(outcome)
        await self._record(asked, caller, said, outcome, sum(tokens), _times(started, first_s))
        last = outcome.attempts[-1]
        if self.conversations is not None and outcome.accepted and outcome.mode == "enforce" and outcome.answer:
            await self.conversations.add(caller.id, asked.prompt, outcome.answer)
        return ServedAnswer(
            message=await _read(asked, partial(answer_message, outcome, asked, content_filter=self.content_filter)),
            said=said,
            model=asked.target.id,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            logprobs=await self._logprobs(asked, last.generation, answering_engine(asked.target.guard, last))
            if is_models(outcome)
            else None,
            created=int(time.time()),
        )

    async def _unguarded(self, asked: Asked, caller: Caller) -> ServedAnswer:
        """Answer without a policy, with the verdict ``unguarded``."""
        started = time.monotonic()
        target = asked.target
        generation = await target.model.ask(prefix_key(asked), target.guard, partial(_generation, asked))
        said = {"action": UNGUARDED, "p_wrong": None, "rule": None, "decision_id": str(uuid.uuid4()), "review_id": None}
        tokens = (generation.prompt_tokens, generation.completion_tokens)
        await self._record(asked, caller, said, None, sum(tokens), _times(started))
        text, ended, reasoning = generation.text, generation.finish_reason, generation.reasoning
        message = await _read(asked, partial(read_answer, text, ended, asked.form, reasoning=reasoning))
        logprobs = await self._logprobs(asked, generation, target.guard.engine)
        return ServedAnswer(message, said, asked.target.id, *tokens, logprobs, int(time.time()))

    async def _record(
        self,
        asked: Asked,
        caller: Caller,
        said: Mapping[str, Any],
        outcome: Outcome | None,
        tokens: int,
        times: Times,
    ) -> None:
        await self.decisions.add(caller.id, said)
        for watcher in self.watchers:
            watcher.answered(asked, said, outcome, times)
        await self.rates.charge(caller, tokens)

    @staticmethod
    async def _logprobs(asked: Asked, generation: Generation | None, engine: Engine | None) -> dict[str, Any] | None:
        """Return the tokens' log-probabilities; in a thread, since many alternatives take their time."""
        return await asyncio.to_thread(token_logprobs, generation, engine) if asked.logprobs else None


async def _read(asked: Asked, read: Callable[[], AnswerMessage]) -> AnswerMessage:
    """Return an answer's message; beside the event loop if the request's schema decides how long that takes."""
    return await beside_the_loop(read) if asked.form.schema else read()


def _count_sent(asked: Asked, sent: Sequence[str]) -> int:
    """Return the tokens of a prompt and of what was sent; the pieces, where the engine has no tokenizer."""
    engine = asked.target.guard.engine
    if not isinstance(engine, TokenizingEngine):
        return len(sent)
    return len(engine.encode(asked.prompt)) + len(engine.encode_text("".join(sent)))


def _times(started: float, first_s: float | None = None) -> Times:
    """Return the times of an answer that is decided now."""
    decided = time.monotonic() - started
    return Times(decided if first_s is None else first_s, decided)


def _options(asked: Asked) -> dict[str, Any]:
    """Return the options of a guarded call."""
    return {
        "route": asked.target.route,
        "sampling": asked.sampling,
        "limits": asked.limits,
        "metadata": asked.metadata,
        "cache_key": asked.cache_key,
    }
