"""Runs a chain so that nobody hears of it before its answer is accepted.

Streams, ``astream_events``, LangGraph's streams, tracers and every other listener get to know what goes
on in a chain by callbacks. While an attempt runs, a recorder takes the place of all of them. When the
attempt is accepted the recording is played to them, event by event, with the ids, parents, tags and
metadata that it was made with; when it is not, it is dropped.

What is attached to a step inside the chain (a model's own ``callbacks``, ``step.with_config``) is a part
of that step: it sees what the step sees.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager, StdOutCallbackHandler
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import patch_config, set_config_context
from langchain_core.tracers import _streaming
from langchain_core.tracers import context as tracers
from langchain_core.tracers.stdout import ConsoleCallbackHandler
from langsmith.run_helpers import tracing_context

from guard.engines.witness import OPEN_CALL, OpenCall, open_call
from guard.langchain.attempts.accounting import all_calls
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.langchain.attempts.model_calls import CallLog, ModelCall
from guard.langchain.attempts.stateful_steps import history_of

#: Every callback, with the attribute by which a handler says that it does not want it.
CALLBACKS = {
    "on_llm_start": "ignore_llm",
    "on_chat_model_start": "ignore_chat_model",
    "on_llm_new_token": "ignore_llm",
    "on_stream_event": "ignore_llm",
    "on_llm_end": "ignore_llm",
    "on_llm_error": "ignore_llm",
    "on_chain_start": "ignore_chain",
    "on_chain_end": "ignore_chain",
    "on_chain_error": "ignore_chain",
    "on_tool_start": "ignore_agent",
    "on_tool_end": "ignore_agent",
    "on_tool_error": "ignore_agent",
    "on_agent_action": "ignore_agent",
    "on_agent_finish": "ignore_agent",
    "on_retriever_start": "ignore_retriever",
    "on_retriever_end": "ignore_retriever",
    "on_retriever_error": "ignore_retriever",
    "on_retry": "ignore_retry",
    "on_text": None,
    "on_custom_event": "ignore_custom_event",
}

#: LangGraph's channels to the stream of the graph around a step: of an inner graph, and of its own code.
_GRAPH_STREAM, _GRAPH_RUNTIME = "__pregel_stream", "__pregel_runtime"

#: What saves the state of the graph around a step, and of graphs within it.
_GRAPH_CHECKPOINTER = "__pregel_checkpointer"

#: Marks handlers that want a model's events in LangChain's newer form; older versions have none.
_V2Handler: type[Any] | None = getattr(_streaming, "_V2StreamingCallbackHandler", None)


@dataclass(frozen=True, slots=True)
class _Event:
    """One callback.

    Attributes:
        name: of the handler's method.
        arguments: positional.
        keywords: with the run's id, its parent, tags and metadata.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Tapped:
    """One chunk of a run's output, as a stream of events shows it; None ends the tap."""

    tap: int
    run_id: UUID
    chunk: tuple[Any] | None


@dataclass(frozen=True, slots=True)
class _Sent:
    """Something for the stream of the graph around the chain."""

    channel: Callable[[Any], None]
    value: Any

    def send(self) -> None:
        self.channel(self.value)


