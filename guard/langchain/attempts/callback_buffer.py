"""Buffers the callbacks of an attempt until its answer is accepted, then sends them to the real handlers.

Streams, ``astream_events``, LangGraph's streams, tracers and all other listeners follow a chain through callbacks.
During an attempt a recorder replaces all of them. If the attempt is accepted, the buffer is flushed: each event is sent
with the ids, parents, tags and metadata that it was made with. Otherwise the buffer is dropped.
Written here, because LangChain cannot hold callbacks back.

Handlers attached to a step inside the chain (a model's own ``callbacks``, ``step.with_config``) are part of that step
and see what it sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager, StdOutCallbackHandler
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config
from langchain_core.tracers.stdout import ConsoleCallbackHandler

from guard.langchain.attempts.model_calls import CallLog
from guard.langchain.upstream_internals import (
    V2_STREAMING_HANDLER,
    environment_handler_types,
    scoped_handlers,
    streams_outputs,
    with_buffered_channels,
    with_store,
)
from guard.runtime.steps import Step, Steps

#: Every callback, with the attribute by which a handler opts out of it.
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


@dataclass(frozen=True, slots=True)
class _Event:
    """One callback.

    Attributes:
        name: name of the handler's method.
        arguments: positional arguments.
        keywords: keyword arguments, among them the run's id, its parent, tags and metadata.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _OutputChunk:
    """One chunk of a run's output for a handler that taps outputs.

    Attributes:
        output: number of the tapped output.
        run_id: the run.
        chunk: the chunk in a tuple; None ends the output.
    """

    output: int
    run_id: UUID
    chunk: tuple[Any] | None


@dataclass(frozen=True, slots=True)
class _ChannelValue:
    """A value for the stream of the outer graph."""

    channel: Callable[[Any], None]
    value: Any

    def send(self) -> None:
        self.channel(self.value)


_Buffered = _Event | _OutputChunk | _ChannelValue


