"""Tiny models with random weights and tokenizers for them, made offline, and engines over them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from guard.engines.transformers import TransformersEngine
from guard.records import Floats, Generation, Limits, Prompt

WIDTH, LAYERS, CONTEXT = 32, 3, 512

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = "The quick brown fox jumps over the lazy dog. Which city is the capital of France? Paris. " * 3

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_OLD: dict[str, Any] = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

#: model type -> its configuration's arguments.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": {**_COMMON, "num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 16},
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, "sliding_window": 16},
    "gemma3_text": {**_GROUPED, "sliding_window": 16},
    "phi3": {
        **{key: value for key, value in _GROUPED.items() if key != "head_dim"},
        "original_max_position_embeddings": 20,
        "rope_scaling": {
            "rope_type": "longrope",
            "type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 20,
        },
    },
    "gpt2": {**_OLD, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gpt_neox": {**_COMMON, "rotary_pct": 0.5},
    "opt": {
        **{key: value for key, value in _COMMON.items() if key != "intermediate_size"},
        "ffn_dim": 48,
        "word_embed_proj_dim": WIDTH,
    },
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    "openai-gpt": _OLD,
    "qwen2_moe": {
        **_COMMON,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}


def tiny_config(kind: str, **changes: Any) -> Any:
    """A configuration; the vocabulary is the byte-level tokenizer's."""
    size = len(byte_tokenizer())
    return transformers.AutoConfig.for_model(kind, **{"vocab_size": size, **ARCHITECTURES[kind], **changes})


def tiny_model(kind: str, *, seed: int = 0, scale: float = 6.0, **changes: Any) -> Any:
    """A model in evaluation mode. Its matrices are scaled up from the usual start, for decided answers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    # No end token by chance: a test that wants one says so.
    model.generation_config.eos_token_id = None
    return model.eval()


@functools.cache
def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def byte_tokenizer(**settings: Any) -> Any:
    """Byte-level BPE with ChatML's tokens and a chat template."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_level().to_str()),
        **{
            "eos_token": "<|im_end|>",
            "bos_token": "<|endoftext|>",
            "chat_template": TEMPLATE,
            "additional_special_tokens": ["<|im_start|>"],
            **settings,
        },
    )


def sentencepiece_tokenizer() -> Any:
    """The form of Llama 2's tokenizer: spaces as part of words, bytes for unknown characters, a begin token."""
    words = ["▁Hello", "▁world", "▁", "a", "b", "c", "▁Paris", "is", "▁is", ".", "é"]
    byte_pieces = [f"<0x{number:02X}>" for number in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *byte_pieces, *words]
    scores = [0.0, 0.0, 0.0, *[-20.0] * 256, *[-1.0 - number / 10 for number in range(len(words))]]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def blocks_and_norm(model: Any) -> tuple[Any, Any]:
    """A model's blocks and the norm after them."""
    inner = getattr(model, model.base_model_prefix)
    inner = getattr(inner, "decoder", inner)
    blocks = getattr(inner, "layers", None) or inner.h
    names = ("norm", "ln_f", "final_layer_norm")
    return blocks, next((getattr(inner, name) for name in names if hasattr(inner, name)), torch.nn.Identity())


# -- engines over them --------------------------------------------------------------------------

QUESTION = Prompt.chat("Which city is the capital of France?", system="Be brief.")
SHORT = Limits(max_tokens=24)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are multiplied faster without a thread pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class RowRecording:
    """An observer that keeps copies."""

    def __init__(self) -> None:
        self.rows: list[Floats] = []

    def observe(self, activations: Floats) -> None:
        assert activations.dtype == np.float32
        self.rows.append(activations.copy())


def wrap(model: Any, tokenizer: Any = None, **options: Any) -> TransformersEngine:
    return TransformersEngine.wrap(model, tokenizer or byte_tokenizer(), **options)


def record(engine: TransformersEngine, limits: Limits = SHORT) -> tuple[Generation, Floats]:
    """An answer with its activations, shape (T, L, D)."""
    recording = RowRecording()
    answer = engine.generate(QUESTION, observer=recording, limits=limits)
    assert answer.capture_error is None
    return answer, np.stack(recording.rows)
