"""From logits to a token and its free signals. Pure; the same for every engine."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from guard.errors import EngineError
from guard.records import Floats, Sampling

#: Token ids with their log-probabilities, the likeliest first.
Likeliest: TypeAlias = tuple[tuple[int, float], ...]


class TokenSignals(NamedTuple):
    """What one forward pass says about the token it chose.

    Attributes:
        logprob: natural log of the chosen token's probability at temperature 1.
        entropy: of the whole distribution, in nats.
        margin: log-probability of the likeliest token minus that of the second likeliest.
    """

    logprob: float
    entropy: float
    margin: float


def checked_logits(logits: Floats, *, fix: str) -> Floats:
    """Return the same logits, where a token can be chosen from them.

    Args:
        logits: shape (V,), raw; single tokens may be masked with -inf.
        fix: what the reader can do about a model that gives none.

    Raises:
        EngineError: one is NaN or infinity, or all are masked.
    """
    if not math.isfinite(logits.max()):
        raise EngineError(
            "The model's logits are not numbers",
            why="a value became too large for its type, or the weights are damaged",
            fix=fix,
        )
    return logits


def token_signals(logits: Floats, token: int) -> TokenSignals:
    """Return signals of a chosen token.

    Args:
        logits: shape (V,), raw.
        token: the chosen token's id.
    """
    top = int(logits.argmax())
    shifted = logits - logits[top]
    weights = np.exp(shifted)
    total = float(weights.sum())
    log_total = float(np.log(total))
    with np.errstate(invalid="ignore"):
        weighted = float(np.dot(weights, shifted))
    if math.isnan(weighted):  # a masked token (logit -inf) weighs nothing, but 0 x -inf is nan
        weighted = float(np.dot(weights, np.maximum(shifted, -1e30)))
    entropy = log_total - weighted / total
    logprob = float(shifted[token]) - log_total
    shifted[top] = -np.inf
    return TokenSignals(logprob, max(entropy, 0.0), -float(shifted.max()))


def likeliest(logits: Floats, k: int) -> Likeliest:
    """Return the k likeliest tokens with their log-probabilities at temperature 1, the likeliest first, ties by id.

    Args:
        logits: shape (V,), raw.
        k: 1 or more.

    Examples:
        >>> likeliest(np.log(np.array([0.5, 0.25, 0.25], np.float32)), 2)
        ((0, -0.69...), (1, -1.38...))
    """
    ids = _top_k(logits, k)
    top = float(logits[ids[0]])
    log_total = math.log(float(np.exp(logits - top).sum()))
    return tuple((int(at), float(logits[at]) - top - log_total) for at in ids)


def choose(logits: Floats, sampling: Sampling, rng: np.random.Generator) -> int:
    """Return the next token: the likeliest, or drawn at a temperature from the top-k and top-p tokens.

    Args:
        logits: shape (V,), raw.
        sampling: temperature 0 is greedy.
        rng: used only when sampling.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    ids = _top_k(logits, sampling.top_k)
    scaled = logits[ids].astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    kept = _top_p(probabilities, sampling.top_p)
    return int(rng.choice(ids[kept], p=probabilities[kept] / probabilities[kept].sum()))


def _top_k(logits: Floats, k: int) -> NDArray[np.intp]:
    """Return ids of the k largest logits (all for k = 0), largest first, ties by id."""
    ids = np.arange(len(logits))
    if 0 < k < len(logits):
        kth = np.partition(logits, len(logits) - k)[len(logits) - k]
        ids = np.flatnonzero(logits >= kth)  # more than k where the last place is shared
    return ids[np.lexsort((ids, -logits[ids]))][: k or None]


def _top_p(probabilities: NDArray[np.float64], p: float) -> slice:
    """Return the shortest run of sorted probabilities whose sum reaches p; always at least one."""
    if p >= 1.0:
        return slice(None)
    return slice(0, int(np.searchsorted(np.cumsum(probabilities), p)) + 1)
