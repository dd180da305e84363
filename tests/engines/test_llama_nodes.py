"""Which nodes of llama.cpp's graphs are read: by name, and by what tiny models of many architectures compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engines.llama_nodes import find_nodes
from guard.errors import UnsupportedArchitectureError

SUPPORT = Path(__file__).parents[1] / "support"
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "architectures-llama.json"

MLP = ("ffn_norm", "ffn_up", "ffn_gate", "ffn_swiglu", "ffn_out", "l_out")
ROUTED = ("ffn_norm", "ffn_moe_logits", "ffn_moe_topk", "ffn_moe_gate", "ffn_moe_out", "l_out")
SHARED = ("ffn_norm", "ffn_moe_topk", "ffn_moe_out", "ffn_up", "ffn_gate", "ffn_shexp", "ffn_out", "l_out")


def graph(*layers: Sequence[str]) -> list[str]:
    return ["embd", *(f"{stem}-{number}" for number, stems in enumerate(layers) for stem in stems), "result_norm"]


@pytest.mark.parametrize(
    ("layer", "node"),
    [
        (MLP, "ffn_out"),
        (ROUTED, "ffn_moe_out"),
        (SHARED, "ffn_out"),
        ((*MLP[:-1], "ffn_out", "l_out"), "ffn_out"),  # GPT-NeoX: the second is the sum with the input
        ((*SHARED[:-2], "ffn_moe_out_merged", "l_out"), "ffn_moe_out_merged"),  # Llama 4
        (("ffn_moe_topk", "ffn_moe_out", "ffn_final_moe_out", "l_out"), "ffn_final_moe_out"),  # GroveMoE
        (("ffn_up", "ffn_mlp", "ffn_moe_topk", "ffn_moe_out", "ffn_moe", "ffn_moe_combined"), "ffn_moe_combined"),
    ],
)
def test_the_node_that_holds_all_that_is_added_is_read(layer: Sequence[str], node: str) -> None:
    assert find_nodes(graph(layer, MLP), "mlp", 2) == [f"{node}-0", "ffn_out-1"]
    assert find_nodes(graph(MLP, layer), "mlp", 2) == ["ffn_out-0", f"{node}-1"]


@pytest.mark.parametrize(
    "layer",
    [
        ("ffn_moe_topk", "ffn_moe_out", "ffn_up", "ffn_gate", "l_out"),  # bailingmoe3: the sum has no name
        ("ffn_moe_topk", "ffn_moe_out", "ffn_up", "ffn_shexp", "l_out"),
        ("ffn_up", "ffn_out", "ffn_out", "ffn_moe_topk", "ffn_moe_out", "l_out"),  # Arctic
        ("ffn_moe_topk", "ffn_moe_out", "ffn_up", "ffn_out", "ffn_out", "l_out"),
        ("ffn_up", "ffn_out", "ffn_moe_topk", "ffn_moe_out", "l_out"),
    ],
)
def test_a_layer_without_a_node_for_the_whole_is_refused(layer: Sequence[str]) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"Layer 1 adds an MLP and routed experts.*is a part of it"):
        find_nodes(graph(MLP, layer), "mlp", 2)
    if "l_out" in layer:
        assert find_nodes(graph(MLP, layer), "block", 2) == ["l_out-0", "l_out-1"]


def test_a_layer_without_any_node_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="layer 1 has no name that is known"):
        find_nodes(graph(MLP, ("model.layers.{}.ffn_out", "l_out")), "mlp", 2)  # LFM2, which gives it to the norm


@given(st.lists(st.sampled_from([*MLP, *ROUTED, *SHARED, "ffn_moe_out_merged"]), max_size=12))
def test_one_node_for_each_layer_or_a_refusal(stems: list[str]) -> None:
    names = graph(stems)
    try:
        (node,) = find_nodes(names, "mlp", 1)
    except UnsupportedArchitectureError:
        return
    assert node in names


def test_the_document_shows_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TABLE.parents[1]))
    from llama_architectures import section

    table = json.loads(TABLE.read_text())
    assert section(table) in (TABLE.parents[2] / "docs" / "reference" / "architectures.md").read_text()
    assert len({name.split()[0] for name in table["architectures"]}) > 120


# -- what llama.cpp computes -----------------------------------------------------------------------

#: Layouts that differ in how the MLP's output is added: in parallel, scaled, behind a norm, by experts.
SAMPLE = [
    *("llama dense", "llama experts", "gptneox dense", "gemma2 dense", "olmo2 dense", "granite dense", "phi2 dense"),
    "rwkv6qwen2 dense",
    *(
        "gemma4 experts",
        "hrm_text dense",
        "qwen2moe experts",
        "llama4 experts",
        "grovemoe experts",
        "arctic experts",
        "lfm2 dense",
    ),
]


def test_what_is_read_is_all_that_an_mlp_adds() -> None:
    """With other weights in one layer's MLP, the residual stream changes by what is read, and by nothing else.

    Where further inputs join the stream (Gemma 4), the graph has no other way from the MLP to the logits.
    """
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    ended = subprocess.run(
        [sys.executable, str(SUPPORT / "tiny_architectures.py"), *SAMPLE],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    known = json.loads(TABLE.read_text())["architectures"]
    assert [each["model"] for each in found] == SAMPLE
    assert {each["model"]: each["verdict"] for each in found} == {name: known[name]["verdict"] for name in SAMPLE}
    assert {each["verdict"] for each in found} == {"right", "refused"}
