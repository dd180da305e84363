"""Every causal language model that transformers can build from a small configuration, against its own generate().

    python benchmarks/architectures.py             # all families, some minutes
    python benchmarks/architectures.py llama phi3  # some of them, printed

The first writes benchmarks/results/architectures.json, which docs/reference/architectures.md is filled from.

Each is built with random weights. It is *right* when guard's answer is token for token generate()'s,
also with the prompt read in parts, and every layer was recorded; *refused* when the engine is not built
and says why; *unknown* when transformers cannot build or run it here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from guard.engines import passes
from guard.engines.transformers import TransformersEngine
from guard.errors import GuardError, UnsupportedArchitectureError
from guard.records import Floats, Limits, Prompt

RESULTS = Path(__file__).parent / "results" / "architectures.json"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"
BEGIN, END = "<!-- transformers: begin -->", "<!-- transformers: end -->"
TOKENS, PROMPT, LAYERS, WIDTH, VOCABULARY = 20, 12, 4, 32, 320
MAX_SECONDS, MAX_PARAMETERS = 90, 100_000_000

#: Small values by the names that configurations use for the same things.
_SMALL = (
    (VOCABULARY, "vocab_size text_vocab_size n_vocab padded_vocab_size vocab_size_per_layer_input"),
    (
        WIDTH,
        "hidden_size n_embd d_model dim embedding_size word_embed_proj_dim embedding_dim hidden_dim lru_width"
        " dim_model attention_hidden_size",
    ),
    (
        48,
        "intermediate_size ffn_dim n_inner d_ff ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff"
        " feed_forward_size intermediate_size_mlp shared_intermediate_size dense_intermediate_size"
        " prefix_dense_intermediate_size",
    ),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"),
    (
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts"
        " num_local_experts n_routed_experts moe_num_experts num_linear_attention_heads linear_num_value_heads"
        " conv_kernel mamba_d_conv linear_conv_kernel_dim index_n_heads num_q_heads conv_L_cache index_topk_freq"
        " swa_num_attention_heads num_attention_heads_per_layer linear_num_heads",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads num_experts_per_tok moe_top_k num_experts_per_token moe_k"
        " linear_num_key_heads n_kv_heads num_activated_experts moe_topk num_global_key_value_heads"
        " swa_num_key_value_heads experts_per_token",
    ),
    (
        8,
        "head_dim qk_rope_head_dim rotary_dim attention_head_dim kv_channels v_head_dim qk_nope_head_dim mamba_d_head"
        " mamba_d_state mamba_headdim n_mamba_heads linear_key_head_dim"
        " linear_value_head_dim state_size ssm_state_size mamba_head_dim mamba_n_heads"
        " mamba_chunk_size chunk_size block_size index_head_dim d_kv global_head_dim swa_head_dim dim_head"
        " hidden_size_per_layer_input mamba_num_heads time_step_rank mamba_dt_rank v_head_dim swa_v_head_dim qkv_dim",
    ),
    (
        16,
        "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank sliding_window"
        " attention_window_size moe_shared_expert_intermediate_size expert_ffn_hidden_size o_lora_rank index_topk"
        " shared_moe_intermediate_size local_attention attention_chunk_size conv_dim expert_intermediate_size",
    ),
    (
        512,
        "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length context_length"
        " original_max_position_embeddings",
    ),
    (
        1,
        "n_group topk_group mamba_n_groups n_groups mamba_ngroups num_shared_experts n_shared_experts moe_layer_freq"
        " first_k_dense_replace num_nextn_predict_layers num_dense_layers moe_num_shared_experts"
        " interleave_moe_layer_step moe_num_groups num_expert_group",
    ),
    (
        0,
        "bos_token_id eos_token_id pad_token_id decoder_start_token_id num_kv_shared_layers first_k_dense",
    ),
)
_VALUES = {name: value for value, names in _SMALL for name in names.split()}

#: What follows from no rule.
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "layers_block_type": ["mamba", "attention"] * 2},
    "mpt": {"attn_config": {"attn_impl": "eager"}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, "mlp_layer_types": ["sparse"] * 4},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    },
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16, "swa_head_dim": 16},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2, "unpadded_vocab_size": VOCABULARY},
    "inkling2_loop_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2, "unpadded_vocab_size": VOCABULARY},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8},
        "indexer_compress_ratio": 4,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_embed_dim": 32,
    },
    "reformer": {
        "axial_pos_embds": False,
        "is_decoder": True,
        "hidden_size": 32,
        "attention_head_size": 8,
        "num_attention_heads": 4,
        "attn_layers": ["local", "lsh"] * 2,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "xlm": {"emb_dim": 32, "causal": True, "is_encoder": False, "n_heads": 4, "n_layers": 4},
    "xlstm": {"num_heads": 4, "embedding_dim": 64, "hidden_size": 64, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
    },
    "zaya": {"num_attention_heads": 8, "head_dim": 8, "num_experts_per_tok": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "mamba_expand": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
}


def model_types() -> list[str]:
    """Every model type with a causal head."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(kind: str) -> Any:
    """A small configuration of a model type.

    Raises:
        Exception: whatever transformers makes of it.
    """
    kept = transformers.CONFIG_MAPPING[kind]
    config = kept(**{**_arguments(kept), **_OWN.get(kind, {})})
    for name in ("is_decoder", "use_cache"):
        if hasattr(config, name):
            setattr(config, name, True)
    return config


