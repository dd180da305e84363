"""RAUQ (arXiv:2505.20045): an answer's uncertainty from its tokens' probabilities and one attention head of each layer.

The confidence in a token is its probability, mixed with that in the token before it, by how much the layer's head
attends to that one. The head is the one that attends most to it over the whole answer. No label is needed. The
definition follows LM-Polygraph 0.7, by the paper's authors, without the constant 1 that it adds.
"""

from __future__ import annotations

import math

import numpy as np

from guard.engines.protocols import AttentionEngine, Engine
from guard.errors import InputError
from guard.records import Doubles, Floats, Generation, Prompt

#: Weight of a token's own probability, of models that are asked by chat messages and by a text to continue.
CHAT_WEIGHT, COMPLETION_WEIGHT = 0.5, 0.2


def rauq(logprobs: Floats, attention: Floats, *, weight: float = CHAT_WEIGHT) -> float:
    """Return the uncertainty of an answer in nats: that of the most uncertain layer in the middle of the model.

    Args:
        logprobs: of the answer's tokens, its end included, shape (T,).
        attention: shape (L, H, T - 1): how much each head attends to the latest token where the next one is chosen.
        weight: of a token's own probability.

    Examples:
        >>> sure, unsure = np.log([0.9, 0.9]), np.log([0.9, 0.1])
        >>> attention = np.full((3, 1, 1), 0.5)
        >>> round(rauq(sure, attention), 3), round(rauq(unsure, attention), 3)
        (0.249, 0.698)
    """
    probabilities = np.exp(np.asarray(logprobs, np.float64))
    layers = len(attention)
    middle = attention[layers // 3 : math.ceil(layers / 3 * 2) + 1]
    return max(_uncertainty(probabilities, _strongest(heads), weight) for heads in middle)


def _strongest(heads: Floats) -> Doubles:
    """Return the weights of the head that attends most to the latest token, shape (T - 1,)."""
    best = heads.mean(axis=1).argmax() if heads.shape[1] else 0
    return np.asarray(heads[best], np.float64)


def _uncertainty(probabilities: Doubles, attention: Doubles, weight: float) -> float:
    confidence = [float(probabilities[0])]
    for probability, attended in zip(probabilities[1:], attention, strict=True):
        confidence.append(float(weight * probability + (1 - weight) * attended * confidence[-1]))
    return -float(np.log(confidence).mean())


def answer_rauq(engine: Engine, prompt: Prompt, generation: Generation) -> float:
    """Read a model's attention over an answer in one more pass, and return its RAUQ.

    Raises:
        InputError: the engine or the model returns no attention, or not over such a long text.
    """
    attention = check_attention(engine).attention(prompt, generation.token_ids)
    start = generation.answer_start
    weight = COMPLETION_WEIGHT if prompt.messages is None else CHAT_WEIGHT
    return rauq(generation.logprobs[start:], attention[:, :, start:], weight=weight)


def check_attention(engine: Engine) -> AttentionEngine:
    """Return an engine that returns attention weights.

    Raises:
        InputError: it does not.
    """
    if not isinstance(engine, AttentionEngine):
        raise InputError(
            f"RAUQ reads attention weights, and the engine '{engine.model.engine}' returns none",
            fix="Record with --engine transformers, or leave --rauq (rauq=) out",
        )
    return engine
