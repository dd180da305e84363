"""Test helper: asserts that no rejected text leaves a runnable by any of LangChain's channels.

    def test_nothing_leaks():
        rejected = chain.invoke(question)              # the same chain, unguarded
        assert_nothing_leaks(guarded(chain, policy="strict"), question, secrets=[rejected])

The runnable is run once per channel. What it returns, streams, raises, logs and prints, and what it sends to callbacks,
tracers and the streams of events and graphs, is searched for the secrets and for any longer piece of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import warnings
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.globals import get_debug, set_debug
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.tracers import BaseTracer

from guard.errors import InputError, did_you_mean
from guard.langchain.attempts.callback_buffer import CALLBACKS
from guard.runtime.leak_search import Seen, all_texts


def assert_nothing_leaks(
    runnable: Runnable[Any, Any],
    input: Any,
    *,
    secrets: Collection[str] | Callable[[], Collection[str]],
    allowed: Iterable[str] = (),
    channels: Collection[str] | None = None,
    config: RunnableConfig | None = None,
) -> Seen:
    """Assert that a runnable keeps secrets, by running it once per channel.

    Args:
        runnable: such as a guarded chain whose policy rejects the answer.
        input: for the runnable.
        secrets: texts that must not leave, such as the rejected answer; or a function that returns them after all runs.
        allowed: texts that may leave although they share pieces with a secret. Texts of the input may, too.
        channels: names from `CHANNELS`; by default all that the installed packages support.
        config: config of every run.

    Returns:
        All texts that left the runnable.

    Raises:
        AssertionError: something leaked; the text names what, where and by which channel.
        InputError: an unknown channel, no secret that differs from the input, or a running event loop (channels run
            their own loops).
    """
    chosen = [*(available_channels() if channels is None else channels)]
    for name in chosen:
        if name not in CHANNELS:
            raise InputError(f"There is no channel '{name}'", fix=did_you_mean(name, CHANNELS))
    seen = Seen()
    for name in chosen:
        _run_channel(name, _ChannelRun(runnable, input, config or {}, name, seen))
    hidden = secrets() if callable(secrets) else secrets
    seen.check(hidden, allowed=[*allowed, *all_texts(input)])
    return seen


def available_channels() -> list[str]:
    """Return the channels that the installed packages support."""
    with contextlib.suppress(ImportError):
        import langgraph.graph  # noqa: F401

        return list(CHANNELS)
    return [name for name in CHANNELS if not name.startswith("graph")]


# -- running -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ChannelRun:
    """One run of the runnable for one channel."""

    runnable: Runnable[Any, Any]
    input: Any
    config: RunnableConfig
    channel: str
    seen: Seen

    def see(self, place: str, value: Any) -> None:
        self.seen.add(self.channel, place, value)

    def config_for(self, handler: BaseCallbackHandler) -> RunnableConfig:
        return merge_configs(self.config, {"callbacks": [handler]})


def _run_channel(name: str, run: _ChannelRun) -> None:
    """Run once, and record what is returned, raised, logged and printed."""
    printed = io.StringIO()
    logged = _Logged(run)
    root = logging.getLogger()
    level = root.level
    root.addHandler(logged)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old channels are channels too
            result = CHANNELS[name](run)
            if result is not None:
                asyncio.run(_finish(result))
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - an exception is a channel like others
        run.see("raised", error)
    finally:
        root.setLevel(level)
        root.removeHandler(logged)
    run.see("printed", printed.getvalue())


async def _finish(result: Awaitable[None]) -> None:
    await result


def _invoke(run: _ChannelRun) -> None:
    run.see("output", run.runnable.invoke(run.input, run.config))


async def _ainvoke(run: _ChannelRun) -> None:
    run.see("output", await run.runnable.ainvoke(run.input, run.config))


def _batch(run: _ChannelRun) -> None:
    run.see("output", run.runnable.batch([run.input], run.config, return_exceptions=True))


async def _abatch(run: _ChannelRun) -> None:
    run.see("output", await run.runnable.abatch([run.input], run.config, return_exceptions=True))


def _stream(run: _ChannelRun) -> None:
    for chunk in run.runnable.stream(run.input, run.config):
        run.see("chunk", chunk)


async def _astream(run: _ChannelRun) -> None:
    async for chunk in run.runnable.astream(run.input, run.config):
        run.see("chunk", chunk)


def _transform(run: _ChannelRun) -> None:
    for chunk in run.runnable.transform(iter([run.input]), run.config):
        run.see("chunk", chunk)


def _events(version: Any) -> Callable[[_ChannelRun], Awaitable[None]]:
    async def watch(run: _ChannelRun) -> None:
        async for event in run.runnable.astream_events(run.input, run.config, version=version):
            run.see(event["event"], event)

    return watch


async def _log(run: _ChannelRun) -> None:
    async for patch in run.runnable.astream_log(run.input, run.config):
        for operation in patch.ops:
            run.see("operation", operation)


def _callbacks(run: _ChannelRun) -> None:
    handler = _handler(BaseCallbackHandler, lambda name, values: run.see(name, values))
    run.see("output", run.runnable.invoke(run.input, run.config_for(handler)))


def _stream_callbacks(run: _ChannelRun) -> None:
    handler = _handler(BaseCallbackHandler, lambda name, values: run.see(name, values))
    for chunk in run.runnable.stream(run.input, run.config_for(handler)):
        run.see("chunk", chunk)


async def _async_callbacks(run: _ChannelRun) -> None:
    handler = _async_handler(lambda name, values: run.see(name, values))
    run.see("output", await run.runnable.ainvoke(run.input, run.config_for(handler)))


async def _astream_callbacks(run: _ChannelRun) -> None:
    handler = _async_handler(lambda name, values: run.see(name, values))
    async for chunk in run.runnable.astream(run.input, run.config_for(handler)):
        run.see("chunk", chunk)


def _tracer(run: _ChannelRun) -> None:
    tracer = _Tracer(run)
    run.see("output", run.runnable.invoke(run.input, run.config_for(tracer)))


async def _atracer(run: _ChannelRun) -> None:
    tracer = _Tracer(run)
    async for chunk in run.runnable.astream(run.input, run.config_for(tracer)):
        run.see("chunk", chunk)


def _debug(run: _ChannelRun) -> None:
    before = get_debug()
    set_debug(True)
    try:
        run.see("output", run.runnable.invoke(run.input, run.config))
    finally:
        set_debug(before)


def _graph(run: _ChannelRun) -> None:
    for chunk in _make_node(run).stream({"value": None}, run.config, stream_mode=_GRAPH_MODES, subgraphs=True):
        run.see("chunk", chunk)


async def _agraph(run: _ChannelRun) -> None:
    graph = _make_node(run)
    async for chunk in graph.astream({"value": None}, run.config, stream_mode=_GRAPH_MODES, subgraphs=True):
        run.see("chunk", chunk)


_GRAPH_MODES = ["values", "updates", "messages", "custom", "debug"]

#: Channels by which text can leave a runnable, by name.
CHANNELS: Mapping[str, Callable[[_ChannelRun], Awaitable[None] | None]] = {
    "invoke": _invoke,
    "ainvoke": _ainvoke,
    "batch": _batch,
    "abatch": _abatch,
    "stream": _stream,
    "astream": _astream,
    "transform": _transform,
    "astream_events v1": _events("v1"),
    "astream_events v2": _events("v2"),
    "astream_log": _log,
    "callbacks": _callbacks,
    "callbacks of a stream": _stream_callbacks,
    "async callbacks": _async_callbacks,
    "async callbacks of a stream": _astream_callbacks,
    "tracer": _tracer,
    "tracer of a stream": _atracer,
    "debug": _debug,
    "graph": _graph,
    "async graph": _agraph,
}


def _make_node(run: _ChannelRun) -> Any:
    """Return a graph in which the runnable is a step."""
    from langchain_core.runnables import RunnableLambda
    from langgraph.graph import START, StateGraph

    step = RunnableLambda(lambda _: run.input) | run.runnable | RunnableLambda(lambda output: {"value": output})
    graph: Any = StateGraph(dict)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    return graph.compile()


# -- listening -----------------------------------------------------------------------------------


def _handler(base: type[Any], see: Callable[[str, Any], None]) -> Any:
    def listening(name: str) -> Callable[..., None]:
        return lambda _, *args, **kwargs: see(name, [args, kwargs])

    return type("Listener", (base,), {name: listening(name) for name in CALLBACKS})()


def _async_handler(see: Callable[[str, Any], None]) -> Any:
    def listening(name: str) -> Callable[..., Awaitable[None]]:
        async def receive(_: Any, *args: Any, **kwargs: Any) -> None:
            see(name, [args, kwargs])

        return receive

    return type("AsyncListener", (AsyncCallbackHandler,), {name: listening(name) for name in CALLBACKS})()


class _Tracer(BaseTracer):
    """Records each run as tracing services receive it, at its start and at its end."""

    def __init__(self, run: _ChannelRun) -> None:
        super().__init__()
        self._run = run

    def _start_trace(self, run: Any) -> None:
        super()._start_trace(run)
        self._run.see("run begun", [run.inputs, run.extra, run.serialized, run.tags])

    def _end_trace(self, run: Any) -> None:
        self._run.see("run ended", [run.inputs, run.outputs, run.error, run.events, run.extra])
        super()._end_trace(run)

    def _persist_run(self, run: Any) -> None:
        """Keep nothing else."""


class _Logged(logging.Handler):
    def __init__(self, run: _ChannelRun) -> None:
        super().__init__(logging.DEBUG)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        self._run.see("logged", [record.getMessage(), record.exc_info and record.exc_info[1]])
