"""Finds the nodes of a llama.cpp graph that are the layers' outputs. Pure code over names.

Most graphs name the MLP's output ``ffn_out-N``. Where experts are mixed, several nodes have names that
look right, and only the one that holds everything which is added to the residual stream is.
"""

from __future__ import annotations

from collections.abc import Sequence

from guard.engines.layer_names import find_layers
from guard.errors import UnsupportedArchitectureError

#: Node names of the MLP's output, in order of preference: sums of experts, an MLP (or a sum), routed experts alone.
_SUMS = ("ffn_final_moe_out-{n}", "ffn_moe_out_merged-{n}", "ffn_moe_combined-{n}")
_MLP, _ROUTED = "ffn_out-{n}", "ffn_moe_out-{n}"
_BLOCK = "l_out-{n}"
#: Nodes of a dense MLP or a shared expert, and of routed experts, by which a layer shows that it has them.
_DENSE, _EXPERTS = ("ffn_up", "ffn_gate"), ("ffn_moe_topk", "ffn_moe_out", "ffn_moe_gate_up")


def find_nodes(names: Sequence[str], point: str, layers: int) -> list[str]:
    """Return the node to read in each layer.

    Args:
        names: of all nodes of the graph, in its order; some may occur twice.
        point: ``mlp`` or ``block``.
        layers: how many the model has.

    Raises:
        UnsupportedArchitectureError: a layer has no node of a known name, or none that holds the whole output.
    """
    if point == "block":
        return find_layers(names, (_BLOCK,), layers)
    found = find_layers(names, (*_SUMS, _MLP, _ROUTED), layers)
    for number, node in enumerate(found):
        _check_whole(names, node, number)
    return found


def _check_whole(names: Sequence[str], node: str, number: int) -> None:
    """Refuse a node beside which the layer adds something else to the residual stream."""
    dense = [at for at, name in enumerate(names) if name in {f"{stem}-{number}" for stem in _DENSE}]
    experts = [at for at, name in enumerate(names) if name in {f"{stem}-{number}" for stem in _EXPERTS}]
    if not (dense and experts) or node in {template.format(n=number) for template in _SUMS}:
        return
    # A sum follows its parts. A name that occurs twice names a part first, then a sum with the input.
    if node == _ROUTED.format(n=number) or names.count(node) > 1 or names.index(node) < max(*dense, *experts):
        raise UnsupportedArchitectureError(
            f"Layer {number} adds an MLP and routed experts, and its graph has no node of a known name for their sum",
            why=f"'{node}' is a part of it",
            fix="Use another engine, or capture_point='block'",
        )
