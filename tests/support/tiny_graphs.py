"""What a node of llama.cpp's graph lies between: whether all that an MLP computes leaves it through one node."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as bindings

_SOURCES, _NAME = 10, 64


class _Tensor(ctypes.Structure):
    """ggml's tensor as llama-cpp-python 0.3.36 has it; `Graph` checks the layout by the names."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME),
    )


class Graph:
    """The nodes that one decoding step evaluates, in order, and what each is computed from.

    Attributes:
        names: of all nodes.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._nodes: list[int] = []
        self._labels: dict[int, str] = {}
        self._sources: dict[int, list[int]] = {}

    def note(self, address: int, name: bytes) -> None:
        """Take a node and all that it is computed from."""
        self._nodes.append(address)
        self.names.append(name.decode())
        waiting = [address]
        while waiting:
            here = waiting.pop()
            if here in self._sources:
                continue
            tensor = _Tensor.from_address(here)
            self._labels[here] = tensor.name.decode(errors="replace")
            self._sources[here] = [source for source in (*tensor.src, tensor.view_src) if source]
            waiting.extend(self._sources[here])
        assert self._labels[address] == self.names[-1], "ggml's tensors have another layout"

    def above(self, node: str | None, *, without: Sequence[str] = ()) -> set[str]:
        """Return the names of all that a node is computed of.

        Args:
            node: its name; None for the last one.
            without: nodes through which no way leads.
        """
        start = self._nodes[-1] if node is None else self._nodes[self.names.index(node)]
        cut = {self._nodes[self.names.index(name)] for name in without}
        seen: set[int] = set()
        waiting = [start]
        while waiting:
            here = waiting.pop()
            if here not in seen | cut:
                seen.add(here)
                waiting.extend(self._sources[here])
        return {self._labels[at] for at in seen}


@contextmanager
def listening(graph: Graph, ggml: Any) -> Iterator[Any]:
    """A callback for llama_context_params.cb_eval that hands every node to a graph."""

    def note(tensor: int, ask: bool, _: object) -> bool:
        if ask:
            graph.note(tensor, ggml.ggml_get_name(tensor))
        return not ask

    yield llama_cpp.ggml_backend_sched_eval_callback(note)


def decode(model: Any, params: Any, tokens: list[int]) -> None:
    """Run a few tokens through a model.

    Raises:
        RuntimeError: llama.cpp makes no context of it, or does not decode.
    """
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    try:
        ids = (bindings.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))) != 0:
            raise RuntimeError("llama.cpp did not decode")
    finally:
        llama_cpp.llama_free(context)
