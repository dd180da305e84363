"""LightGBM's trees as the table of nodes that scorer files hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.scoring.scorer_file import Trees


def trees_from(booster: Any, columns: NDArray[np.intp], shrinkage: float) -> Trees:
    """Return LightGBM's trees as one table of nodes, with feature vector positions and shrunk leaves."""
    table: dict[str, list[Any]] = {name: [] for name in ("roots", "feature", "threshold", "left", "right", "value")}
    for tree in booster.dump_model()["tree_info"]:
        table["roots"].append(len(table["feature"]))
        _add_node(table, tree["tree_structure"], columns, shrinkage)
    return Trees(**table)


def _add_node(table: dict[str, list[Any]], node: Mapping[str, Any], columns: NDArray[np.intp], shrinkage: float) -> int:
    at = len(table["feature"])
    leaf = "leaf_value" in node
    table["feature"].append(-1 if leaf else int(columns[node["split_feature"]]))
    table["threshold"].append(0.0 if leaf else float(node["threshold"]))
    table["value"].append(float(node["leaf_value"]) * shrinkage if leaf else 0.0)
    table["left"].append(0)
    table["right"].append(0)
    if not leaf:
        table["left"][at] = _add_node(table, node["left_child"], columns, shrinkage)
        table["right"][at] = _add_node(table, node["right_child"], columns, shrinkage)
    return at
