"""The private names of LangChain's packages that guard uses exist and behave as guard assumes.

`guard.langchain.upstream_internals` is the only module that uses them. The script ``oldest.sh`` runs these tests with
the oldest supported versions.
"""

from __future__ import annotations

import ast
import contextvars
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tracers.langchain import LangChainTracer

import guard.langchain
from guard.langchain import upstream_internals as internals

PACKAGE = Path(guard.langchain.__file__).parent


# -- one place ---------------------------------------------------------------------------------------


def private_uses(file: Path) -> list[str]:
    """Private names that a file takes from LangChain's packages, and config keys of LangGraph that it spells out."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), []
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition("_")[0].startswith("lang"):
            names = [alias.name for alias in node.names]
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
            path = (node.module or "").split(".")
            found += [name for name in (*names, *path) if name.startswith("_")]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found += [node.attr] if node.attr.startswith("_") else []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("__pregel"):
            found.append(node.value)
    return found


def test_private_names_of_other_packages_are_used_in_one_module_only() -> None:
    uses = {file.name: private_uses(file) for file in PACKAGE.rglob("*.py")}
    assert {name for name, found in uses.items() if found} == {"upstream_internals.py"}
    assert {"_streaming", "_configure_hooks", "__pregel_stream"} <= set(uses["upstream_internals.py"])


# -- langchain-core ----------------------------------------------------------------------------------


def test_a_handler_of_a_block_of_code_is_found() -> None:
    with get_usage_metadata_callback() as usage:
        assert any(handler is usage for handler in internals.scoped_handlers())
    assert not any(isinstance(handler, UsageMetadataCallbackHandler) for handler in internals.scoped_handlers())


def test_a_context_without_handlers_has_none() -> None:
    with get_usage_metadata_callback():
        context = contextvars.copy_context()
    internals.clear_handlers(context)
    assert context.run(internals.scoped_handlers) == []


def test_handler_types_that_the_environment_adds_are_handlers() -> None:
    kinds = internals.environment_handler_types()
    assert all(issubclass(kind, BaseCallbackHandler) for kind in kinds)


async def test_the_handler_of_a_stream_of_events_taps_outputs() -> None:
    seen: list[bool] = []

    def look(text: str, config: RunnableConfig) -> str:
        manager: Any = config["callbacks"]
        seen.extend(internals.streams_outputs(handler) for handler in manager.handlers)
        return text

    assert [event async for event in RunnableLambda(look).astream_events("x", version="v2")]
    assert any(seen)
    assert not internals.streams_outputs(BaseCallbackHandler())


def test_the_marker_of_newer_streams_is_a_class_where_it_exists() -> None:
    marker = internals.V2_STREAMING_HANDLER
    assert marker is None or isinstance(marker, type)


def test_tracing_is_off_in_a_block_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from langsmith import utils

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    utils.get_env_var.cache_clear()
    try:
        seen: list[Any] = []

        def look(text: str, config: RunnableConfig) -> str:
            manager: Any = config["callbacks"]
            seen.extend(manager.handlers)
            return text

        with internals.without_tracing():
            RunnableLambda(look).invoke("x")
        assert not any(isinstance(handler, LangChainTracer) for handler in seen)
    finally:
        monkeypatch.undo()
        utils.get_env_var.cache_clear()


# -- langgraph ---------------------------------------------------------------------------------------


def graph_config(**options: Any) -> dict[str, Any]:
    """The ``configurable`` part of the config that a node gets while its graph streams."""
    graphs = pytest.importorskip("langgraph.graph")
    seen: dict[str, Any] = {}

    def node(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        seen.update(config.get("configurable") or {})
        return {}

    graph = graphs.StateGraph(dict)
    graph.add_node("node", node)
    graph.add_edge(graphs.START, "node")
    compiled = graph.compile(**options)
    list(compiled.stream({"value": 1}, {"configurable": {"thread_id": "1"}}, stream_mode=["custom", "values"]))
    return seen


def test_a_node_gets_the_runtime_of_its_graph_and_its_writer_can_be_replaced() -> None:
    configurable, sent = graph_config(), []
    assert internals.GRAPH_RUNTIME in configurable
    changed = internals.with_buffered_channels(configurable, lambda channel: sent.append)
    changed[internals.GRAPH_RUNTIME].stream_writer("text")
    assert sent == ["text"]
    assert configurable[internals.GRAPH_RUNTIME] is not changed[internals.GRAPH_RUNTIME]


def test_the_stream_of_a_graph_for_inner_graphs_can_be_replaced() -> None:
    protocol = pytest.importorskip("langgraph.pregel.protocol")
    sent: list[Any] = []
    stream = protocol.StreamProtocol(lambda _: pytest.fail("sent at once"), {"values"})
    changed = internals.with_buffered_channels({internals.GRAPH_STREAM: stream}, lambda channel: sent.append)
    changed[internals.GRAPH_STREAM](((), "values", "text"))
    assert sent == [((), "values", "text")]


def test_the_checkpointer_of_a_graph_is_recognised_and_removed_from_attempts() -> None:
    memory = pytest.importorskip("langgraph.checkpoint.memory")
    saved = graph_config(checkpointer=memory.InMemorySaver())
    assert internals.has_checkpointer(saved)
    assert not internals.has_checkpointer(graph_config())
    assert not internals.has_checkpointer(internals.with_buffered_channels(saved, lambda channel: channel))


def test_an_interrupt_is_a_signal_and_an_error_is_none() -> None:
    errors = pytest.importorskip("langgraph.errors")
    assert internals.is_graph_signal(errors.GraphInterrupt(()))
    assert not internals.is_graph_signal(ValueError())


def test_a_compiled_graph_is_recognised() -> None:
    graphs = pytest.importorskip("langgraph.graph")
    graph = graphs.StateGraph(dict)
    graph.add_node("node", lambda state: state)
    graph.add_edge(graphs.START, "node")
    assert internals.is_graph(graph.compile())
    assert not internals.is_graph(RunnableLambda(str))


# -- langchain ---------------------------------------------------------------------------------------


def test_the_list_of_middleware_is_found_while_an_agent_is_built() -> None:
    agents = pytest.importorskip("langchain.agents")
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.language_models import GenericFakeChatModel

    seen: list[Any] = []

    class Looking(AgentMiddleware):  # type: ignore[type-arg]
        @property
        def name(self) -> str:
            self.look()
            return "looking"

        def look(self) -> None:
            seen.append(internals.middleware_being_built())

    middleware = [Looking()]
    agents.create_agent(GenericFakeChatModel(messages=iter([AIMessage("x")])), [], middleware=middleware)
    assert any(found is not None and list(found) == middleware for found in seen)
    middleware[0].look()
    assert seen[-1] is None


def test_private_state_is_written_by_a_response_class_where_there_is_one() -> None:
    pytest.importorskip("langchain.agents")
    kind = internals.extended_model_response()
    assert kind is None or {"model_response", "command"} <= set(kind.__dataclass_fields__)
