"""Runs one attempt of a chain and collects its output, its model calls and its callbacks.

With ``buffered=True`` nothing of the attempt reaches a listener (see `guard.langchain.attempts.callback_buffer`) until
the caller flushes the result's buffer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context

from guard.engines.callback_errors import signal_handler_error
from guard.engines.witness import OPEN_CALL, OpenCall, open_call
from guard.langchain.attempts.accounting import all_calls
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.langchain.attempts.callback_buffer import CallbackBuffer, buffering, passthrough
from guard.langchain.attempts.model_calls import CallLog, ModelCall
from guard.langchain.attempts.stateful_steps import find_history
from guard.langchain.upstream_internals import clear_handlers, is_graph_signal, without_tracing
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.deadline import await_within
from guard.runtime.steps import Steps, step_in


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt.

    Attributes:
        chunks: the output: one chunk, or several if it was streamed.
        error: exception that the chain raised in place of (the rest of) the output.
        calls: the model calls of the attempt.
        buffer: callbacks that no handler has received yet.
    """

    chunks: tuple[Any, ...]
    error: Exception | None
    calls: tuple[ModelCall, ...]
    buffer: CallbackBuffer

    @property
    def output(self) -> Any:
        """The chunks joined as LangChain joins them; None if there are none."""
        return join_chunks(self.chunks)


def join_chunks(chunks: Sequence[Any]) -> Any:
    """Add chunks up; return the last one if they cannot be added."""
    if not chunks:
        return None
    whole = chunks[0]
    for chunk in chunks[1:]:
        try:
            whole = whole + chunk
        except TypeError:
            return chunks[-1]
    return whole


def own_containers(value: Any) -> Any:
    """Return a copy of the dictionaries and lists of an input, for one attempt.

    A chain that appends to its input would leave a rejected answer there, for the next attempt and the caller, and
    could pass off any text as a part of the question.
    """
    if type(value) is dict:
        return {key: own_containers(each) for key, each in value.items()}
    if type(value) is list:
        return [own_containers(each) for each in value]
    return value


def attempt_steps(
    runnable: Runnable[Any, Any],
    input: Any,
    config: RunnableConfig,
    attempt: AttemptSettings,
    *,
    stream: bool,
    options: dict[str, Any],
    buffered: bool = True,
    name: str = OWN_ENGINE,
) -> Steps[AttemptResult]:
    """Run one attempt.

    On an event loop nothing waits for a buffered attempt past its deadline: it is cancelled, and its error is an
    `EngineTimeoutError`. Without one its steps cannot be interrupted; whether it was late is for the caller to check.

    Args:
        runnable: the chain.
        input: the chain's input.
        config: config for the children of the guarded run.
        attempt: settings for the models in the chain.
        stream: stream the chain, so that its chunks can be passed on unchanged.
        options: keyword arguments of the call.
        buffered: hold back callbacks; False sends them at once and only logs the model calls.
        name: of the attempt's source, for the error of a late one.

    Raises:
        BaseException: exceptions that are no `Exception` (cancellation), LangGraph's signals (interrupts), and what a
            Python signal handler raised.
    """
    buffer, log, child = buffering(config) if buffered else passthrough(config)
    deadline = attempt.deadline if buffered else None
    output = _Output(runnable, own_containers(input), child, options, stream=stream, traced=not buffered)
    error, opened = None, open_call()
    with set_config_context(child) as context, closing(opened):
        _prepare(context, attempt, opened, buffered=buffered)
        try:
            yield step_in(context, output.collect, partial(output.acollect_by, deadline, name))
        except Exception as failure:  # noqa: BLE001 - the policy decides what happens
            error = failure_for_policy(failure)
    return attempt_result(output.chunks, error, log, opened, input=input, buffer=buffer)


@dataclass(frozen=True, slots=True)
class _Output:
    """Runs a runnable and collects the chunks of its output: one, or several if it streams."""

    runnable: Runnable[Any, Any]
    input: Any
    config: RunnableConfig
    options: dict[str, Any]
    stream: bool
    traced: bool
    chunks: list[Any] = field(default_factory=list)

    def collect(self) -> None:
        with self._tracing():
            if self.stream:
                self.chunks.extend(self.runnable.stream(self.input, self.config, **self.options))
            else:
                self.chunks.append(self.runnable.invoke(self.input, self.config, **self.options))

    async def acollect(self) -> None:
        with self._tracing():
            if self.stream:
                async for chunk in self.runnable.astream(self.input, self.config, **self.options):
                    self.chunks.append(chunk)
            else:
                self.chunks.append(await self.runnable.ainvoke(self.input, self.config, **self.options))

    async def acollect_by(self, deadline: float | None, name: str) -> None:
        if deadline is None:
            await self.acollect()
        else:
            await await_within(self.acollect(), max(0.001, deadline - time.monotonic()), name=name)

    def _tracing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.traced else without_tracing()


def attempt_result(
    chunks: Sequence[Any],
    error: Exception | None,
    log: CallLog,
    opened: OpenCall,
    *,
    input: Any,
    buffer: CallbackBuffer,
) -> AttemptResult:
    """Return the result of a finished attempt, with the model calls that no callback reported."""
    calls = all_calls(log.all(), opened, input=input, output=join_chunks(chunks), error=error)
    return AttemptResult(tuple(chunks), error, calls, buffer)


def open_passthrough(
    config: RunnableConfig, attempt: AttemptSettings, opened: OpenCall
) -> tuple[CallLog, RunnableConfig, Context]:
    """Return the call log, config and context of an attempt whose callbacks are sent at once."""
    _, log, child = passthrough(config)
    with set_config_context(child) as context:
        context = context.copy()  # it outlives this block, which removes the config at its end
    _prepare(context, attempt, opened, buffered=False)
    return log, child, context


def _prepare(context: Context, attempt: AttemptSettings, opened: OpenCall, *, buffered: bool) -> None:
    context.run(ATTEMPT.set, replace(attempt, history=context.run(find_history, None)))
    context.run(OPEN_CALL.set, opened)
    if buffered:
        clear_handlers(context)


def failure_for_policy(error: Exception) -> Exception:
    """Return an error of the chain.

    Raises:
        Exception: what is no failure of the chain: LangGraph's signals, which the outer graph must receive, and what a
            signal handler raised, for the caller. An error that the chain raised from it may quote an answer, and is
            not shown.
    """
    if is_graph_signal(error):
        raise error
    if (raised := signal_handler_error(error)) is not None:
        raise raised from raised.__cause__
    return error
