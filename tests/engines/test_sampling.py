"""Choosing a token and its signals, against SciPy's answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare, entropy

from guard.engines.sampling import choose, token_signals
from guard.records import Floats, Sampling

LOGITS = hnp.arrays(
    np.float32,
    st.integers(2, 60),
    elements=st.floats(-40, 40, width=32) | st.just(np.float32(-np.inf)),
).filter(lambda logits: np.isfinite(logits).sum() >= 1)


def reference_distribution(logits: Floats, sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities after temperature, top-k, then top-p, by sorting in float64. Shape (V,)."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    kept = order[: sampling.top_k] if sampling.top_k else order
    probabilities = np.zeros(len(logits))
    probabilities[kept] = softmax(logits[kept].astype(np.float64) / sampling.temperature)
    if sampling.top_p < 1.0:
        reached = 0.0
        for position, token in enumerate(kept):
            reached += probabilities[token]
            if reached >= sampling.top_p:
                probabilities[kept[position + 1 :]] = 0.0
                break
    return probabilities / probabilities.sum()


@given(LOGITS, st.data())
def test_signals_are_those_of_the_softmax(logits: Floats, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    before = logits.copy()
    signals = token_signals(logits, token)
    expected = log_softmax(logits.astype(np.float64))
    np.testing.assert_allclose(signals.logprob, expected[token], atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(signals.entropy, entropy(softmax(logits.astype(np.float64))), atol=1e-4)
    second, first = np.sort(expected)[-2:]
    np.testing.assert_allclose(signals.margin, first - second, atol=1e-4, rtol=1e-5)
    assert 0.0 <= signals.entropy <= np.log(len(logits)) + 1e-4
    assert signals.margin >= 0.0
    np.testing.assert_array_equal(logits, before)


def test_signals_of_a_uniform_and_of_a_certain_distribution() -> None:
    uniform = token_signals(np.zeros(8, np.float32), 3)
    assert uniform.logprob == pytest.approx(-np.log(8))
    assert uniform.entropy == pytest.approx(np.log(8))
    assert uniform.margin == 0.0
    certain = token_signals(np.array([500, 0, -np.inf], np.float32), 0)
    assert certain == (0.0, 0.0, 500.0)


def test_a_large_vocabulary_loses_no_precision() -> None:
    logits = np.random.default_rng(1).normal(scale=4, size=260_000).astype(np.float32)
    probabilities = softmax(logits.astype(np.float64))
    signals = token_signals(logits, 17)
    assert signals.entropy == pytest.approx(entropy(probabilities), abs=1e-4)
    assert signals.logprob == pytest.approx(np.log(probabilities[17]), abs=1e-5)


def test_signals_do_not_depend_on_a_shift_of_the_logits() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_allclose(token_signals(logits + 64, 5), token_signals(logits, 5), atol=1e-4)


@given(LOGITS)
def test_greedy_is_the_likeliest_and_of_equals_the_first(logits: Floats) -> None:
    token = choose(logits, Sampling(), np.random.default_rng(0))
    assert token == min(range(len(logits)), key=lambda other: (-logits[other], other))


@settings(max_examples=60)
@given(
    LOGITS,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
)
def test_a_sample_is_one_of_the_tokens_that_may_be_drawn(
    logits: Floats, temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    allowed = reference_distribution(logits, sampling)
    draws = [choose(logits, sampling, np.random.default_rng(seed)) for _ in range(2)]
    assert draws[0] == draws[1], "the seed makes it repeatable"
    assert logits[draws[0]] > -np.inf
    # Float sums at the very edge of top-p may fall either way; the next token in line is that edge.
    edge = reference_distribution(logits, replace(sampling, top_p=min(1.0, top_p + 1e-9)))
    assert allowed[draws[0]] > 0 or (top_p < 1.0 and edge[draws[0]] > 0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.5, top_k=3),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=2.0, top_p=0.7, top_k=4),
    ],
)
def test_frequencies_are_the_probabilities(sampling: Sampling) -> None:
    logits = np.array([2.0, 0.5, 1.5, -1.0, -np.inf, 1.0, 0.0], np.float32)
    expected = reference_distribution(logits, sampling)
    rng = np.random.default_rng(7)
    draws = 20_000
    counts = np.bincount([choose(logits, sampling, rng) for _ in range(draws)], minlength=len(logits))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] * draws).pvalue > 1e-3


def test_top_k_of_one_and_a_tiny_top_p_are_greedy() -> None:
    logits = np.random.default_rng(3).normal(size=500).astype(np.float32)
    rng = np.random.default_rng(0)
    for sampling in (Sampling(temperature=3.0, top_k=1), Sampling(temperature=3.0, top_p=1e-6)):
        assert {choose(logits, sampling, rng) for _ in range(50)} == {int(logits.argmax())}


def test_a_low_temperature_does_not_overflow() -> None:
    logits = np.array([3e4, 2e4, -3e4], np.float32)
    assert choose(logits, Sampling(temperature=1e-3), np.random.default_rng(0)) == 0