def _arguments(kept: Any) -> dict[str, Any]:
    usual = kept().to_dict()
    found = {name: _VALUES[name] for name in usual if name in _VALUES and _is_number(usual[name])}
    if "kv_lora_rank" in usual:  # latent attention has as many heads for keys as for queries
        found["num_key_value_heads"] = found["num_attention_heads"]
    for name in getattr(kept, "sub_configs", {}):
        kind = (usual.get(name) or {}).get("model_type")
        if kind in transformers.CONFIG_MAPPING:
            found[name] = {**_arguments(transformers.CONFIG_MAPPING[kind]), **_OWN.get(kind, {}), "model_type": kind}
    return found


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def small_model(kind: str, *, scale: float = 6.0) -> Any:
    """A model of that configuration, with random weights that decide its answers."""
    torch.manual_seed(0)
    config = small_config(kind)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    size = sum(parameter.numel() for parameter in empty.parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"the small configuration has {size:,} parameters")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    # Plain greedy decoding: some families' settings forbid repeated words or force a last token.
    model.generation_config = transformers.GenerationConfig(bos_token_id=0, pad_token_id=0)
    return model


class _Rows:
    def __init__(self) -> None:
        self.rows: list[Floats] = []

    def observe(self, activations: Floats) -> None:
        self.rows.append(activations.copy())


def tokenizer() -> Any:
    """Of numbers; the prompts are token ids already."""
    words = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1")


def verdict(kind: str) -> dict[str, str]:
    """What guard makes of a family: ``right``, ``refused``, ``wrong`` or ``unknown``, and why."""
    try:
        model = small_model(kind)
        theirs = _generated(model)
    except Exception as error:  # noqa: BLE001 - whatever transformers raises
        return {"result": "unknown", "why": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    try:
        engine = TransformersEngine.wrap(model, tokenizer())
    except UnsupportedArchitectureError as error:
        return {"result": "refused", "why": error.what}
    layer = engine._layers[-1]
    return {"result": "right", "layer": layer, "beside": _beside(model, layer), **_compared(engine, theirs)}


def _generated(model: Any) -> list[int]:
    ids = torch.tensor([_prompt()])
    asked = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)
    return [int(token) for token in output[0, PROMPT:]]


def _prompt() -> list[int]:
    return [3 + (place * 7919) % (VOCABULARY - 3) for place in range(PROMPT)]


def _compared(engine: TransformersEngine, theirs: list[int]) -> dict[str, str]:
    engine._tokens.ends = frozenset()
    engine.encode = lambda prompt: _prompt()  # type: ignore[method-assign]
    whole, recorded, limits = passes.PREFILL_TOKENS, _Rows(), Limits(max_tokens=TOKENS)
    try:
        answer = engine.generate(Prompt.raw("x"), limits=limits, observer=recorded)
        passes.PREFILL_TOKENS = 5
        parts = engine.generate(Prompt(text="x", cache_key="parts"), limits=limits)
        kept = _kept(engine)
    except GuardError as error:
        return {"result": "wrong", "why": str(error)[:200]}
    finally:
        passes.PREFILL_TOKENS = whole
    if [*answer.token_ids] != theirs:
        return {"result": "wrong", "why": f"answers otherwise: {answer.token_ids}, generate() {theirs}"}
    if not np.allclose(parts.logprobs, answer.logprobs, atol=1e-3):
        return {"result": "wrong", "why": "a prompt in parts is another prompt"}
    if answer.capture_error or len(recorded.rows) != TOKENS:
        return {"result": "wrong", "why": f"not recorded: {answer.capture_error}"}
    return kept


