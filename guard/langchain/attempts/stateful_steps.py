"""Refuses steps that store a chain's answer before the policy has decided about it.

Conversation histories, a graph's checkpoints, store and cache, and the memory of older chains are written while the
chain runs. A rejected answer would stay there and the next attempt would read it. What can be found in a chain is
refused when the chain is guarded; a history that is only visible at run time is refused before the model is called.
"""

from __future__ import annotations

import inspect
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
from guard.langchain.upstream_internals import MESSAGE_HISTORY, is_graph

#: Number of elements of a collection that are searched; a longer collection is data.
_MAX_ELEMENTS = 1000

_AROUND = "Put the history around the guarded chain: RunnableWithMessageHistory(guarded(chain, ...), ...)"
_NODE = "Guard the node that answers, or use GuardMiddleware in an agent"


def refuse_stateful(runnable: Any) -> None:
    """Search a chain for such steps, at any depth that is visible.

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
    """Check the config of a model call for a history that was opened inside the guarded call.

    Raises:
        InputError: there is one.
    """
    attempt = ATTEMPT.get()
    history = find_history(config)
    if attempt is not None and history is not None and history is not attempt.history:
        raise _history_inside()


def find_history(config: RunnableConfig | None) -> BaseChatMessageHistory | None:
    """Return the history of the conversation that a run is part of."""
    history = (ensure_config(config).get("configurable") or {}).get(MESSAGE_HISTORY)
    return history if isinstance(history, BaseChatMessageHistory) else None


def _refuse(step: Any) -> None:
    if isinstance(step, RunnableWithMessageHistory):
        raise _history_inside()
    if is_graph(step) and step.checkpointer:
        raise InputError(
            "A graph with a checkpointer cannot be guarded from outside",
            why="it saves its answer before the policy decides about it",
            fix=_NODE,
        )
    if is_graph(step) and step.store is not None:
        raise InputError(
            "A graph with a store cannot be guarded from outside",
            why="what its nodes write there stays, whatever the policy decides about the answer",
            fix=f"{_NODE}; or give the store to the graph around the guarded one",
        )
    if is_graph(step) and getattr(step, "cache", None) is not None:
        raise InputError(
            "A graph with a cache cannot be guarded from outside",
            why="it keeps what its nodes return before the policy decides, and retries would get the rejected answer",
            fix=f"{_NODE}; wrap steps that must not run twice in once(...)",
        )
    if isinstance(step, Runnable) and hasattr(getattr(step, "memory", None), "save_context"):
        raise InputError(
            f"A {type(step).__name__} with a memory cannot be guarded from outside",
            why="it saves its answer before the policy decides about it",
            fix="Keep the conversation around the guarded chain",
        )


def _history_inside() -> InputError:
    return InputError(
        "A guarded chain cannot contain a conversation history",
        why="rejected answers would stay in it, and the next attempt would read them",
        fix=_AROUND,
    )


def _parts(step: Any) -> Iterator[Any]:
    """Yield the parts of a step. A guarded chain was searched when it was built."""
    if isinstance(step, Mapping):
        yield from islice(step.values(), _MAX_ELEMENTS)
    elif isinstance(step, list | tuple | set | frozenset):
        yield from islice(step, _MAX_ELEMENTS)
    elif isinstance(step, partial):
        yield from (step.func, *step.args, *step.keywords.values())
    elif isinstance(step, RunnableLambda):
        yield from step.deps
        yield from (getattr(step, name, None) for name in ("func", "afunc"))
    elif is_graph(step):
        yield from (node.bound for node in step.nodes.values())
        yield from (graph for _, graph in step.get_subgraphs(recurse=False))
    elif inspect.ismethod(step):
        yield step.__self__
    elif inspect.isfunction(step):
        yield from _references(step)
    elif isinstance(step, Runnable) and not _is_guarded(step):
        yield from (dict(step) if isinstance(step, BaseModel) else getattr(step, "__dict__", {})).values()


def _references(function: Any) -> Iterator[Any]:
    """Yield what a function refers to by name, and by attribute where its source can be read."""
    try:
        variables = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return
    yield from (*variables.nonlocals.values(), *variables.globals.values(), *get_function_nonlocals(function))


def _is_guarded(step: Any) -> bool:
    return getattr(type(step), "guard_boundary", False)
