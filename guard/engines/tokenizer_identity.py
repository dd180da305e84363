"""What a Hugging Face tokenizer is: the tokens that end an answer, and the hashes that scorers are bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Tokens that end an answer, whether the model's settings name them or not: those that llama.cpp knows by name.
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|eom_id|>", "<|eom|>", "<end_of_turn>", "<turn|>", "<|end|>"),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|endofturn|>"),
    *("<|turn_end|>", "<end_of_utterance>", "<|end_of_text|>", "<|endoftext|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
)
#: Where a vocabulary has both of a pair, ``<|end|>`` ends a channel of an answer and not the answer.
_CHANNELS = (("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>"))


def end_tokens(
    model: Any, tokenizer: Any, vocabulary: Mapping[str, int], after_answer: int | None
) -> tuple[frozenset[int], int | None]:
    """Return all tokens that end an answer, and the one that this model ends its turn with (None: no end).

    Args:
        model: its settings may name some.
        tokenizer: its settings too.
        vocabulary: the tokenizer's.
        after_answer: the control token that the chat template writes behind an answer, if it writes one.
    """
    named: list[int] = []
    for settings in (tokenizer, getattr(model, "generation_config", None), model.config):
        ids = getattr(settings, "eos_token_id", None)
        named += [ids] if isinstance(ids, int) else list(ids or ())
    has_channels = any(vocabulary.keys() >= {*pair} for pair in _CHANNELS)
    known = [vocabulary[text] for text in _ENDS if text in vocabulary and not (has_channels and text == "<|end|>")]
    first = [after_answer] if after_answer is not None else []
    return frozenset(first + named + known), next(iter(first + named + known), None)


def template_text(tokenizer: Any) -> str:
    """Return the chat template as one text; several named ones in the order of their names; or empty."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def template_sha256(tokenizer: Any) -> str:
    """Of `template_text`."""
    return _sha256(template_text(tokenizer))


def tokenizer_sha256(tokenizer: Any, vocabulary: Mapping[str, int]) -> str:
    """Of the vocabulary (added tokens included) and, where the tokenizer shows them, the merges."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    # Versions of tokenizers write a merge as "a b" or as ["a", "b"].
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    pieces = sorted((number, piece) for piece, number in vocabulary.items())
    return _sha256(json.dumps([pieces, merges]))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
