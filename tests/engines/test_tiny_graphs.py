"""The check by llama.cpp's graph, which the table of architectures rests on, on a graph made by hand."""

from __future__ import annotations

import ctypes

import pytest
from tiny_graphs import Graph, _Tensor


def made(edges: dict[str, list[str]]) -> tuple[Graph, list[_Tensor]]:
    """A graph of named tensors; each name's sources come before it."""
    tensors: dict[str, _Tensor] = {}
    graph = Graph()
    for name, sources in edges.items():
        tensor = tensors[name] = _Tensor(name=name.encode())
        for place, source in enumerate(sources):
            tensor.src[place] = ctypes.addressof(tensors[source])
        if sources:
            graph.note(ctypes.addressof(tensor), name.encode())
    return graph, list(tensors.values())


WHOLE = {"up": [], "embd": [], "ffn_out": ["up", "embd"], "l_out": ["ffn_out", "embd"], "result": ["l_out"]}
BESIDE = {**WHOLE, "shared": ["up", "embd"], "sum": ["l_out", "shared"], "result": ["sum"]}


def test_what_passes_beside_a_node_is_found() -> None:
    whole, _whole = made(WHOLE)
    beside, _beside = made(
        {name: BESIDE[name] for name in ("up", "embd", "ffn_out", "l_out", "shared", "sum", "result")}
    )
    assert "up" in whole.above("ffn_out")
    assert "up" not in whole.above(None, without=["ffn_out"])
    assert "up" in beside.above(None, without=["ffn_out"])
    assert "up" not in beside.above(None, without=["ffn_out", "shared"])


def test_another_layout_of_tensors_is_noticed() -> None:
    tensor = _Tensor(name=b"ffn_out")
    with pytest.raises(AssertionError, match="another layout"):
        Graph().note(ctypes.addressof(tensor), b"l_out")
