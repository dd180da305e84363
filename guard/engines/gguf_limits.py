"""Assumptions of llama.cpp about a GGUF header; it ends the process if one does not hold.

Read off its assertions and found by fuzzing (``tests/fuzz/gguf_loading.py``). A header that breaks one of
these cannot be loaded anyway; here it is an error instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_BLOCKS, MAX_EXPERTS = 512, 1024
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
#: Kinds of tokenizers by the file's name for them; others have no text.
_TOKENIZERS = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "hybriddna", "whitespace")
#: Architectures with keys and values of equal length, and those that rotate all of it.
_EQUAL_HEADS_NAMES = """
    afmoe apertus arcee arctic baichuan bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm cohere2
    cohere2moe command-r dbrx deci deepseek deepseek4 dots1 dream ernie4_5 ernie4_5-moe exaone falcon glm4 glm4moe
    gpt2 gptneox granite granite_swa granitehybrid graniteswitch grok grovemoe hunyuan-moe hunyuan_vl hy_v3
    internlm2 jais jais2 laguna llada llada-moe llama llama4 maincoder mellum minimax-01 minimax-m2 minimax-m3
    mistral3 mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe olmo olmo2 olmoe openelm orion paddleocr
    pangu-embedded phi2 phi3 plamo qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl
    qwen3vlmoe qwen4exp refact rnd1 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 xverse
"""
_FULL_ROTATION_NAMES = """
    apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 dream ernie4_5
    ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa graniteswitch grok grovemoe hunyuan-moe
    hunyuan_vl hy_v3 internlm2 jais2 llada llada-moe llama llama4 maincoder mellum minimax-m2 mistral3 nemotron olmo
    olmo2 olmoe orion paddleocr pangu-embedded plamo qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1
    seed_oss smallthinker smollm3 starcoder2 talkie xverse
"""
_EQUAL_HEADS, _FULL_ROTATION = frozenset(_EQUAL_HEADS_NAMES.split()), frozenset(_FULL_ROTATION_NAMES.split())


def broken_limits(metadata: Mapping[str, Any], architecture: str) -> Iterator[str]:
    """Return what of a header llama.cpp would not survive, each as a sentence without its end."""
    values = _Hyperparameters(metadata, architecture)
    yield from _of_blocks(values)
    yield from _of_norms(values)
    yield from _of_experts(values)
    yield from _of_heads(values)
    yield from _of_tokens(metadata)


@dataclass(frozen=True, slots=True)
class _Hyperparameters:
    """Hyperparameters by their names without the architecture."""

    metadata: Mapping[str, Any]
    architecture: str

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def number(self, name: str, default: int = 0) -> int:
        """Return a whole number, or the largest of an array; the default if it is missing or of another type."""
        value = self.metadata.get(self.key(name))
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            return int(value.max())
        return value if isinstance(value, int) and not isinstance(value, bool) else default


def _of_blocks(values: _Hyperparameters) -> Iterator[str]:
    blocks = values.number("block_count", 1)
    if not 1 <= blocks <= MAX_BLOCKS:
        yield f"{values.key('block_count')} is {blocks}, from 1 to {MAX_BLOCKS} are loaded"
    if values.number("nextn_predict_layers") >= blocks:
        yield f"{values.key('nextn_predict_layers')} leaves none of {blocks} blocks"
    scaling = values.metadata.get(values.key("rope.scaling.type"))
    if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
        yield f"{values.key('rope.scaling.type')} is {scaling!r:.60}, which is not known"


def _of_norms(values: _Hyperparameters) -> Iterator[str]:
    for name in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.group_norm_epsilon"):
        epsilon = values.metadata.get(values.key(name))
        if isinstance(epsilon, float) and not 0 <= epsilon < float("inf"):
            yield f"{values.key(name)} is {epsilon}, which is no small number above 0"


def _of_experts(values: _Hyperparameters) -> Iterator[str]:
    experts, used = values.number("expert_count"), values.number("expert_used_count")
    groups, used_groups = values.number("expert_group_count"), values.number("expert_group_used_count")
    if not 0 <= experts <= MAX_EXPERTS:
        yield f"{values.key('expert_count')} is {experts}, at most {MAX_EXPERTS} are loaded"
    if used > experts or (experts and used < 1):
        yield f"{values.key('expert_used_count')} is {used} of {experts} experts"
    if groups and groups >= experts:
        yield f"{values.key('expert_group_count')} is {groups} for {experts} experts"
    if groups > 1 and (experts % groups or not 0 < used_groups < groups):
        yield f"{values.key('expert_group_used_count')} is {used_groups} of {groups} groups of {experts} experts"


def _of_heads(values: _Hyperparameters) -> Iterator[str]:
    heads, width = values.number("attention.head_count"), values.number("embedding_length")
    if heads < 1 or width < 1:
        return
    key = values.number("attention.key_length", width // heads)
    value = values.number("attention.value_length", width // heads)
    if values.architecture in _EQUAL_HEADS and key != value:
        yield f"{values.key('attention.key_length')} is {key}, and of values {value}"
    rotated = values.number("rope.dimension_count", key)
    if values.architecture in _FULL_ROTATION and rotated != key:
        yield f"{values.key('rope.dimension_count')} is {rotated}, and of keys {key}"


def _of_tokens(metadata: Mapping[str, Any]) -> Iterator[str]:
    model, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if model is not None and not isinstance(model, str):
        yield f"tokenizer.ggml.model is a {type(model).__name__}, not a text"
    elif model is not None and model not in _TOKENIZERS:
        yield f"tokenizer.ggml.model is {model!r:.60}, which has no text"
    elif model == "llama" and isinstance(tokens, Sequence) and not isinstance(tokens, str):
        missing = _missing_bytes(tokens)
        if missing:
            yield f"tokenizer.ggml.tokens has none for the byte {missing[0]}"


def _missing_bytes(tokens: Sequence[str]) -> list[int]:
    """Return bytes that neither have a token of their own nor are one; llama.cpp looks them up without asking."""
    known = set(tokens)
    return [byte for byte in range(256) if f"<0x{byte:02X}>" not in known and (byte > 127 or chr(byte) not in known)]
