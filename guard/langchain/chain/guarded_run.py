"""Runs a guarded call of a chain: its attempts, the release of its answer, escalation and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from guard.engines.witness import open_call
from guard.errors import EngineTimeoutError
from guard.langchain.attempts.attempt_run import (
    AttemptResult,
    arun_attempt,
    attempt_result,
    failure_for_policy,
    open_passthrough,
    own_containers,
    run_attempt,
)
from guard.langchain.attempts.callback_buffer import CallbackBuffer
from guard.langchain.attempts.stream_monitor import RetractedError
from guard.langchain.chain.chain_call import ChainAttempt, ChainCall
from guard.langchain.chain.replies import gives_messages, reply_message
from guard.langchain.tracing import DECISION_EVENT, RETRACTED_EVENT, marked_event
from guard.records import Outcome
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.deadline import await_within, run_within
from guard.runtime.resources import escalation_step
from guard.runtime.steps import Step, Steps, adrive, drive


@dataclass(frozen=True, slots=True)
class GuardedOutcome:
    """The result of a guarded chain with its outcome.

    Attributes:
        output: the chain's output, or what replaces it.
        outcome: the decision, its score, and every attempt. It contains no rejected text.
    """

    output: Any
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """One guarded call as a LangChain run.

    Attributes:
        call: state of the call.
        config: config for the children of the guarded run.
        options: keyword arguments for the chain.
    """

    call: ChainCall
    config: RunnableConfig
    options: dict[str, Any]

    @property
    def streams_live(self) -> bool:
        """Whether a stream is shown before it is decided."""
        return self.call.state.shadow or self.call.state.policy.streaming == "live"

    @property
    def _event_config(self) -> RunnableConfig:
        return marked_event(self.config, self.call.state.decision.action)

    # -- decided before it is shown --------------------------------------------------------------

    def run(self, *, stream: bool) -> list[Any]:
        """Run attempts until the policy asks for no other; return the chunks for the caller (one unless streamed)."""
        return drive(self._steps(stream=stream))

    async def arun(self, *, stream: bool) -> list[Any]:
        """`run` without blocking the event loop."""
        return await adrive(self._steps(stream=stream))

    def _steps(self, *, stream: bool) -> Steps[list[Any]]:
        """Run attempts until the policy asks for no other, then carry out its last decision."""
        again = True
        while again:
            attempt = self.call.next_attempt()
            result = yield Step(partial(self._run, attempt, stream=stream), partial(self._arun, attempt, stream=stream))
            flush = Step(result.buffer.flush, result.buffer.aflush)
            try:
                again = self.call.record_result(attempt, result)
            except Exception:
                if not result.calls:  # no model has answered, so the error may appear in traces
                    yield flush
                raise
            if self.call.state.released:
                yield flush
            yield self._event(DECISION_EVENT)
        outcome = yield from self._escalation()
        return self._finish(outcome, stream=stream)

    def _run(self, attempt: ChainAttempt, *, stream: bool) -> AttemptResult:
        """Run an attempt. A late fallback is abandoned; none of its callbacks has been sent."""
        work = partial(run_attempt, attempt.runnable, self.call.input, self.config, attempt.settings)
        work = partial(work, **self._run_options(stream))
        if attempt.source == OWN_ENGINE:
            return work()
        key = self.call.rules.fallbacks[attempt.source]
        try:
            return run_within(key, work, self.call.state.seconds_left, name=attempt.source)
        except EngineTimeoutError as error:
            return AttemptResult((), error, (), CallbackBuffer([]))

    async def _arun(self, attempt: ChainAttempt, *, stream: bool) -> AttemptResult:
        """`_run` without blocking the event loop; a late fallback is cancelled."""
        options = self._run_options(stream)
        work = arun_attempt(attempt.runnable, self.call.input, self.config, attempt.settings, **options)
        if attempt.source == OWN_ENGINE:
            return await work
        try:
            return await await_within(work, self.call.state.seconds_left, name=attempt.source)
        except EngineTimeoutError as error:
            return AttemptResult((), error, (), CallbackBuffer([]))

    def _run_options(self, stream: bool) -> dict[str, Any]:
        return {"stream": stream, "options": self.options, "buffered": not self.call.state.shadow}

    # -- shown before it is decided --------------------------------------------------------------

    def stream_live(self) -> Iterator[Any]:
        """Yield the chain's chunks at once; a rejected answer ends in an event and `RetractedError`."""
        self.call.live = not self.call.state.shadow
        attempt, hidden = self.call.next_attempt(), self.call.rules.return_outcome
        opened = open_call()
        log, config, context = open_passthrough(self.config, attempt.settings, opened)
        chunks: list[Any] = []
        error: Exception | None = None
        stream = context.run(attempt.runnable.stream, own_containers(self.call.input), config, **self.options)
        try:
            while (chunk := context.run(next, stream, _END)) is not _END:
                chunks.append(chunk)
                if not hidden:
                    yield chunk
        except Exception as failure:  # noqa: BLE001 - the policy decides what happens
            error = failure_for_policy(failure)
        finally:
            context.run(_close, stream)
            opened.close()
        result = attempt_result(chunks, error, log, opened, input=self.call.input, buffer=CallbackBuffer([]))
        yield from drive(self._end_live(attempt, result))[0 if hidden else len(chunks) :]

    async def astream_live(self) -> AsyncGenerator[Any, None]:
        """`stream_live` without blocking the event loop."""
        self.call.live = not self.call.state.shadow
        attempt, hidden = self.call.next_attempt(), self.call.rules.return_outcome
        opened = open_call()
        log, config, context = open_passthrough(self.config, attempt.settings, opened)
        chunks: list[Any] = []
        error: Exception | None = None
        stream = context.run(attempt.runnable.astream, own_containers(self.call.input), config, **self.options)
        try:
            while (chunk := await asyncio.create_task(_next(stream), context=context)) is not _END:
                chunks.append(chunk)
                if not hidden:
                    yield chunk
        except Exception as failure:  # noqa: BLE001 - as above
            error = failure_for_policy(failure)
        finally:
            await asyncio.create_task(_aclose(stream), context=context)
            opened.close()
        result = attempt_result(chunks, error, log, opened, input=self.call.input, buffer=CallbackBuffer([]))
        for chunk in (await adrive(self._end_live(attempt, result)))[0 if hidden else len(chunks) :]:
            yield chunk

    def _end_live(self, attempt: ChainAttempt, result: AttemptResult) -> Steps[list[Any]]:
        """Decide about an answer that was shown as it came, and carry the decision out."""
        self.call.record_result(attempt, result)
        yield self._event(DECISION_EVENT)
        outcome = yield from self._escalation()
        if not self.call.state.released:
            yield self._event(RETRACTED_EVENT)
            raise self._retracted(outcome)
        return self._finish(outcome, stream=True)

    def _retracted(self, outcome: Outcome) -> RetractedError:
        policy = self.call.state.policy.name
        error = RetractedError(f"The policy '{policy}' retracted the answer ({outcome.rule})", why=outcome.reason)
        error.outcome = outcome
        return error

    # -- the end -----------------------------------------------------------------------------------

    def _escalation(self) -> Steps[Outcome]:
        """Pass the case to the handlers that the policy names, if it escalates; return the outcome."""
        to, rules = self.call.state.escalate_to, self.call.rules
        if not to:
            return self.call.outcome()
        delivery = yield escalation_step(self.call.escalation(), rules.handlers(), to, rules.handler_timeout_s)
        return self.call.outcome(delivery=delivery)

    def _event(self, name: str) -> Step:
        """Send an event about the last decision."""
        event = partial(dispatch_custom_event, name, self.call.event(), config=self._event_config)
        return Step(event, partial(adispatch_custom_event, name, self.call.event(), config=self._event_config))

    def _finish(self, outcome: Outcome, *, stream: bool) -> list[Any]:
        """Return the chunks for the caller: the chain's own, or what the policy puts in their place."""
        rules, result = self.call.rules, self.call.result
        if self.call.state.released:
            if result.error is not None:
                raise result.error
            return [GuardedOutcome(result.output, outcome)] if rules.return_outcome else list(result.chunks)
        self.call.state.check_abstention()
        value = self._replacement(outcome, chunk=stream and not rules.return_outcome)
        if rules.return_outcome:
            return [GuardedOutcome(value, outcome)]
        return [] if stream and value is None else [value]

    def _replacement(self, outcome: Outcome, *, chunk: bool) -> Any:
        """Return what the caller gets in place of a rejected answer."""
        rules, result = self.call.rules, self.call.result
        if rules.output is not None:
            return rules.output(outcome)
        messages = isinstance(result.output, BaseMessage) or (not result.chunks and gives_messages(rules.runnable))
        return reply_message(outcome, policy=rules.policy.name, chunk=chunk) if messages else outcome.answer


_END = object()


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, _END)


def _close(stream: Iterator[Any]) -> None:
    """Close a stream that is left early; a plain iterator needs no closing."""
    if isinstance(stream, Generator):
        stream.close()


async def _aclose(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
