"""Tiny models with random weights of the architectures that llama.cpp knows, made by llama.cpp itself.

llama.cpp makes a model from its metadata and asks for each tensor's numbers, so that no list of
tensors is needed. One that lacks something may end the process, so each is made in a child.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as bindings
from tiny_gguf import SPECIAL, byte_alphabet
from tiny_graphs import Graph, decode, listening
from tiny_rwkv6qwen2 import tensors

from guard.engines.batch import Feed
from guard.engines.gguf import read_gguf
from guard.engines.llama_cpp import LlamaCppEngine
from guard.engines.llama_log import captured_log, load_error
from guard.engines.llama_nodes import find_nodes
from guard.engines.llama_tap import _ggml
from guard.errors import CaptureError, GuardError, UnsupportedArchitectureError
from guard.records import CapturePoint

CONTEXT = 128
VOCABULARY = len(SPECIAL) + len(byte_alphabet())

#: Hyperparameters that all tiny models have; what an architecture does not know, it does not read.
COMMON: dict[str, Any] = {
    "context_length": CONTEXT,
    "embedding_length": 256,
    "features_length": 256,
    "block_count": 2,
    "leading_dense_block_count": 1,
    "feed_forward_length": 384,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
    "time_mix_extra_dim": 64,
    "time_decay_extra_dim": 128,
    "full_attention_interval": 2,
    "attention.max_alibi_bias": 8.0,
    "attention.clamp_kqv": 1.0,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.group_norm_epsilon": 1e-5,
    "attention.group_norm_groups": 8,
    "attention.q_lora_rank": 512,
    "attention.kv_lora_rank": 512,
    "attention.relative_buckets_count": 8,
    "attention.sliding_window": 16,
    "attention.sliding_window_pattern": 2,
    "attention.indexer.head_count": 1,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 8,
    "rope.dimension_sections": [32, 32, 32, 32],
    "ssm.inner_size": 512,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.time_step_rank": 2,
    "ssm.group_count": 2,
    "kda.head_dim": 128,
    "wkv.head_size": 128,
    "shortconv.l_cache": 3,
    "xielu.alpha_n": 1.0,
    "xielu.alpha_p": 1.0,
    "xielu.beta": 1.0,
    "xielu.eps": 1e-7,
}

#: Those of a mixture of experts.
EXPERTS: dict[str, Any] = {
    "expert_feed_forward_length": 384,
    "expert_shared_feed_forward_length": 384,
    "expert_chunk_feed_forward_length": 384,
    "interleave_moe_layer_step": 2,
    "expert_count": 2,
    "expert_used_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_latent_length": 384,
    "expert_group_scale": 1.0,
    "experts_per_group": 1,
    "moe_every_n_layers": 2,
}

_LATENT = {
    "embedding_length": 128,
    "attention.head_count": 1,
    "attention.head_count_kv": 1,
    "feed_forward_length": 192,
    "attention.key_length": 576,
    "attention.value_length": 512,
    "rope.dimension_count": 64,
    "attention.key_length_mla": 192,
    "attention.value_length_mla": 128,
}
_HYBRID = {"attention.head_count": [2, 0], "attention.head_count_kv": [2, 0]}
_NEMOTRON = {
    "block_count": 3,
    "feed_forward_length": [0, 0, 384],
    "attention.head_count": [2, 0, 2],
    "attention.head_count_kv": [2, 0, 2],
}
_RWKV7 = {
    "attention.decay_lora_rank": 64,
    "attention.iclr_lora_rank": 64,
    "attention.value_residual_mix_lora_rank": 32,
    "attention.gate_lora_rank": 64,
}
_DELTA_NET = {"ssm.inner_size": 256}
_ALTERNATING = {"attention.sliding_window_pattern": [0, 1]}

#: Wide streams of several rows, which each layer reads a mixture of.
_HYPER = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
    "hyper_connection.magnitude": 2.0,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
}
_KDA = {"kda.safe_gate": True, "kda.gate_lower_bound": -5.0}
_INDEXED = {
    "attention.indexer.head_count": 64,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 131072,
    "attention.indexer.block_size": 4,
    "attention.indexer.kpool": 4,
    "attention.indexer.kpool_select_tail": True,
    "attention.indexer.local_blocks": 1,
}
#: Embeddings of the last few tokens, which some layers read beside the stream.
_NGRAMS = {
    "ple.layers": [0],
    "ple.ngram_size": 3,
    "ple.heads_per_ngram": 2,
    "ple.conv_kernel": 4,
    "ple.eos_token_id": 0,
    "embedding_length_per_layer_input": 64,
    "ple.layer_multipliers": [1, 3, 5],
    "ple.head_offsets": [number * VOCABULARY for number in range(4)],
    "ple.head_vocab_sizes": [VOCABULARY] * 4,
}
_ENCODER = {"attention.causal": False, "pooling_type": 1, "tokenizer.ggml.token_type_count": 2}

#: The architecture whose tiny models are written as files; `tiny_rwkv6qwen2` says why.
WRITTEN = "rwkv6qwen2"

#: Sizes of vocabularies that some graphs have in their code.
VOCABULARIES = {"chameleon": 10_240, "qwen3tts": 3_072}

#: What single architectures need otherwise.
SPECIFIC: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "deepseek2",
            "deepseek32",
            "glm-dsa",
            "mistral4",
            "minicpm3",
        ),
        _LATENT,
    ),
    "plm": {"attention.key_length": 192, "attention.value_length": 128, "rope.dimension_count": 64},
    "bailingmoe3": {
        **_LATENT,
        **_KDA,
        "attention.head_count": [1, 0],
        "attention.head_count_kv": [1, 0],
        "rope.dimension_sections": [8, 12, 12, 0],
        "swiglu_clamp_exp": [0.0, 4.0],
        "swiglu_clamp_shexp": [0.0, 5.0],
    },
    "hy_v4": {**_LATENT, **_HYPER, **_INDEXED, "swiglu_clamp_exp": 10.0, "attention.indexer.types": [1, 0]},
    "dots3note": {
        **_LATENT,
        **_INDEXED,
        "attention.kv_lora_rank_swa": 512,
        "attention.key_length_swa": 576,
        "attention.value_length_swa": 512,
        "attention.key_length_mla_swa": 192,
        "attention.value_length_mla_swa": 128,
        "rope.freq_base_swa": 10000.0,
        "attention.indexer.types": [1, 0],
        "attention.sliding_window_pattern": [0, 1],
    },
    "deepseek4": {
        **_HYPER,
        **_INDEXED,
        "embedding_length": 512,
        "feed_forward_length": 1024,
        "block_count": 4,
        "attention.head_count": 8,
        "attention.head_count_kv": 1,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.dimension_count": 32,
        "rope.dimension_sections": [16, 16, 16, 16],
        "attention.q_lora_rank": 64,
        "attention.output_group_count": 8,
        "attention.output_lora_rank": 32,
        "attention.compress_ratios": [0, 0, 4, 128],
        "attention.compress_rope_freq_base": 160000.0,
        "hash_layer_count": 0,
        "swiglu_clamp_exp": 10.0,
        "expert_gating_func": 4,
    },
    "qwen4exp": {
        **_HYPER,
        **_INDEXED,
        **_NGRAMS,
        "attention.compress_ratios": [4, 4],
        "ssm.inner_size": 256,
    },
    "glm5-next": {
        **_LATENT,
        **_HYPER,
        **_INDEXED,
        **_NGRAMS,
        **_KDA,
        "attention.head_count_kv": [1, 0],
        "attention.key_length": 512,
        "rope.dimension_count": 0,
        "attention.compress_ratios": [4, 4],
        "embedding_length_per_layer_input": 32,
    },
    "minimax-m3": {**_INDEXED, "rope.dimension_count": 64, "attention.indexer.head_count": 2},
    "hrm_text": {"block_count": 6, "hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2},
    "maple": {"attention.sliding_window_pattern": [0, 1], "swiglu_clamp_exp": 7.0},
    "kimi-k3": {
        **_LATENT,
        **_KDA,
        "attention.head_count": [1, 0],
        "attention.head_count_kv": [1, 0],
        "attn_res.block_size": 12,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
    },
    **dict.fromkeys(
        ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "eurobert", "modern-bert", "neo-bert"),
        _ENCODER,
    ),
    "graniteswitch": {
        "adapters.count": 1,
        "adapters.lora_rank": 8,
        "adapters.token_ids_activate": [5],
        "adapters.token_ids_substitute": [6],
    },
    **dict.fromkeys(("plamo2", "jamba", "granitehybrid", "lfm2", "lfm2moe", "falcon-h1"), _HYBRID),
    **dict.fromkeys(("cohere2moe", "mimo2", "step35", "granite_swa", "spark2_5"), _ALTERNATING),
    "kimi-linear": {**_LATENT, **_KDA, "attention.head_count": [1, 0], "attention.head_count_kv": [1, 0]},
    "plamo2": {**_HYBRID, "ssm.group_count": 0},
    "falcon-h1": {},
    "minimax-01": {"residual_scale": 1.0},
    "rwkv7": _RWKV7,
    "arwkv7": {**_RWKV7, "token_shift_count": 1},
    "rwkv6qwen2": {"token_shift_count": 1},
    "llama4": {"block_count": 4},
    "gemma3n": {
        "embedding_length": 64,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "feed_forward_length": 96,
        "block_count": 22,
    },
    "gemma4": {
        "embedding_length": 128,
        "feed_forward_length": 192,
        "block_count": 5,
        "embedding_length_per_layer_input": 64,
        "attention.shared_kv_layers": 0,
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 64,
        "attention.sliding_window_pattern": [1, 1, 1, 1, 0],
        "rope.freq_base_swa": 10000.0,
    },
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _NEMOTRON),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), _DELTA_NET),
}


def metadata_of(architecture: str, *, experts: bool) -> dict[str, Any]:
    """A tiny model's hyperparameters, without the architecture's name in front."""
    return {**COMMON, **(EXPERTS if experts else {}), **SPECIFIC.get(architecture, {})}


def write_metadata(path: Path, architecture: str, *, experts: bool, whole: bool = False) -> Path:
    """A GGUF file with vocabulary and hyperparameters, and with tensors only for a whole file."""
    tokens = [*SPECIAL, *byte_alphabet()]
    tokens += [f"<{number}>" for number in range(len(tokens), VOCABULARIES.get(architecture, 0))]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    for name, value in metadata_of(architecture, experts=experts).items():
        _add(writer, name if name.startswith(("xielu", "tokenizer")) else f"{architecture}.{name}", value)
    if whole:
        for name, values in tensors(metadata_of(architecture, experts=experts), len(tokens), _numbers).items():
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if whole:
        writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, list) and ".ple." in key and not key.endswith("layers"):
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT64)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)


#: Tensors whose names begin so have other numbers, norms apart; those whose names match are all zero.
_changed: str | None = None
_silent: re.Pattern[bytes] | None = None


def _numbers(name: bytes, count: int) -> Any:
    if _silent is not None and _silent.match(name):
        return np.zeros(count)
    other = _changed is not None and name.startswith(_changed.encode()) and b"norm" not in name
    seed = zlib.crc32(name) + other
    values = np.random.default_rng(seed).normal(scale=0.1, size=count)
    return values + (b"norm" in name and not name.endswith(b"bias"))


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
def _fill(tensor: int, _: object) -> None:
    name = _ggml.ggml_get_name(tensor)
    count, size = _ggml.ggml_nelements(tensor), _ggml.ggml_nbytes(tensor)
    kind = {4: np.float32, 2: np.float16}[size // count]
    values = _numbers(name, count).astype(kind)
    _ggml.ggml_backend_tensor_set(ctypes.c_void_p(tensor), values.ctypes.data_as(ctypes.c_void_p), 0, size)


def make_model(header: Path) -> Any:
    """llama.cpp's handle of a model with random weights."""
    if read_gguf(header).architecture == WRITTEN:
        return _load_written(header)

    class InitParams(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    _ggml.gguf_init_from_file.restype = ctypes.c_void_p
    _ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    _ggml.ggml_backend_tensor_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    metadata = _ggml.gguf_init_from_file(str(header).encode(), InitParams(no_alloc=True, ctx=None))
    make = bindings._lib.llama_model_init_from_user
    make.restype = ctypes.c_void_p
    make.argtypes = [ctypes.c_void_p, type(_fill), ctypes.c_void_p, llama_cpp.llama_model_params]
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    llama_cpp.llama_backend_init()
    with captured_log() as log:
        model = make(metadata, _fill, None, params)
    if not model:
        raise load_error(header, log)
    return model


def _load_written(header: Path) -> Any:
    path = write_metadata(header.with_name("whole.gguf"), WRITTEN, experts=False, whole=True)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.use_mmap = 0, False
    with captured_log() as log:
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise load_error(path, log)
    return model


def make_engine(header: Path, *, capture_point: CapturePoint = "mlp") -> LlamaCppEngine:
    """An engine over a tiny model."""
    context = llama_cpp.llama_context_default_params()
    context.n_ctx = CONTEXT
    context.n_threads = context.n_threads_batch = 1
    return LlamaCppEngine(
        model=make_model(header),
        header=read_gguf(header),
        path=header,
        context_params=context,
        capture_point=capture_point,
        chat_template=None,
    )


# -- what is read of them --------------------------------------------------------------------------


def read_layers(header: Path, *, changed: int | None = None) -> tuple[Any, Any]:
    """Each layer's MLP output and the residual stream behind it, both of shape (L, D).

    Args:
        header: of the tiny model.
        changed: layer whose MLP has other weights.
    """
    global _changed
    _changed = f"blk.{changed}.ffn" if changed is not None else None
    with make_engine(header, capture_point="mlp+block") as engine:
        (row,) = engine._evaluate([Feed(0, [5, 6, 7], 0, chooses=True, capture=True)])
        rows = row.activations().copy()
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def is_whole_output(header: Path) -> bool:
    """Whether what is read as the MLP's output is all that an MLP adds to the residual stream.

    With other weights in the MLP of one layer, the residual stream behind the layer changes by as much
    as the MLP's output, or as that output scaled or behind a norm, where the model has one there.
    """
    mlp, block = read_layers(header)
    return all(_explains(mlp[layer], block[layer], header, layer) for layer in range(len(mlp)))


def _explains(mlp: Any, block: Any, header: Path, layer: int) -> bool:
    others_mlp, others_block = read_layers(header, changed=layer)
    moved = others_block[layer] - block
    behind = ("post_ffw_norm.weight", "post_ffw_norm", "layer_output_norm.weight")
    names = (f"blk.{layer}.{name}".encode() for name in behind)
    norms = [_numbers(name, len(mlp)) for name in names]
    changes = [others_mlp[layer] - mlp, *(_normed(others_mlp[layer], norm) - _normed(mlp, norm) for norm in norms)]
    return np.abs(moved).max() > 0 and any(_is_multiple(moved, change) for change in changes)


def _normed(values: Any, weights: Any) -> Any:
    return values / np.sqrt(np.mean(values**2) + COMMON["attention.layer_norm_rms_epsilon"]) * weights


def _is_multiple(one: Any, other: Any) -> bool:
    scale = (one @ other) / (other @ other)
    return bool(np.abs(one - scale * other).max() < 2e-3 * np.abs(one).max())


def is_the_only_way(header: Path) -> bool:
    """Whether all that a layer's MLP computes leaves it through the node that is read, which holds nothing else.

    For layers that do more with their MLP's output than add it to one residual stream. The first is decided by what
    llama.cpp's graph computes from what, the second by a model whose MLPs end in zeros: each node is zero.
    """
    graph = Graph()
    context = llama_cpp.llama_context_default_params()
    context.n_ctx, context.n_threads, context.n_threads_batch = CONTEXT, 1, 1
    model = make_model(header)
    with listening(graph, _ggml) as context.cb_eval:
        decode(model, context, [5, 6, 7])
    nodes = find_nodes(graph.names, "mlp", llama_cpp.llama_model_n_layer(model))
    whole = all(map(_mlp_weights, map(graph.above, nodes))) and not _mlp_weights(graph.above(None, without=nodes))
    return whole and not _without_mlps(header).any()


def _mlp_weights(names: set[str]) -> set[str]:
    return {name for name in names if re.match(r"blk\.\d+\.ffn_", name) and "norm" not in name}


def _without_mlps(header: Path) -> Any:
    """What is read of a model whose MLPs add nothing, of shape (L, D)."""
    global _silent
    _silent = re.compile(rb"blk\.\d+\.ffn_down")
    try:
        with make_engine(header) as engine:
            (row,) = engine._evaluate([Feed(0, [5, 6, 7], 0, chooses=True, capture=True)])
            return row.activations().copy()
    finally:
        _silent = None


def verdict(architecture: str, *, experts: bool, folder: Path) -> dict[str, str]:
    """What becomes of a tiny model: ``right``, ``refused`` or ``unknown``, with a reason."""
    header = write_metadata(folder / "header.gguf", architecture, experts=experts)
    try:
        make_engine(header).close()
    except UnsupportedArchitectureError as error:
        return {"verdict": "refused", "why": str(error)}
    except GuardError as error:
        return {"verdict": "unknown", "why": str(error)}
    try:
        if is_whole_output(header):
            return {"verdict": "right", "why": ""}
        why = "the residual stream does not change by what is read alone"
    except (UnsupportedArchitectureError, CaptureError):
        why = "there is no node for the residual stream to check it by"
    if is_the_only_way(header):
        return {"verdict": "right", "why": "by the graph"}
    return {"verdict": "unknown", "why": why}


if __name__ == "__main__":
    for model in sys.argv[1:]:  # such as "llama dense" or "qwen2moe experts"
        name, kind = model.split()
        with tempfile.TemporaryDirectory() as made:
            print(
                json.dumps({"model": model, **verdict(name, experts=kind == "experts", folder=Path(made))}), flush=True
            )