@dataclass(slots=True)
class Tape:
    """What an attempt's listeners would have heard.

    Attributes:
        listeners: who shall hear it.
    """

    listeners: list[BaseCallbackHandler]
    _events: list[_Event | _Tapped | _Sent] = field(default_factory=list)
    _taps: int = 0

    def add(self, event: _Event | _Tapped | _Sent) -> None:
        """Record one event."""
        self._events.append(event)

    def new_tap(self) -> int:
        """A number for one tapped output."""
        self._taps += 1
        return self._taps

    def sender(self, channel: Callable[[Any], None]) -> Callable[[Any], None]:
        """What stands in for a channel of a graph's stream."""
        return lambda value: self.add(_Sent(channel, value))

    def play(self) -> None:
        """Tell the listeners, once."""
        taps = _Taps(self.listeners)
        for event in self._taken():
            if isinstance(event, _Tapped):
                taps.play(event)
            elif isinstance(event, _Sent):
                event.send()
            else:
                handle_event(self.listeners, event.name, CALLBACKS[event.name], *event.arguments, **event.keywords)

    async def aplay(self) -> None:
        """`play` for listeners that may be coroutines."""
        taps = _Taps(self.listeners)
        for event in self._taken():
            if isinstance(event, _Tapped):
                taps.play(event)
            elif isinstance(event, _Sent):
                event.send()
            else:
                await ahandle_event(
                    self.listeners, event.name, CALLBACKS[event.name], *event.arguments, **event.keywords
                )

    def _taken(self) -> list[_Event | _Tapped | _Sent]:
        taken, self._events = self._events, []
        return taken


class _Feed:
    """An iterator that gives what was put in, and ends where there is nothing."""

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self.queue:
            raise StopIteration
        return self.queue.popleft()


class _Taps:
    """Plays recorded chunks through the listener that streams the outputs of runs, if there is one."""

    def __init__(self, listeners: Sequence[BaseCallbackHandler]) -> None:
        self._listener: Any = next((one for one in listeners if _streams(one)), None)
        self._open: dict[int, tuple[_Feed, Iterator[Any]]] = {}

    def play(self, event: _Tapped) -> None:
        if self._listener is None:
            return
        if event.tap not in self._open:
            feed = _Feed()
            self._open[event.tap] = feed, self._listener.tap_output_iter(event.run_id, feed)
        feed, tapped = self._open[event.tap]
        if event.chunk is not None:
            feed.queue.append(event.chunk[0])
        next(tapped, None)


