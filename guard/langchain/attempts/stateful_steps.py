"""Steps that write down what a chain has said before its answer is decided on.

A conversation history, a graph's checkpoints or its store, and the memory of the older chains are written
while the chain runs. A rejected answer would stay there, and the next attempt would read it. What can be
found in a chain is refused when it is guarded; a history that is found only while it runs, before the model
is asked.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.runnables.utils import get_function_nonlocals
from pydantic import BaseModel

from guard.errors import InputError
from guard.langchain.attempts.attempt_settings import ATTEMPT

#: Where LangChain puts the history of a conversation in a config.
_HISTORY = "message_history"

#: How many parts of a collection are looked at; one that is longer is data.
_MOST = 1000

_AROUND = "Put the history around the guarded chain: RunnableWithMessageHistory(guarded(chain, ...), ...)"
_NODE = "Guard the node that answers, or use GuardMiddleware in an agent"


def refuse_stateful(runnable: Any) -> None:
    """Look for such steps in a chain, at any depth that can be seen.

    Raises:
        InputError: there is one.
    """
    seen: set[int] = set()
    waiting = [runnable]
    while waiting:
        step = waiting.pop()
        if id(step) not in seen:
            seen.add(id(step))
            _refuse(step)
            waiting.extend(_parts(step))


def refuse_inner_history(config: RunnableConfig | None) -> None:
    """Look at the config of a model call for a history that was opened within the guarded call.

    Raises:
        InputError: there is one.
    """
    attempt = ATTEMPT.get()
    history = history_of(config)
    if attempt is not None and history is not None and history is not attempt.history:
        raise _history_inside()


def history_of(config: RunnableConfig | None) -> BaseChatMessageHistory | None:
    """The history of the conversation that a run is part of."""
    history = (ensure_config(config).get("configurable") or {}).get(_HISTORY)
    return history if isinstance(history, BaseChatMessageHistory) else None


def _refuse(step: Any) -> None:
    if isinstance(step, RunnableWithMessageHistory):
        raise _history_inside()
    if _is_graph(step) and step.checkpointer:
        raise InputError(
            "A graph with a checkpointer cannot be guarded from outside",
            why="it has saved its answer before the answer is decided on",
            fix=_NODE,
        )
    if _is_graph(step) and step.store is not None:
        raise InputError(
            "A graph with a store cannot be guarded from outside",
            why="what its nodes have put there stays, whatever is decided about the answer",
            fix=f"{_NODE}; or give the store to the graph around the guarded one",
        )
    if isinstance(step, Runnable) and hasattr(getattr(step, "memory", None), "save_context"):
        raise InputError(
            f"A {type(step).__name__} with a memory cannot be guarded from outside",
            why="it has saved its answer before the answer is decided on",
            fix="Keep the conversation around the guarded chain",
        )


def _history_inside() -> InputError:
    return InputError(
        "A conversation history cannot be inside of a guarded chain",
        why="rejected answers would stay in it, and the next attempt would read them",
        fix=_AROUND,
    )


def _is_graph(step: Any) -> bool:
    module = sys.modules.get("langgraph.pregel")
    return module is not None and isinstance(step, module.Pregel)


def _parts(step: Any) -> Iterator[Any]:
    """What a step is made of. A guarded chain was looked at when it was built."""
    if isinstance(step, Mapping):
        yield from islice(step.values(), _MOST)
    elif isinstance(step, list | tuple | set | frozenset):
        yield from islice(step, _MOST)
    elif isinstance(step, partial):
        yield from (step.func, *step.args, *step.keywords.values())
    elif isinstance(step, RunnableLambda):
        yield from step.deps
        yield from (getattr(step, name, None) for name in ("func", "afunc"))
    elif _is_graph(step):
        yield from (node.bound for node in step.nodes.values())
        yield from (graph for _, graph in step.get_subgraphs(recurse=False))
    elif inspect.ismethod(step):
        yield step.__self__
    elif inspect.isfunction(step):
        yield from _used_by(step)
    elif isinstance(step, Runnable) and not _is_guarded(step):
        yield from (dict(step) if isinstance(step, BaseModel) else getattr(step, "__dict__", {})).values()


def _used_by(function: Any) -> Iterator[Any]:
    """What a function refers to: by its names, and by attributes of them where its source can be read."""
    try:
        variables = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return
    yield from (*variables.nonlocals.values(), *variables.globals.values(), *get_function_nonlocals(function))


def _is_guarded(step: Any) -> bool:
    return "resolved_policy" in dir(type(step))
