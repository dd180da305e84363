"""The linear probe: what is computed from inner products is what the coordinates would give."""

from __future__ import annotations

import numpy as np
import pytest

from guard.errors import CaptureError
from guard.scoring.probe import InnerProducts, combine_weights, inner_products, normalised, principal_components

TOKENS, LAYERS, WIDTH = 3, 4, 6


def activations(count: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(1, TOKENS, LAYERS, 1)) * 3)  # layers of very different loudness
    return (rng.normal(size=(count, TOKENS, LAYERS, WIDTH)) * scale).astype(np.float32)


def coordinates(values: np.ndarray) -> np.ndarray:
    return normalised(values).reshape(len(values), -1).astype(np.float64) / np.sqrt(TOKENS * LAYERS)


def test_every_layer_has_the_same_length_whatever_its_scale() -> None:
    values = activations(5)
    assert np.allclose(np.linalg.norm(normalised(values), axis=-1), 1.0)
    np.testing.assert_allclose(normalised(values * np.float32(1e6)), normalised(values), rtol=1e-5)
    for bad in (0.0, np.inf, np.nan):
        values[2, 1, 3] = bad
        with pytest.raises(CaptureError, match="all zero or not finite"):
            normalised(values)


def test_inner_products_are_those_of_all_coordinates() -> None:
    some, others = activations(7), activations(5, seed=1)
    np.testing.assert_allclose(inner_products(some), coordinates(some) @ coordinates(some).T, atol=1e-6)
    np.testing.assert_allclose(inner_products(some, others), coordinates(some) @ coordinates(others).T, atol=1e-6)
    np.testing.assert_allclose(np.diag(inner_products(some)), 1.0, atol=1e-6)
    half = inner_products(some.astype(np.float16))
    np.testing.assert_allclose(half, inner_products(some), atol=2e-3)


def test_components_are_those_of_the_coordinates() -> None:
    learnt, new = activations(30), activations(8, seed=1)
    components = principal_components(inner_products(learnt), count=5)
    centred = coordinates(learnt) - coordinates(learnt).mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    for values in (learnt, new):
        expected = (coordinates(values) - coordinates(learnt).mean(axis=0)) @ axes[:5].T
        found = components.of(inner_products(values, learnt)) * components.scale
        signs = np.sign((found * expected).sum(axis=0))
        np.testing.assert_allclose(found, expected * signs, atol=0.02)  # a randomised decomposition
    lengths = np.square(components.of(inner_products(learnt))).sum(axis=1)
    assert lengths.mean() == pytest.approx(1.0, abs=1e-3)


def test_a_function_of_components_is_a_linear_probe_of_activations() -> None:
    learnt, new = activations(30), activations(8, seed=1)
    components = principal_components(inner_products(learnt), count=6)
    coefficients = np.random.default_rng(2).normal(size=6).astype(np.float32)
    combination = components.combination(coefficients)
    assert combination.sum() == pytest.approx(0.0, abs=1e-5)
    weights = combine_weights(combination, learnt)
    assert weights.shape == (TOKENS, LAYERS, WIDTH)
    read = np.einsum("ntld,tld->n", normalised(new), weights)
    wanted = components.of(inner_products(new, learnt)) @ coefficients
    np.testing.assert_allclose(read - components.offset(combination), wanted, atol=1e-4)


def test_what_is_made_of_some_answers_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.scoring.probe.LANDMARKS", 12)
    values = activations(40)
    products = InnerProducts(inner_products(values), np.arange(39, 9, -1))
    rows = np.arange(0, 30, 2)
    seen = products.projected(rows)
    assert products.projected(rows.copy()) is seen
    assert len(seen.landmarks) == 12
    assert set(seen.landmarks) < set(rows)
    own = values[39 - rows]
    theirs = inner_products(own, values[39 - seen.landmarks])
    np.testing.assert_allclose(seen.values, seen.components.of(theirs), atol=1e-6)


def test_more_components_than_answers_are_cut() -> None:
    values = activations(6)
    assert principal_components(inner_products(values), count=50).directions.shape == (6, 5)


def test_rounding_in_the_products_moves_no_component_that_a_score_reads() -> None:
    """Products differ in their last bits by the order of additions, which differs from machine to machine."""
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(400, 400))
    values = (rng.normal(size=(400, 400)) * 0.97 ** np.arange(400)) @ directions
    products = (values @ values.T / np.square(values).sum(axis=1).mean()).astype(np.float32)
    noise = rng.normal(size=products.shape).astype(np.float32) * np.float32(1e-7)
    kernels = []
    for each in (products, products + (noise + noise.T) / 2):
        components = principal_components(each, count=100).of(each)
        kernels.append(components @ components.T)
    np.testing.assert_allclose(kernels[0], kernels[1], atol=2e-5)
