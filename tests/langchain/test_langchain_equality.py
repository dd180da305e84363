"""On accept a guarded chain is its chain: output, messages, events and callbacks, field by field."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from langchain_core.tracers import BaseTracer
from langchain_fixtures import ACCEPT, chat, policy
from scripted_chat import ScriptedChat, said

from guard.langchain import guarded
from guard.langchain.attempts.callback_buffer import CALLBACKS

pytestmark = pytest.mark.model

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
ASKED = {"q": "Name a colour."}
#: What differs from one run to the next, guarded or not.
VARYING = frozenset(
    {"run_id", "parent_run_id", "parent_ids", "id", "score_seconds", "trace_id", "start_time", "end_time", "time"}
)


@lru_cache(maxsize=1)
def model() -> Any:
    return chat(max_tokens=6).with_config(tags=["answer"], metadata={"step": 2})


def chains() -> dict[str, Callable[[], Runnable[Any, Any]]]:
    tools = lambda: ScriptedChat(script=[said("calling", 0.1, ("send", {"to": "ann"}))])  # noqa: E731
    return {
        "message": lambda: PROMPT | model(),
        "text": lambda: PROMPT | model() | StrOutputParser(),
        "parallel": lambda: PROMPT | RunnableParallel(a=model(), b=RunnableLambda(str)),
        "lambda": lambda: RunnableLambda(lambda asked: model().invoke(asked["q"])).with_config(run_name="mine"),
        "tools": lambda: PROMPT | tools(),
    }


CONFIG: RunnableConfig = {"tags": ["outer"], "metadata": {"user": "ann"}, "run_name": "top", "configurable": {"x": 1}}
EACH = pytest.mark.parametrize("shape", ["message", "text", "parallel", "lambda", "tools"])


def plain(value: Any) -> Any:
    """A value as plain data, without what differs from run to run."""
    if isinstance(value, BaseMessage):
        return plain({"kind": type(value).__name__, **value.__dict__})
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in VARYING}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, UUID):
        return "uuid"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return plain({"kind": type(value).__name__, **getattr(value, "__dict__", {"text": str(value)})})


@EACH
def test_outputs_are_the_same(shape: str) -> None:
    make = chains()[shape]
    bare, safe = make(), guarded(make(), policy=policy(ACCEPT))
    assert plain(safe.invoke(ASKED, CONFIG)) == plain(bare.invoke(ASKED, CONFIG))
    bare, safe = make(), guarded(make(), policy=policy(ACCEPT))
    assert plain(asyncio.run(safe.ainvoke(ASKED))) == plain(asyncio.run(bare.ainvoke(ASKED)))


@EACH
def test_streams_have_the_same_chunks(shape: str) -> None:
    make = chains()[shape]
    bare, safe = make(), guarded(make(), policy=policy(ACCEPT))
    assert plain([*safe.stream(ASKED, CONFIG)]) == plain([*bare.stream(ASKED, CONFIG)])

    async def chunks(chain: Runnable[Any, Any]) -> list[Any]:
        return [chunk async for chunk in chain.astream(ASKED)]

    bare, safe = make(), guarded(make(), policy=policy(ACCEPT))
    assert plain(asyncio.run(chunks(safe))) == plain(asyncio.run(chunks(bare)))


# -- what listeners hear -------------------------------------------------------------------------


class Tree:
    """Callbacks by their place in the tree of runs: root/child/grandchild, by name."""

    def __init__(self) -> None:
        self.paths: dict[UUID, str] = {}
        self.heard: list[tuple[str, str, Any]] = []

    def note(self, event: str, args: Any, kwargs: dict[str, Any]) -> None:
        run, parent = kwargs["run_id"], kwargs.get("parent_run_id")
        if event.endswith("_start"):
            self.paths[run] = f"{self.paths.get(parent, '')}/{kwargs.get('name')}"
        if event != "on_custom_event":
            self.heard.append((self.paths[run], event, plain([args, kwargs])))

    def below(self, root: str) -> list[tuple[str, str, Any]]:
        """What was heard of a run and those below it, with paths from there."""
        inside = [one for one in self.heard if one[0] == root or one[0].startswith(f"{root}/")]
        return [(path.removeprefix(root), event, said) for path, event, said in inside]


def listener(tree: Tree, base: type[BaseCallbackHandler]) -> Any:
    def sync(event: str) -> Any:
        return lambda _, *args, **kwargs: tree.note(event, args, kwargs)

    def asynchronous(event: str) -> Any:
        async def hear(_: Any, *args: Any, **kwargs: Any) -> None:
            tree.note(event, args, kwargs)

        return hear

    make = asynchronous if issubclass(base, AsyncCallbackHandler) else sync
    return type("Listener", (base,), {event: make(event) for event in CALLBACKS})()


def events_of(chain: Runnable[Any, Any], base: type[BaseCallbackHandler], how: str, name: str) -> Tree:
    tree = Tree()
    config: RunnableConfig = {**CONFIG, "run_name": name, "callbacks": [listener(tree, base)]}

    async def arun() -> None:
        if how == "ainvoke":
            await chain.ainvoke(ASKED, config)
        else:
            async for _ in chain.astream(ASKED, config):
                pass

    if how == "invoke":
        chain.invoke(ASKED, config)
    elif how == "stream":
        list(chain.stream(ASKED, config))
    else:
        asyncio.run(arun())
    return tree


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("base", [BaseCallbackHandler, AsyncCallbackHandler])
@pytest.mark.parametrize("shape", ["message", "text", "lambda", "tools"])
def test_callbacks_are_the_same_below_the_guard(shape: str, base: type[BaseCallbackHandler], how: str) -> None:
    make = chains()[shape]
    bare = events_of(make(), base, how, "chain")
    safe = events_of(guarded(make().with_config(run_name="chain"), policy=policy(ACCEPT)), base, how, "top")
    wanted = bare.below("/chain")
    assert len(wanted) >= 2
    assert safe.below("/top/chain") == wanted
    assert {path for path, _, _ in safe.heard} - {"/top"} == {f"/top{path}" for path, _, _ in bare.heard}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
@pytest.mark.parametrize("shape", ["message", "text", "lambda"])
def test_streams_of_events_are_the_same_below_the_guard(shape: str, version: Any) -> None:
    make = chains()[shape]

    async def events(chain: Runnable[Any, Any], config: RunnableConfig) -> list[Any]:
        return [event async for event in chain.astream_events(ASKED, config, version=version)]

    inner: RunnableConfig = {"tags": ["outer"], "metadata": {"user": "ann"}}
    bare = asyncio.run(events(make().with_config(run_name="chain"), inner))
    safe = asyncio.run(events(guarded(make().with_config(run_name="chain"), policy=policy(ACCEPT)), inner))
    safe = [event for event in safe if event["name"] not in ("GuardedRunnable", "guard_decision")]
    assert [event["event"] for event in safe] == [event["event"] for event in bare]
    for got, wanted in zip(safe, bare, strict=True):
        # The root of a stream of events is shown without its input at first; below the guard it is no root.
        if got["name"] == "chain":
            got, wanted = ({**event, "data": {**event["data"], "input": None}} for event in (got, wanted))
        assert plain(got) == plain(wanted)


class Runs(BaseTracer):
    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.roots.append(run)


@pytest.mark.parametrize("shape", ["message", "text", "lambda"])
def test_traces_have_the_chain_as_it_is_below_the_guards_run(shape: str) -> None:
    make = chains()[shape]
    bare, safe = Runs(), Runs()
    make().with_config(run_name="chain").invoke(ASKED, {**CONFIG, "callbacks": [bare], "run_name": "chain"})
    guarded(make().with_config(run_name="chain"), policy=policy(ACCEPT)).invoke(ASKED, {**CONFIG, "callbacks": [safe]})
    (root,) = safe.roots
    assert root.name == "top"
    (below,) = root.child_runs
    assert _trace(below) == _trace(bare.roots[0])


def _trace(run: Any) -> Any:
    fields = {name: plain(getattr(run, name)) for name in ("name", "run_type", "inputs", "outputs", "tags", "error")}
    metadata = plain((run.extra or {}).get("metadata"))
    return {**fields, "metadata": metadata, "child_runs": [_trace(child) for child in run.child_runs]}
