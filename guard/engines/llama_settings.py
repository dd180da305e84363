"""How a llama.cpp context computes: threads, flash attention, and the type of its key-value cache."""

from __future__ import annotations

from typing import Any

import llama_cpp

from guard.checked import checked_choice, whole_number
from guard.engines.ggml_types import CACHE_TYPES
from guard.errors import InputError

#: Key-value caches are of this type unless the caller asks for another.
DEFAULT_CACHE_TYPE = "f16"
#: Types of values that attention reads without its fused form, too.
_FLOATS = ("f32", "f16", "bf16")


def check_settings(*, context_tokens: int, threads: int | None, gpu_layers: int) -> None:
    """Refuse numbers that llama.cpp would misinterpret.

    Raises:
        InputError: a value is not a whole number, or is below its minimum.
    """
    whole_number("context_tokens", context_tokens, least=1)
    whole_number("gpu_layers", gpu_layers, least=-1)
    if threads is not None:
        whole_number("threads", threads, least=1)


def set_attention(context: Any, *, flash_attention: bool | None, type_k: str, type_v: str) -> None:
    """Set in a context's parameters how attention is computed and in which type keys and values are cached.

    Args:
        context: ``llama_context_params``.
        flash_attention: None leaves it to llama.cpp, which uses it where the model and the device support it.
        type_k, type_v: one of `CACHE_TYPES`.

    Raises:
        InputError: a type that is not known, or a quantized ``type_v`` without flash attention.
    """
    if flash_attention not in (None, True, False):
        raise InputError(f"flash_attention must be True, False or None, got {flash_attention!r:.60}")
    for what, name in (("type_k", type_k), ("type_v", type_v)):
        checked_choice(what, str(name), sorted(CACHE_TYPES))
    if flash_attention is False and type_v not in _FLOATS:
        raise InputError(
            f"type_v '{type_v}' needs flash attention",
            why="without it llama.cpp reads values as floats only",
            fix=f"Leave flash_attention out, or choose a type_v of {', '.join(_FLOATS)}",
        )
    context.type_k, context.type_v = CACHE_TYPES[type_k], CACHE_TYPES[type_v]
    if flash_attention is not None:
        _switch(context, flash_attention)


def set_wrapped_attention(context: Any, flash_attention: bool | None) -> None:
    """Set in a copy of a `Llama`'s parameters how attention is computed.

    Args:
        context: ``llama_context_params``, as the owner's `Llama` has them.
        flash_attention: None leaves it on where the owner has it on. Off is only the default of a `Llama`, which
            looks the same as a choice, so that it is left to llama.cpp, as for a model that is loaded.

    Examples:
        >>> params = llama_cpp.llama_context_default_params()
        >>> set_wrapped_attention(params, False)
        >>> params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        True
        >>> set_wrapped_attention(params, None)
        >>> params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        True
    """
    if flash_attention is not None:
        _switch(context, flash_attention)
    # Older bindings have a switch that is off in `load` too.
    elif getattr(context, "flash_attn_type", None) == getattr(llama_cpp, "LLAMA_FLASH_ATTN_TYPE_DISABLED", "none"):
        context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO


def _switch(context: Any, on: bool) -> None:
    if hasattr(context, "flash_attn_type"):
        names = (llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        context.flash_attn_type = names[on]
    else:  # bindings before 0.3.17
        context.flash_attn = on


def precision(quantization: str, context: Any) -> str:
    """Return the precision that a model answers in: that of its weights, and that of a cache that is not ``f16``.

    A scorer is bound to it, since a coarser cache moves scores as coarser weights do.

    Examples:
        >>> params = llama_cpp.llama_context_default_params()
        >>> precision("Q4_1", params)
        'Q4_1'
        >>> set_attention(params, flash_attention=None, type_k="q8_0", type_v="f16")
        >>> precision("Q4_1", params)
        'Q4_1, cache q8_0/f16'
    """
    names = {number: name for name, number in CACHE_TYPES.items()}
    kept = [names.get(int(each), str(each)) for each in (context.type_k, context.type_v)]
    return quantization if set(kept) == {DEFAULT_CACHE_TYPE} else f"{quantization}, cache {'/'.join(kept)}"
