"""A tiny Llama with random weights as a GGUF file, written with the gguf package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 32, 2, 4, 64, 512
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(extra)) for byte in range(256)]


def write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    context: int = CONTEXT,
    seed: int = 0,
    change: Callable[[Any], None] = lambda writer: None,
    leave_out: str = "",
    weights: Mapping[str, float] = {},
) -> Path:
    """Write a model that answers noise.

    Args:
        path: of the file.
        architecture: its name in the file.
        template: its chat template.
        context: tokens that it claims to be trained on.
        seed: of the weights.
        change: adds further keys.
        leave_out: a tensor that is not written.
        weights: tensors that hold one number only.
    """
    rng = np.random.default_rng(seed)
    tokens = [*SPECIAL, *byte_alphabet(), "Ġt", "he"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    change(writer)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,), "output": (len(tokens), WIDTH)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"{block}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}.ffn_{name}": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes[f"{block}.ffn_down"] = (WIDTH, HIDDEN)
    for name, shape in shapes.items():
        if name != leave_out:
            weight = np.ones(shape) if name.endswith("norm") else rng.normal(size=shape)
            weight = np.full(shape, weights[name]) if name in weights else weight
            writer.add_tensor(f"{name}.weight", weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