@dataclass(slots=True)
class CallbackBuffer:
    """The undelivered callbacks of one attempt.

    Attributes:
        handlers: receive the events when the buffer is flushed.
    """

    handlers: list[BaseCallbackHandler]
    _events: list[_Buffered] = field(default_factory=list)
    _outputs: int = 0

    def add(self, event: _Buffered) -> None:
        """Append one event."""
        self._events.append(event)

    def new_output(self) -> int:
        """Return the number of one more tapped output."""
        self._outputs += 1
        return self._outputs

    def channel(self, send: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a function that buffers values for a graph's channel in place of sending them."""
        return lambda value: self.add(_ChannelValue(send, value))

    def flush(self) -> Steps[None]:
        """Deliver the events in order and empty the buffer."""
        outputs = _TappedOutputs(self.handlers)
        for event in self._take():
            if isinstance(event, _OutputChunk):
                outputs.send(event)
            elif isinstance(event, _ChannelValue):
                event.send()
            else:
                call = (self.handlers, event.name, CALLBACKS[event.name], *event.arguments)
                yield Step(
                    partial(handle_event, *call, **event.keywords), partial(ahandle_event, *call, **event.keywords)
                )

    def _take(self) -> list[_Buffered]:
        taken, self._events = self._events, []
        return taken


class _Queue:
    """An iterator over what was appended; it ends while the queue is empty."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self.items:
            raise StopIteration
        return self.items.popleft()


class _TappedOutputs:
    """Sends buffered chunks to the handler that taps outputs, if there is one."""

    def __init__(self, handlers: Sequence[BaseCallbackHandler]) -> None:
        self._handler: Any = next((handler for handler in handlers if streams_outputs(handler)), None)
        self._open: dict[int, tuple[_Queue, Iterator[Any]]] = {}

    def send(self, event: _OutputChunk) -> None:
        if self._handler is None:
            return
        if event.output not in self._open:
            queue = _Queue()
            self._open[event.output] = queue, self._handler.tap_output_iter(event.run_id, queue)
        queue, tapped = self._open[event.output]
        if event.chunk is not None:
            queue.items.append(event.chunk[0])
        next(tapped, None)


class _Recorder(BaseCallbackHandler):
    """Replaces all handlers of an attempt.

    Without a buffer it only logs model calls; the real handlers are called directly.
    """

    run_inline = True  # on the thread of the run, so that events keep their order
    raise_error = True  # an attempt must not pass when its recorder fails

    def __init__(self, buffer: CallbackBuffer | None, log: CallLog) -> None:
        self._buffer = buffer
        self._log = log

    def _record(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._log.record(name, arguments, keywords)
        if self._buffer is not None:
            self._buffer.add(_Event(name, arguments, keywords))


def _recording(name: str) -> Callable[..., None]:
    def record(self: _Recorder, *arguments: Any, **keywords: Any) -> None:
        self._record(name, arguments, keywords)

    record.__name__ = name
    return record


for _name in CALLBACKS:
    setattr(_Recorder, _name, _recording(_name))


class _TappingRecorder(_Recorder):
    """A recorder that also replaces a handler that taps outputs; it makes models stream, as that handler does."""

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        assert self._buffer is not None
        number = self._buffer.new_output()
        for chunk in output:
            self._buffer.add(_OutputChunk(number, run_id, (chunk,)))
            yield chunk
        self._buffer.add(_OutputChunk(number, run_id, None))

    async def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        assert self._buffer is not None
        number = self._buffer.new_output()
        async for chunk in output:
            self._buffer.add(_OutputChunk(number, run_id, (chunk,)))
            yield chunk
        self._buffer.add(_OutputChunk(number, run_id, None))


def _recorder(buffer: CallbackBuffer, log: CallLog) -> _Recorder:
    """Return a recorder under which models and steps behave as they do under the replaced handlers."""
    kind: type[_Recorder] = _TappingRecorder if any(map(streams_outputs, buffer.handlers)) else _Recorder
    marker = V2_STREAMING_HANDLER
    if marker is not None and any(isinstance(handler, marker) for handler in buffer.handlers):
        kind = type(kind.__name__, (kind, marker), {})
    return kind(buffer, log)


class _InertHandler:
    """Mixin of a handler that ignores everything.

    Where ``debug`` or ``verbose`` is set, LangChain adds a printing handler to a run that has none of that class.
    """

    ignore_llm = ignore_chat_model = ignore_chain = ignore_agent = True
    ignore_retriever = ignore_retry = ignore_custom_event = True

    def on_text(self, *_: Any, **__: Any) -> None:
        """Ignore the one callback that handlers cannot opt out of."""


def _inert_handlers() -> list[BaseCallbackHandler]:
    """Return one inert handler for each class that LangChain would add by itself."""
    kinds: list[type[BaseCallbackHandler]] = [ConsoleCallbackHandler, StdOutCallbackHandler]
    kinds += environment_handler_types()
    # No callback reaches them, so they are created without being initialised.
    return [object.__new__(type(f"Inert{kind.__name__}", (_InertHandler, kind), {})) for kind in kinds]


# -- configs of an attempt ---------------------------------------------------------------------


def buffering(config: RunnableConfig) -> tuple[CallbackBuffer, CallLog, RunnableConfig]:
    """Return a buffer, a call log, and the config of an attempt whose only handler is the recorder."""
    manager = config["callbacks"]
    assert isinstance(manager, BaseCallbackManager)
    buffer, log = CallbackBuffer(_handlers(manager)), CallLog()
    manager = manager.copy()
    manager.set_handlers([_recorder(buffer, log), *_inert_handlers()])
    buffered = patch_config(config, callbacks=manager)
    buffered["configurable"] = with_buffered_channels(_configurable(config), buffer.channel)
    return buffer, log, buffered


def passthrough(config: RunnableConfig) -> tuple[CallbackBuffer, CallLog, RunnableConfig]:
    """Return an empty buffer, a call log, and a config whose handlers get every event at once."""
    manager = config["callbacks"]
    assert isinstance(manager, BaseCallbackManager)
    log = CallLog()
    manager = manager.copy()
    manager.add_handler(_Recorder(None, log))
    passed = patch_config(config, callbacks=manager)
    passed["configurable"] = _configurable(config)
    return CallbackBuffer([]), log, passed


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    """Return the ``configurable`` part for an attempt, which may read an outer graph's store only."""
    return with_store(config.get("configurable") or {}, _read_only)


def _read_only(store: Any) -> Any:
    from guard.langchain.attempts.read_only_store import read_only  # a graph runs, so langgraph is there

    return read_only(store)


def _handlers(manager: BaseCallbackManager) -> list[BaseCallbackHandler]:
    """Return the handlers of a run's children, with those that are registered for the current block of code."""
    handlers = list(manager.handlers)
    for handler in scoped_handlers():
        if not any(handler is known for known in handlers):
            handlers.append(handler)
    return handlers
