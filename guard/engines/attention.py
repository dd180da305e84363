"""Attention weights of a Hugging Face model, for methods that read them.

The fast attention kernels return no weights, so this is a pass of its own with transformers' plain ("eager") attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from guard.errors import InputError
from guard.records import Floats

#: Most memory that the weights of one pass may take: layers x heads x tokens x tokens numbers.
MAX_BYTES = 2**31


def attention_to_latest(lm: Any, tokens: Sequence[int], *, prompt_tokens: int) -> Floats:
    """Return the attention of each answer token to its own position; see `TransformersEngine.attention`.

    Args:
        lm: the model.
        tokens: of prompt and answer.
        prompt_tokens: how many belong to the prompt.

    Raises:
        InputError: the model returns no weights for some layer, or they would take more than `MAX_BYTES`.
    """
    config = lm.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if layers * heads * len(tokens) ** 2 * 4 > MAX_BYTES:
        raise InputError(
            f"Attention over {len(tokens)} tokens takes too much memory",
            why=f"there are {layers} layers of {heads} heads, and {MAX_BYTES >> 30} GiB are allowed",
            fix="Record shorter answers, or leave --rauq (rauq=) out",
        )
    ids = torch.tensor([list(tokens)], dtype=torch.long, device=lm.get_input_embeddings().weight.device)
    with _plain_attention(lm):
        weights = lm(input_ids=ids, output_attentions=True, use_cache=False, return_dict=True).attentions
    if not weights or len(weights) != layers or any(each is None for each in weights):
        raise InputError(
            f"The model '{lm.config.model_type}' does not return the attention of all layers",
            why=f"{sum(each is not None for each in weights or ())} of {layers} layers returned weights",
            fix="Leave --rauq (rauq=) out",
        )
    places = slice(prompt_tokens, len(tokens) - 1)
    found = torch.stack([each[0, :, places, places].diagonal(dim1=1, dim2=2).float().cpu() for each in weights])
    read: Floats = found.numpy()
    return read


@contextmanager
def _plain_attention(lm: Any) -> Iterator[None]:
    """Switch the attention that returns weights on and dropout off; then leave the model as it was."""
    before, training = lm.config._attn_implementation, [module for module in lm.modules() if module.training]
    for module in training:
        module.training = False
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(before)
        for module in training:
            module.training = True