def _kept(engine: TransformersEngine) -> dict[str, str]:
    """What of an earlier prompt is used again: its beginning, all of it where it is continued, or nothing."""
    other = [*_prompt()[:-4], 5, 6, 7, 8]
    used = {}
    for what, earlier, later in (("beginning", _prompt(), other), ("continuation", other[:8], other)):
        alone, whole = _asked(engine, later, f"{what} alone", tokens=4)
        _asked(engine, earlier, what, tokens=1)
        shared, evaluated = _asked(engine, later, what, tokens=4)
        if not np.allclose(shared, alone, atol=1e-3):
            return {"result": "wrong", "why": f"what was kept of an earlier prompt ({what}) is not what would be read"}
        used[what] = evaluated < whole
    return {"kept": next((what for what in used if used[what]), "nothing")}


def _asked(engine: TransformersEngine, prompt: list[int], key: str, *, tokens: int) -> tuple[Any, int]:
    """Return the log-probabilities of an answer, and how many tokens were evaluated for it."""
    engine.encode = lambda _: prompt  # type: ignore[method-assign]
    before = engine._loop.evaluated
    answer = engine.generate(Prompt(text="x", cache_key=key), limits=Limits(max_tokens=tokens))
    return answer.logprobs, engine._loop.evaluated - before


def _beside(model: Any, captured: str) -> str:
    """Modules of the last layer that might be a part of its MLP and are not within what is recorded."""
    block = captured.rpartition(".")[0]
    while block and not block.rpartition(".")[2].isdigit():
        block = block.rpartition(".")[0]
    words = ("mlp", "ffn", "feed", "moe", "expert", "shared", "fc", "dense", "router")
    names = [
        name.removeprefix(f"{block}.")
        for name, module in model.named_modules()
        if name.startswith(f"{block}.")
        and not name.startswith(captured)
        and any(word in name.removeprefix(block).lower() for word in words)
        and "norm" not in name
        and "attn" not in name
        and any(True for _ in module.parameters())
    ]
    return " ".join(names)


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def page() -> str:
    """The table of docs/reference/architectures.md, between its marks, from the last full run."""
    content = json.loads(RESULTS.read_text())
    families = content["families"]
    lines = [f"transformers {content['transformers']}, {len(families)} model types.", ""]
    for result, said in _SAID.items():
        names = [kind for kind, found in families.items() if found["result"] == result]
        lines += [f"**{said}** ({len(names)}): {_listed(names)}.", ""]
    lines += ["Of an earlier prompt, the right ones [use again](../explanation/sharing.md#transformers):", ""]
    for kept, said in _KEPT.items():
        names = [kind for kind, found in families.items() if found.get("kept") == kept]
        lines.append(f"- {said} ({len(names)}){'' if kept == 'beginning' else f': {_listed(names)}'}")
    unknown = [kind for kind, found in families.items() if found["result"] == "unknown"]
    rows = [f"| `{kind}` | {_REASONS.get(kind) or families[kind]['why']} |" for kind in unknown]
    return "\n".join([*lines, "", "| unknown | why |", "| --- | --- |", *rows, ""])


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


_KEPT = {
    "beginning": "the beginning, also where the rest differs",
    "continuation": "all of it, where the later prompt continues it",
    "nothing": "nothing: they read a prompt at once, or have no cache",
}


#: Why no small one can be run of some, beside what transformers says.
_REASONS = {
    "blt": "reads bytes in patches of its own; transformers builds no generation cache for it",
    "dots3_note": "no small composite can be built; its text part, `dots3_note_text`, is right",
    "gemma3n": "its vision tower needs the package `timm`; its text part, `gemma3n_text`, is right",
    "gemma4_assistant": "a draft model, which reads its target model's cache",
    "gemma4_unified_assistant": "a draft model, which reads its target model's cache",
    "musicgen": "makes sound: `generate()` returns no text",
    "musicgen_melody": "makes sound: `generate()` returns no text",
    "xlm": "transformers runs it as an encoder only",
}


_SAID = {
    "right": "Right: token for token generate()'s answer, all layers recorded",
    "refused": "Refused when the engine is built",
    "unknown": "Unknown: transformers cannot build or run a small one here",
    "wrong": "Wrong",
}


def main(kinds: list[str]) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {}
    for kind in kinds or model_types():
        try:
            with _time_limit(MAX_SECONDS):
                results[kind] = verdict(kind)
        except TimeoutError as error:
            results[kind] = {"result": "unknown", "why": str(error)}
        print(kind, json.dumps(results[kind]), flush=True)
    if not kinds:
        content = {"transformers": transformers.__version__, "families": results}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        before, begin, after = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{begin}\n\n{page()}{END}{after.partition(END)[2]}")


if __name__ == "__main__":
    main(sys.argv[1:])
