"""Every use of private names of langchain-core, langchain, langgraph and langsmith, in one place.

None of these is covered by the packages' compatibility policy. `tests/langchain/test_upstream_internals.py` is the
contract: it fails where a version no longer has a name or no longer behaves as this module assumes, and
`tests/langchain/oldest.sh` runs it with the oldest supported versions.

Methods with a leading underscore that the packages document for subclasses (``_generate``, ``_call_with_config``) are
overridden where they belong and are not listed here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from types import FrameType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers import _streaming
from langchain_core.tracers import context as _tracer_context
from langsmith.run_helpers import tracing_context

#: The key under which LangChain puts a conversation's history into the ``configurable`` part of a config.
MESSAGE_HISTORY = "message_history"

#: Keys of a LangGraph config: the outer graph's stream, runtime (with stream writer and store), checkpointer, cache.
GRAPH_STREAM = "__pregel_stream"
GRAPH_RUNTIME = "__pregel_runtime"
GRAPH_CHECKPOINTER = "__pregel_checkpointer"
GRAPH_CACHE = "__pregel_cache"

#: Marker class of handlers that want model events in LangChain's newer form; None before it existed.
V2_STREAMING_HANDLER: type[Any] | None = getattr(_streaming, "_V2StreamingCallbackHandler", None)


def streams_outputs(handler: BaseCallbackHandler) -> bool:
    """Return whether a handler taps the outputs of runs, as ``astream_events`` and ``astream_log`` do."""
    return isinstance(handler, _streaming._StreamingCallbackHandler)


def scoped_handlers() -> list[BaseCallbackHandler]:
    """Return the handlers that context variables register for a block of code, such as usage counters."""
    handlers = (variable.get() for variable, *_ in _tracer_context._configure_hooks)
    return [handler for handler in handlers if handler is not None]


def environment_handler_types() -> list[type[BaseCallbackHandler]]:
    """Return the handler classes that LangChain adds to a run by itself when an environment variable is set."""
    hooks = _tracer_context._configure_hooks
    return [kind for _, _, kind, variable in hooks if kind is not None and variable is not None]


def without_tracing() -> AbstractContextManager[None]:
    """Switch off LangSmith tracing for a block of code; the environment would add a tracer of its own."""
    return tracing_context(enabled=False)


def clear_handlers(context: Context) -> None:
    """Remove callback handlers from all variables of a context; LangChain would call them during an attempt."""
    variable: ContextVar[Any]
    for variable, value in list(context.items()):
        if isinstance(value, BaseCallbackHandler):
            context.run(variable.set, None)


def with_buffered_channels(
    configurable: Mapping[str, Any], buffer_channel: Callable[[Callable[[Any], None]], Callable[[Any], None]]
) -> dict[str, Any]:
    """Return a config's ``configurable`` part with LangGraph's outgoing channels replaced.

    The checkpointer and the cache are removed: an inner graph would save rejected answers and resume from them.
    Interrupts still work, since the outer graph is the one that is resumed.

    Args:
        configurable: of the attempt's config.
        buffer_channel: returns the replacement of a channel's send function.
    """
    changed = dict(configurable)
    for key in (GRAPH_CHECKPOINTER, GRAPH_CACHE):
        changed.pop(key, None)
    stream, runtime = changed.get(GRAPH_STREAM), changed.get(GRAPH_RUNTIME)
    if stream is not None:
        changed[GRAPH_STREAM] = type(stream)(buffer_channel(stream), stream.modes)
    if runtime is not None:
        changed[GRAPH_RUNTIME] = runtime.override(stream_writer=buffer_channel(runtime.stream_writer))
    return changed


def with_store(configurable: Mapping[str, Any], replaced: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a config's ``configurable`` part with the outer graph's store replaced, where there is one."""
    runtime = configurable.get(GRAPH_RUNTIME)
    store = getattr(runtime, "store", None)
    if runtime is None or store is None:
        return dict(configurable)
    return {**configurable, GRAPH_RUNTIME: runtime.override(store=replaced(store))}


def has_checkpointer(configurable: Mapping[str, Any]) -> bool:
    """Return whether the graph around a step saves checkpoints, so that it can be paused."""
    return bool(configurable.get(GRAPH_CHECKPOINTER))


def is_graph_signal(error: Exception) -> bool:
    """Return whether an exception is LangGraph's control flow (an interrupt) rather than an error."""
    errors = sys.modules.get("langgraph.errors")
    return errors is not None and isinstance(error, errors.GraphBubbleUp)


def is_graph(step: Any) -> bool:
    """Return whether a step is a compiled LangGraph graph, without importing langgraph."""
    module = sys.modules.get("langgraph.pregel")
    return module is not None and isinstance(step, module.Pregel)


def extended_model_response() -> Any:
    """Return the class by which a model's step writes private state; None before langchain 1.2.9."""
    from langchain.agents.middleware import types

    return getattr(types, "ExtendedModelResponse", None)


def middleware_being_built() -> Sequence[Any] | None:
    """Return the middleware list of the agent that is being built in a calling frame; None where none is.

    LangChain passes a middleware no list. ``create_agent`` reads each middleware's name while its parameter
    ``middleware`` holds the list.
    """
    for frame in _calling_frames():
        middleware = frame.f_locals.get("middleware")
        if frame.f_code.co_name == "create_agent" and isinstance(middleware, Sequence):
            return middleware
    return None


def _calling_frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(3)
    for _ in range(4):  # a comprehension has its own frame before Python 3.12, and so has a subclass's `name`
        if frame is None:
            return
        yield frame
        frame = frame.f_back