class _Recorder(BaseCallbackHandler):
    """Stands in for all listeners of an attempt."""

    run_inline = True  # on the thread of the run, so that the order is that of the events
    raise_error = True  # a recorder that fails must not let the attempt pass

    def __init__(self, tape: Tape | None, log: CallLog) -> None:
        self._tape = tape
        self._log = log

    def _record(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._log.note(name, arguments, keywords)
        if self._tape is not None:
            self._tape.add(_Event(name, arguments, keywords))


def _recording(name: str) -> Callable[..., None]:
    def record(self: _Recorder, *arguments: Any, **keywords: Any) -> None:
        self._record(name, arguments, keywords)

    record.__name__ = name
    return record


for _name in CALLBACKS:
    setattr(_Recorder, _name, _recording(_name))


class _TappingRecorder(_Recorder):
    """Also stands in for a listener that streams the outputs of runs; with it, models stream too."""

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        assert self._tape is not None
        tap = self._tape.new_tap()
        for chunk in output:
            self._tape.add(_Tapped(tap, run_id, (chunk,)))
            yield chunk
        self._tape.add(_Tapped(tap, run_id, None))

    async def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        assert self._tape is not None
        tap = self._tape.new_tap()
        async for chunk in output:
            self._tape.add(_Tapped(tap, run_id, (chunk,)))
            yield chunk
        self._tape.add(_Tapped(tap, run_id, None))


def _streams(handler: BaseCallbackHandler) -> Any:
    return isinstance(handler, _streaming._StreamingCallbackHandler)


def _recorder(tape: Tape, log: CallLog) -> _Recorder:
    """A recorder that makes models and steps behave as the listeners in whose place it stands do."""
    kind: type[_Recorder] = _TappingRecorder if any(map(_streams, tape.listeners)) else _Recorder
    if _V2Handler is not None and any(isinstance(one, _V2Handler) for one in tape.listeners):
        kind = type(kind.__name__, (kind, _V2Handler), {})
    return kind(tape, log)


class _Muted:
    """Keeps LangChain from adding a printing handler of this kind where ``debug`` or ``verbose`` is set."""

    ignore_llm = ignore_chat_model = ignore_chain = ignore_agent = True
    ignore_retriever = ignore_retry = ignore_custom_event = True

    def on_text(self, *_: Any, **__: Any) -> None:
        """The one callback that handlers cannot ignore."""


def _muted() -> list[BaseCallbackHandler]:
    """One for each kind of handler that LangChain adds by itself to a run that has none of the kind."""
    by_variable = [kind for _, _, kind, name in tracers._configure_hooks if kind is not None and name is not None]
    kinds: list[type[BaseCallbackHandler]] = [ConsoleCallbackHandler, StdOutCallbackHandler, *by_variable]
    # They are never called, so they need not be initialised.
    return [object.__new__(type(f"Muted{kind.__name__}", (_Muted, kind), {})) for kind in kinds]


# -- running -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of an attempt.

    Attributes:
        chunks: the output: one, or several where it was streamed.
        error: raised by the chain in place of (the rest of) the output.
        calls: the model calls in it.
        tape: what nobody has heard yet.
    """

    chunks: tuple[Any, ...]
    error: Exception | None
    calls: tuple[ModelCall, ...]
    tape: Tape

    @property
    def output(self) -> Any:
        """The chunks put together, as LangChain does it; None where there are none."""
        return join_chunks(self.chunks)


def join_chunks(chunks: Sequence[Any]) -> Any:
    """Add chunks up; where they cannot be added the last one stands for all."""
    if not chunks:
        return None
    whole = chunks[0]
    for chunk in chunks[1:]:
        try:
            whole = whole + chunk
        except TypeError:
            return chunks[-1]
    return whole


def run_held(
    runnable: Runnable[Any, Any],
    asked: Any,
    config: RunnableConfig,
    attempt: AttemptSettings,
    *,
    stream: bool,
    options: dict[str, Any],
    hold: bool = True,
) -> Ran:
    """Run one attempt unheard.

    Args:
        runnable: the chain.
        asked: its input.
        config: of the guarded run's children.
        attempt: for the models inside.
        stream: stream the chain, so that its chunks can be given out as they are.
        options: keyword arguments of the call.
        hold: False lets all listeners hear it at once, and only takes note of the model calls.

    Raises:
        BaseException: what is no `Exception` (an interrupt, a cancellation), and what LangGraph passes
            upwards on purpose, goes through.
    """
    tape, log, quiet = _quiet(config) if hold else _aloud(config)
    chunks: list[Any] = []

    def run() -> None:
        # Tracing by environment would add a listener of its own.
        with tracing_context(enabled=False) if hold else nullcontext():
            if stream:
                chunks.extend(runnable.stream(asked, quiet, **options))
            else:
                chunks.append(runnable.invoke(asked, quiet, **options))

    error, opened = None, open_call()
    with set_config_context(quiet) as context, closing(opened):
        _prepare(context, attempt, opened, hold=hold)
        try:
            context.run(run)
        except Exception as failure:  # noqa: BLE001 - the policy decides what becomes of it
            error = passed_on(failure)
    return ran_so(chunks, error, log, opened, asked=asked, tape=tape)


async def arun_held(
    runnable: Runnable[Any, Any],
    asked: Any,
    config: RunnableConfig,
    attempt: AttemptSettings,
    *,
    stream: bool,
    options: dict[str, Any],
    hold: bool = True,
) -> Ran:
    """`run_held` without blocking the event loop."""
    tape, log, quiet = _quiet(config) if hold else _aloud(config)
    chunks: list[Any] = []

    async def run() -> None:
        with tracing_context(enabled=False) if hold else nullcontext():
            if stream:
                chunks.extend([chunk async for chunk in runnable.astream(asked, quiet, **options)])
            else:
                chunks.append(await runnable.ainvoke(asked, quiet, **options))

    error, opened = None, open_call()
    with set_config_context(quiet) as context, closing(opened):
        _prepare(context, attempt, opened, hold=hold)
        try:
            await asyncio.create_task(run(), context=context)
        except Exception as failure:  # noqa: BLE001 - as above
            error = passed_on(failure)
    return ran_so(chunks, error, log, opened, asked=asked, tape=tape)


def ran_so(
    chunks: Sequence[Any],
    error: Exception | None,
    log: CallLog,
    opened: OpenCall,
    *,
    asked: Any,
    tape: Tape,
) -> Ran:
    """What became of an attempt that is over, with the model calls that it was not told of."""
    calls = all_calls(log.all(), opened, asked=asked, output=join_chunks(chunks), error=error)
    return Ran(tuple(chunks), error, calls, tape)


def heard(
    config: RunnableConfig, attempt: AttemptSettings, opened: OpenCall
) -> tuple[CallLog, RunnableConfig, Context]:
    """A config and a context for an attempt that everybody hears at once; its model calls are logged."""
    _, log, aloud = _aloud(config)
    with set_config_context(aloud) as context:
        context = context.copy()  # it outlives this block, at whose end the config is taken out
    _prepare(context, attempt, opened, hold=False)
    return log, aloud, context


def _aloud(config: RunnableConfig) -> tuple[Tape, CallLog, RunnableConfig]:
    manager = config["callbacks"]
    assert isinstance(manager, BaseCallbackManager)
    log = CallLog()
    manager = manager.copy()
    manager.add_handler(_Recorder(None, log))
    return Tape([]), log, patch_config(config, callbacks=manager)


def _quiet(config: RunnableConfig) -> tuple[Tape, CallLog, RunnableConfig]:
    """The config of an attempt, in which a recorder is the only listener."""
    manager = config["callbacks"]
    assert isinstance(manager, BaseCallbackManager)
    tape, log = Tape(_listeners(manager)), CallLog()
    manager = manager.copy()
    manager.set_handlers([_recorder(tape, log), *_muted()])
    quiet = patch_config(config, callbacks=manager)
    quiet["configurable"] = _held_channels(config.get("configurable") or {}, tape)
    return tape, log, quiet


def _held_channels(configurable: dict[str, Any], tape: Tape) -> dict[str, Any]:
    """The same settings, with LangGraph's channels to the outside replaced by the tape.

    A graph within saves nothing: its checkpoints would keep rejected answers, and the next attempt would go on
    from them. Its interrupts still work; the graph around them is what is resumed.
    """
    held = dict(configurable)
    held.pop(_GRAPH_CHECKPOINTER, None)
    stream, runtime = held.get(_GRAPH_STREAM), held.get(_GRAPH_RUNTIME)
    if stream is not None:
        held[_GRAPH_STREAM] = type(stream)(tape.sender(stream), stream.modes)
    if runtime is not None:
        held[_GRAPH_RUNTIME] = runtime.override(stream_writer=tape.sender(runtime.stream_writer))
    return held


def _listeners(manager: BaseCallbackManager) -> list[BaseCallbackHandler]:
    """Who would hear the children of a run: its handlers, and those that are set for a block of code."""
    listeners = list(manager.handlers)
    for variable, *_ in tracers._configure_hooks:
        handler = variable.get()
        if handler is not None and not any(handler is one for one in listeners):
            listeners.append(handler)
    return listeners


def _prepare(context: Context, attempt: AttemptSettings, opened: OpenCall, *, hold: bool) -> None:
    context.run(ATTEMPT.set, replace(attempt, history=context.run(history_of, None)))
    context.run(OPEN_CALL.set, opened)
    if not hold:
        return
    for variable, value in list(context.items()):
        # Listeners that are set for a block of code, such as get_usage_metadata_callback(), hear the
        # tape; LangChain would let them hear the attempt too.
        if isinstance(value, BaseCallbackHandler):
            context.run(variable.set, None)


def passed_on(error: Exception) -> Exception:
    """An error of the chain. What is none is raised: a graph must see LangGraph's interrupts."""
    graphs = sys.modules.get("langgraph.errors")
    if graphs is not None and isinstance(error, graphs.GraphBubbleUp):
        raise error
    return error
