"""Carries a guarded call of a chain out: runs its attempts, releases or drops them, acts, reports."""

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
from guard.langchain.attempts.buffered_run import Ran, Tape, arun_held, heard, passed_on, ran_so, run_held
from guard.langchain.chain.chain_call import ChainCall, Plan
from guard.langchain.chain.replies import gives_messages, reply_message
from guard.langchain.chat.stream_monitor import RetractedError
from guard.langchain.tracing import marked_event
from guard.records import Outcome
from guard.review.handlers import aescalate, escalate
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.deadline import await_within, run_within

#: Names of the events that listeners get of a guarded call.
DECISION_EVENT = "guard_decision"
RETRACTED_EVENT = "guard_retracted"


@dataclass(frozen=True, slots=True)
class GuardedOutcome:
    """What a guarded chain gives where the outcome is asked for.

    Attributes:
        output: the chain's output, or what stands in its place.
        outcome: the decision, its score, and every attempt. Texts that were not accepted are not in it.
    """

    output: Any
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """One guarded call in LangChain's terms.

    Attributes:
        call: its state.
        config: of the children of the guarded run.
        options: keyword arguments for the chain.
    """

    call: ChainCall
    config: RunnableConfig
    options: dict[str, Any]

    @property
    def streams_live(self) -> bool:
        """Whether a stream is to be shown before it is decided on."""
        return self.call.state.shadow or self.call.state.policy.streaming == "live"

    @property
    def _told(self) -> RunnableConfig:
        return marked_event(self.config, self.call.state.decision.action)

    # -- decided first ---------------------------------------------------------------------------

    def run(self, *, stream: bool) -> list[Any]:
        """Run until the policy is content; gives the chunks for the caller (one, unless streamed)."""
        while True:
            plan = self.call.plan()
            ran = self._ran(plan, stream=stream)
            try:
                goes_on = self.call.settle(plan, ran)
            except Exception:
                if not ran.calls:  # no model has answered, so the error may be traced as any other
                    ran.tape.play()
                raise
            if self.call.state.released:
                ran.tape.play()
            dispatch_custom_event(DECISION_EVENT, self.call.event(), config=self._told)
            if not goes_on:
                return self._finish(self._escalate(), stream=stream)

    async def arun(self, *, stream: bool) -> list[Any]:
        """`run` without blocking the event loop."""
        while True:
            plan = self.call.plan()
            ran = await self._aran(plan, stream=stream)
            try:
                goes_on = self.call.settle(plan, ran)
            except Exception:
                if not ran.calls:
                    await ran.tape.aplay()
                raise
            if self.call.state.released:
                await ran.tape.aplay()
            await adispatch_custom_event(DECISION_EVENT, self.call.event(), config=self._told)
            if not goes_on:
                return self._finish(await self._aescalate(), stream=stream)

    def _ran(self, plan: Plan, *, stream: bool) -> Ran:
        """Run an attempt. A fallback is left behind where it is late; nobody has heard of it."""
        work = partial(run_held, plan.runnable, self.call.asked, self.config, plan.settings, **self._ways(stream))
        if plan.source == OWN_ENGINE:
            return work()
        key = self.call.guarded.fallbacks[plan.source]
        try:
            return run_within(key, work, self.call.state.seconds_left, name=plan.source)
        except EngineTimeoutError as error:
            return Ran((), error, (), Tape([]))

    async def _aran(self, plan: Plan, *, stream: bool) -> Ran:
        """`_ran` without blocking the event loop; a fallback that is late is cancelled."""
        work = arun_held(plan.runnable, self.call.asked, self.config, plan.settings, **self._ways(stream))
        if plan.source == OWN_ENGINE:
            return await work
        try:
            return await await_within(work, self.call.state.seconds_left, name=plan.source)
        except EngineTimeoutError as error:
            return Ran((), error, (), Tape([]))

    def _ways(self, stream: bool) -> dict[str, Any]:
        return {"stream": stream, "options": self.options, "hold": not self.call.state.shadow}

    # -- shown first -----------------------------------------------------------------------------

    def live(self) -> Iterator[Any]:
        """Show the chain's stream as it comes; an end that does not hold is an error, with an event."""
        self.call.live = not self.call.state.shadow
        plan, hidden = self.call.plan(), self.call.guarded.return_outcome
        opened = open_call()
        log, config, context = heard(self.config, plan.settings, opened)
        chunks: list[Any] = []
        error: Exception | None = None
        stream = context.run(plan.runnable.stream, self.call.asked, config, **self.options)
        try:
            while (chunk := context.run(next, stream, _END)) is not _END:
                chunks.append(chunk)
                if not hidden:
                    yield chunk
        except Exception as failure:  # noqa: BLE001 - the policy decides what becomes of it
            error = passed_on(failure)
        finally:
            context.run(_close, stream)
            opened.close()
        self.call.settle(plan, ran_so(chunks, error, log, opened, asked=self.call.asked, tape=Tape([])))
        dispatch_custom_event(DECISION_EVENT, self.call.event(), config=self._told)
        outcome = self._escalate()
        if not self.call.state.released:
            dispatch_custom_event(RETRACTED_EVENT, self.call.event(), config=self._told)
            raise self._retracted(outcome)
        yield from self._finish(outcome, stream=True)[0 if hidden else len(chunks) :]

    async def alive(self) -> AsyncGenerator[Any, None]:
        """`live` without blocking the event loop."""
        self.call.live = not self.call.state.shadow
        plan, hidden = self.call.plan(), self.call.guarded.return_outcome
        opened = open_call()
        log, config, context = heard(self.config, plan.settings, opened)
        chunks: list[Any] = []
        error: Exception | None = None
        stream = context.run(plan.runnable.astream, self.call.asked, config, **self.options)
        try:
            while (chunk := await asyncio.create_task(_next(stream), context=context)) is not _END:
                chunks.append(chunk)
                if not hidden:
                    yield chunk
        except Exception as failure:  # noqa: BLE001 - as above
            error = passed_on(failure)
        finally:
            await asyncio.create_task(_aclose(stream), context=context)
            opened.close()
        self.call.settle(plan, ran_so(chunks, error, log, opened, asked=self.call.asked, tape=Tape([])))
        await adispatch_custom_event(DECISION_EVENT, self.call.event(), config=self._told)
        outcome = await self._aescalate()
        if not self.call.state.released:
            await adispatch_custom_event(RETRACTED_EVENT, self.call.event(), config=self._told)
            raise self._retracted(outcome)
        for chunk in self._finish(outcome, stream=True)[0 if hidden else len(chunks) :]:
            yield chunk

    def _retracted(self, outcome: Outcome) -> RetractedError:
        policy = self.call.state.policy.name
        error = RetractedError(
            f"The answer was taken back by the policy '{policy}' ({outcome.rule})", why=outcome.reason
        )
        error.outcome = outcome
        return error

    # -- the end -----------------------------------------------------------------------------------

    def _escalate(self) -> Outcome:
        to = self.call.state.escalate_to
        if not to:
            return self.call.outcome()
        delivery = escalate(self.call.escalation(), to=to, **self._handling())
        return self.call.outcome(delivery=delivery)

    async def _aescalate(self) -> Outcome:
        to = self.call.state.escalate_to
        if not to:
            return self.call.outcome()
        delivery = await aescalate(self.call.escalation(), to=to, **self._handling())
        return self.call.outcome(delivery=delivery)

    def _handling(self) -> dict[str, Any]:
        guarded = self.call.guarded
        return {"handlers": guarded.all_handlers(), "timeout_s": guarded.handler_timeout_s}

    def _finish(self, outcome: Outcome, *, stream: bool) -> list[Any]:
        """The chunks for the caller: the chain's own, or what the policy puts in their place."""
        guarded, ran = self.call.guarded, self.call.ran
        if self.call.state.released:
            if ran.error is not None:
                raise ran.error
            return [GuardedOutcome(ran.output, outcome)] if guarded.return_outcome else list(ran.chunks)
        self.call.state.check_abstention()
        value = self._in_place(outcome, chunk=stream and not guarded.return_outcome)
        if guarded.return_outcome:
            return [GuardedOutcome(value, outcome)]
        return [] if stream and value is None else [value]

    def _in_place(self, outcome: Outcome, *, chunk: bool) -> Any:
        """What the caller gets in place of an answer."""
        guarded, ran = self.call.guarded, self.call.ran
        if guarded.output is not None:
            return guarded.output(outcome)
        messages = isinstance(ran.output, BaseMessage) or (not ran.chunks and gives_messages(guarded.runnable))
        return reply_message(outcome, policy=self.call.state.policy.name, chunk=chunk) if messages else outcome.answer


_END = object()


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, _END)


def _close(stream: Iterator[Any]) -> None:
    """End a stream that is left early; a plain iterator has nothing to end."""
    if isinstance(stream, Generator):
        stream.close()


async def _aclose(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
