"""Layers are found by name, without a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engines.layer_names import BLOCK_TEMPLATES, MLP_TEMPLATES, find_layers, summarise
from guard.errors import UnsupportedArchitectureError


def tree(stem: str, layers: int, *parts: str) -> list[str]:
    """Names of a module tree: the blocks and what is in each."""
    blocks = [f"{stem}.{number}" for number in range(layers)]
    return ["", stem, *blocks, *(f"{block}.{part}" for block in blocks for part in parts)]


@pytest.mark.parametrize(
    ("stem", "parts", "mlp"),
    [
        ("model.layers", ["self_attn", "mlp", "mlp.gate_proj", "mlp.down_proj"], "mlp"),
        ("model.layers", ["self_attn", "mlp", "mlp.gate", "mlp.experts"], "mlp"),
        ("model.layers", ["conv", "feed_forward", "feed_forward.w1"], "feed_forward"),
        ("model.layers", ["block_sparse_moe", "block_sparse_moe.gate"], "block_sparse_moe"),
        ("model.language_model.layers", ["self_attn", "mlp"], "mlp"),
        ("transformer.h", ["ln_1", "attn", "mlp", "mlp.c_proj"], "mlp"),
        # Bloom's MLP module adds the residual; its last projection does not.
        ("transformer.h", ["mlp", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"], "mlp.dense_4h_to_h"),
        ("transformer.blocks", ["ffn", "ffn.up_proj", "ffn.down_proj"], "ffn.down_proj"),
        ("gpt_neox.layers", ["attention", "mlp"], "mlp"),
        ("model.decoder.layers", ["fc1", "fc2"], "fc2"),
    ],
)
def test_mlp_and_block_of_an_architecture(stem: str, parts: list[str], mlp: str) -> None:
    names = tree(stem, 12, *parts)
    random.Random(0).shuffle(names)
    assert find_layers(names, MLP_TEMPLATES, 12) == [f"{stem}.{number}.{mlp}" for number in range(12)]
    assert find_layers(names, BLOCK_TEMPLATES, None) == [f"{stem}.{number}" for number in range(12)]


def test_a_vision_tower_is_not_taken_for_the_language_model() -> None:
    names = tree("model.vision_tower.encoder.layers", 24, "mlp") + tree("model.language_model.layers", 2, "mlp")
    assert find_layers(names, MLP_TEMPLATES, None) == [
        "model.language_model.layers.0.mlp",
        "model.language_model.layers.1.mlp",
    ]


def test_layers_may_be_of_different_kinds_and_the_first_template_wins() -> None:
    nodes = ["ffn_out-0", "ffn_moe_out-1", "ffn_out-2", "ffn_moe_out-2", "l_out-0", "result_norm"]
    assert find_layers(nodes, ("ffn_out-{n}", "ffn_moe_out-{n}"), 3) == [
        "ffn_out-0",
        "ffn_moe_out-1",
        "ffn_out-2",
    ]


def test_names_beyond_the_layers_asked_for_are_left_out() -> None:
    names = tree("model.layers", 5, "mlp")
    assert len(find_layers(names, MLP_TEMPLATES, 4)) == 4


@given(st.permutations(range(13)), st.integers(1, 13))
def test_order_of_names_does_not_matter(order: list[int], layers: int) -> None:
    names = [f"l_out-{number}" for number in order]
    assert find_layers(names, ("l_out-{n}",), layers) == [f"l_out-{number}" for number in range(layers)]


@pytest.mark.parametrize("name", ["model.layers.00.mlp", "model.layers.-1.mlp", "xmodel.layers.0.mlp", "a"])
def test_names_must_match_whole(name: str) -> None:
    with pytest.raises(UnsupportedArchitectureError):
        find_layers([name], MLP_TEMPLATES, None)


def test_a_missing_layer_is_named() -> None:
    names = [name for name in tree("model.layers", 6, "mlp") if "3" not in name]
    with pytest.raises(UnsupportedArchitectureError, match="Of the model's 6 layers, layer 3 has no name"):
        find_layers(names, MLP_TEMPLATES, 6)
    with pytest.raises(UnsupportedArchitectureError, match="layer 3"):
        find_layers(names, MLP_TEMPLATES, None)


def test_an_unknown_architecture_is_refused_with_what_was_found() -> None:
    with pytest.raises(UnsupportedArchitectureError) as caught:
        find_layers(tree("backbone.blocks", 48, "mixer", "norm"), MLP_TEMPLATES, 48)
    text = str(caught.value)
    assert "backbone.blocks.{n}.mixer (48 times)" in text
    assert len(text) < 500


@pytest.mark.parametrize("names", [[], [""]])
def test_no_names_at_all(names: list[str]) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="found are none"):
        find_layers(names, MLP_TEMPLATES, None)


def test_a_summary_is_short_whatever_the_names() -> None:
    names = [f"part{letter}.{number}" for letter in "abcdefghijklmnopqrstuvwxyz" for number in range(9)]
    assert summarise(names).endswith(", and 14 more kinds")
    assert summarise(["ffn_up-0", "ffn_up-1", "x2"]) == "ffn_up-{n} (2 times), x2"
