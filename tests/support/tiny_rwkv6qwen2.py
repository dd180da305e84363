"""The tensors of a tiny RWKV-6 Qwen 2 model (QRWKV), to write as a file.

llama.cpp's own maker of tiny models gives a model every tensor that it may have. Of this architecture that is another
graph, RWKV 6's, which lacks tensors: llama.cpp ends the process. Files of it never have the tensor ``time_mix_first``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def tensors(
    settings: Mapping[str, Any], vocabulary: int, numbers: Callable[[bytes, int], Any]
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Weights by name, as NumPy shapes them (the last dimension is the fastest).

    Args:
        settings: hyperparameters, without the architecture's name in front.
        vocabulary: number of tokens.
        numbers: gives the values of a tensor from its name and size.
    """
    width, ff = settings["embedding_length"], settings["feed_forward_length"]
    extra, decay = settings["time_mix_extra_dim"], settings["time_decay_extra_dim"]
    layer = {
        "attn_norm": (width,),
        "time_mix_w1": (5 * extra, width),
        "time_mix_w2": (5, width, extra),
        "time_mix_lerp_x": (1, 1, width),
        "time_mix_lerp_fused": (5, 1, 1, width),
        "time_mix_decay": (width,),
        "time_mix_decay_w1": (decay, width),
        "time_mix_decay_w2": (width, decay),
        **{f"time_mix_{name}": (width, width) for name in ("key", "value", "receptance", "gate", "output")},
        "ffn_norm": (width,),
        "ffn_gate": (ff, width),
        "ffn_up": (ff, width),
        "ffn_down": (width, ff),
    }
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,), "output": (vocabulary, width)}
    shapes |= {f"blk.{at}.{name}": shape for at in range(settings["block_count"]) for name, shape in layer.items()}
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    return {
        name: np.asarray(numbers(name.encode(), int(np.prod(shape))), np.float32).reshape(shape)
        for name, shape in named.items()
    }
