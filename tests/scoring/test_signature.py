"""KL between layers against SciPy, the fold over tokens against NumPy, and the features' names."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy

from guard.errors import CaptureError, InputError
from guard.records import Floats, Signals, Signature
from guard.scoring import signature as signature_module
from guard.scoring.signature import (
    AGGREGATES,
    GROUPS,
    SCHEMA_VERSION,
    FeatureSchema,
    SignatureObserver,
    feature_vector,
    log_rms,
    pairwise_kl,
)

L, D = 5, 48


def layers(seed: int, *, scale: float = 1.0, dtype: Any = np.float64) -> NDArray[Any]:
    """Activations of shape (L, D) whose layers differ in size, as a model's do."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(L, D)) * scale * np.geomspace(0.3, 3.0, L)[:, None]).astype(dtype)


def direct_kl(activations: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """KL from its definition, pair by pair."""
    logs = log_softmax(activations.astype(np.float64) / temperature, axis=1)
    size = len(activations)
    kl = np.zeros((size, size))
    for i, j in product(range(size), repeat=2):
        kl[i, j] = np.sum(np.exp(logs[i]) * (logs[i] - logs[j]))
    return kl


# -- KL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_kl_is_scipys(temperature: float) -> None:
    x = layers(0)
    p = softmax(x / temperature, axis=1)
    kl = pairwise_kl(x, temperature=temperature)
    np.testing.assert_allclose(kl, rel_entr(p[:, None], p[None, :]).sum(axis=2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kl, [[entropy(p[i], p[j]) for j in range(L)] for i in range(L)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_float32_is_close_to_float64(scale: float) -> None:
    x = layers(1, scale=scale, dtype=np.float32)
    kl = pairwise_kl(x)
    assert kl.dtype == np.float32
    # The terms that cancel are of the size of log D and of the largest z; a few roundings of those.
    largest = max(float(np.ptp(x, axis=1).max()), np.log(D))
    np.testing.assert_allclose(kl, direct_kl(x, 1.0), rtol=2e-5, atol=8 * np.finfo(np.float32).eps * largest)


def test_massive_coordinates_stay_finite_and_directed() -> None:
    x = layers(2, dtype=np.float32)
    x[1, 7], x[3, 7] = 900.0, -900.0
    kl = pairwise_kl(x)
    np.testing.assert_allclose(kl, direct_kl(x, 1.0), rtol=1e-4, atol=1e-3)
    # Layer 1 puts everything on coordinate 7, which layer 3 rules out, but not the other way round.
    assert kl[1, 3] > 800
    assert kl[3, 1] > 800
    assert kl[1, 0] < 10 < kl[0, 1]


def test_temperatures_beyond_exp_do_not_overflow() -> None:
    kl = pairwise_kl(np.array([[5000.0, 0.0], [0.0, 5000.0]], np.float32))
    np.testing.assert_allclose(kl, [[0, 5000], [5000, 0]])


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0.1, 10.0), st.floats(0.01, 30.0))
def test_kl_is_not_negative_and_zero_on_the_diagonal(seed: int, temperature: float, scale: float) -> None:
    for dtype in (np.float32, np.float64):
        kl = pairwise_kl(layers(seed, scale=scale, dtype=dtype), temperature=temperature)
        assert (kl >= 0).all()
        assert (np.diag(kl) == 0).all()
        assert np.isfinite(kl).all()


@settings(max_examples=60, deadline=None)
@given(seeds, st.lists(st.floats(-50, 50), min_size=L, max_size=L))
def test_kl_ignores_a_shift_of_a_whole_layer(seed: int, shifts: list[float]) -> None:
    x = layers(seed)
    np.testing.assert_allclose(pairwise_kl(x + np.array(shifts)[:, None]), pairwise_kl(x), rtol=1e-8, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0.1, 10.0), st.floats(0.05, 20.0))
def test_temperature_is_a_scale(seed: int, temperature: float, factor: float) -> None:
    x = layers(seed)
    scaled = pairwise_kl(x * factor, temperature=temperature * factor)
    np.testing.assert_allclose(scaled, pairwise_kl(x, temperature=temperature), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_small_activations_tend_to_half_their_variance(temperature: float) -> None:
    x = layers(3, scale=1e-3)
    expected = [[np.var(x[i] - x[j]) / (2 * temperature**2) for j in range(L)] for i in range(L)]
    np.testing.assert_allclose(pairwise_kl(x, temperature=temperature), expected, rtol=5e-3)


def test_kl_leaves_its_input_alone() -> None:
    x = layers(4)
    before = x.copy()
    pairwise_kl(x)
    np.testing.assert_array_equal(x, before)


def test_log_rms() -> None:
    np.testing.assert_allclose(log_rms(np.array([[3.0, -4.0], [1.0, 1.0]])), [0.5 * np.log(12.5), 0.0], rtol=1e-6)


# -- the fold over tokens ----------------------------------------------------------------------


def test_fold_is_numpys_aggregation_over_a_stored_stack() -> None:
    stack = np.stack([layers(seed, dtype=np.float32) for seed in range(9)])
    observer = SignatureObserver(temperatures=(0.5, 2.0))
    for activations in stack:
        observer.observe(activations)
    signature = observer.signature()
    assert (signature.tokens, signature.temperatures, signature.aggregates) == (9, (0.5, 2.0), AGGREGATES)
    assert signature.maps.shape == (2, 4, L, L)
    assert signature.norms.shape == (4, L)
    assert signature.maps.dtype == signature.norms.dtype == np.float32
    for row, temperature in enumerate((0.5, 2.0)):
        maps = np.stack([pairwise_kl(activations, temperature=temperature) for activations in stack])
        expected = {"first": maps[0], "last": maps[-1], "mean": maps.mean(axis=0), "max": maps.max(axis=0)}
        for at, aggregate in enumerate(AGGREGATES):
            np.testing.assert_allclose(signature.maps[row, at], expected[aggregate], rtol=1e-6, err_msg=aggregate)
    norms = np.stack([log_rms(activations) for activations in stack])
    np.testing.assert_allclose(signature.norms, [norms[0], norms[-1], norms.mean(0), norms.max(0)], rtol=1e-5)


def test_an_engine_may_overwrite_its_buffer() -> None:
    buffer = np.empty((L, D), np.float32)
    reused, fresh = SignatureObserver(), SignatureObserver()
    for seed in range(4):
        buffer[:] = layers(seed)
        reused.observe(buffer)
        fresh.observe(layers(seed, dtype=np.float32))
    buffer[:] = np.nan
    np.testing.assert_array_equal(reused.signature().maps, fresh.signature().maps)
    np.testing.assert_array_equal(reused.signature().norms, fresh.signature().norms)


def test_aggregates_come_in_the_order_asked_for() -> None:
    forward, backward = (SignatureObserver(aggregates=names) for names in (("first", "max"), ("max", "first")))
    for seed in range(3):
        for observer in (forward, backward):
            observer.observe(layers(seed, dtype=np.float32))
    assert backward.signature().aggregates == ("max", "first")
    np.testing.assert_array_equal(forward.signature().maps, backward.signature().maps[:, ::-1])
    np.testing.assert_array_equal(forward.signature().norms, backward.signature().norms[::-1])


def test_memory_does_not_grow_with_the_answer() -> None:
    def peak(tokens: int) -> int:
        observer = SignatureObserver()
        activations = np.random.default_rng(0).normal(size=(30, 576)).astype(np.float32)
        tracemalloc.start()
        for _ in range(tokens):
            observer.observe(activations)
        observer.signature()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    short, long = peak(200), peak(1500)
    assert long < short * 1.1
    assert long < 40 * 30 * 576 * 4, "fewer bytes than the raw activations of 40 tokens"


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_refused(spoil: float) -> None:
    observer = SignatureObserver()
    observer.observe(layers(0, dtype=np.float32))
    spoiled = layers(1, dtype=np.float32)
    spoiled[2, 3] = spoil
    with np.errstate(invalid="ignore"), pytest.raises(CaptureError, match="Token 1 "):
        observer.observe(spoiled)


def test_a_layer_of_zeros_is_refused() -> None:
    dead = layers(0, dtype=np.float32)
    dead[2] = 0
    with pytest.raises(CaptureError, match=r"Token 0 .*all zero"):
        SignatureObserver().observe(dead)


def test_no_token_no_signature() -> None:
    with pytest.raises(CaptureError, match="No token"):
        SignatureObserver().signature()


@pytest.mark.parametrize("temperatures", [(), (0.0,), (-1.0,), (float("nan"),), (float("inf"),), (1.0, 1.0)])
def test_impossible_temperatures(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"[Tt]emperature"):
        FeatureSchema(layers=L, temperatures=temperatures)
    with pytest.raises(InputError, match=r"[Tt]emperature"):
        SignatureObserver(temperatures=temperatures)


def test_temperatures_must_differ_in_their_names() -> None:
    with pytest.raises(InputError, match="must differ"):
        FeatureSchema(layers=L, temperatures=(1.0, 1.0000001))


@pytest.mark.parametrize(("field", "names"), [("aggregates", ("frist",)), ("groups", ("maps",))])
def test_unknown_names_get_a_suggestion(field: str, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"Did you mean '(first|map)'"):
        FeatureSchema(layers=L, **{field: names})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [(), ("map", "map")])
def test_groups_once_each_and_at_least_one(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="once"):
        FeatureSchema(layers=L, groups=names)


# -- features ----------------------------------------------------------------------------------


def signals_of(
    *, tokens: int = 6, temperatures: tuple[float, ...] = (1.0,), aggregates: tuple[str, ...] = AGGREGATES
) -> Signals:
    rng = np.random.default_rng(tokens)
    observer = SignatureObserver(temperatures=temperatures, aggregates=aggregates)
    for seed in range(tokens):
        observer.observe(layers(seed, dtype=np.float32))
    lows, entropies, margins = -rng.exponential(1, tokens), rng.exponential(1, tokens), rng.exponential(1, tokens)
    return Signals(*(np.float32(values) for values in (lows, entropies, margins)), observer.signature())


@pytest.mark.parametrize("temperatures", [(1.0,), (0.25, 1.0)])
@pytest.mark.parametrize("aggregates", [AGGREGATES, ("last",), ("max", "first")])
@pytest.mark.parametrize("groups", [GROUPS, ("map",), ("length", "logprob"), ("norms", "margin")])
def test_names_are_unique_and_as_many_as_features(
    temperatures: tuple[float, ...], aggregates: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    schema = FeatureSchema(layers=L, temperatures=temperatures, aggregates=aggregates, groups=groups)
    vector = feature_vector(signals_of(temperatures=(1.0, 0.25)), schema)
    assert vector.dtype == np.float32
    assert vector.shape == (len(schema.names),) == (schema.size,)
    assert len(set(schema.names)) == len(schema.names)
    assert {name.split(".")[0] for name in schema.names} == set(groups)


def by_name(signals: Signals, schema: FeatureSchema) -> dict[str, float]:
    return dict(zip(schema.names, feature_vector(signals, schema).tolist(), strict=True))


def test_each_feature_is_what_its_name_says() -> None:
    signals = signals_of(temperatures=(0.25, 1.0), aggregates=("mean", "last"))
    schema = FeatureSchema(layers=L, temperatures=(1.0, 0.25), aggregates=("last", "mean"))
    features = by_name(signals, schema)
    logprobs, entropies, margins = signals.logprobs, signals.entropies, signals.margins
    signature = signals.signature
    expected = {
        "logprob.mean": logprobs.mean(),
        "logprob.min": logprobs.min(),
        "logprob.first": logprobs[0],
        "logprob.last": logprobs[-1],
        "logprob.entropy_mean": entropies.mean(),
        "logprob.entropy_max": entropies.max(),
        "logprob.entropy_first": entropies[0],
        "margin.mean": margins.mean(),
        "margin.min": margins.min(),
        "margin.first": margins[0],
        "length.log_tokens": np.log(6),
        "extremes.log_surprisal_max": np.log(-logprobs.min()),
        "extremes.log_entropy_max": np.log(entropies.max()),
    }
    for at, aggregate in ((1, "last"), (0, "mean")):
        for i in range(L):
            expected[f"norms.{aggregate}.{i}"] = signature.norms[at, i] - signature.norms[at].mean()
        for row, tau in ((0, "0.25"), (1, "1")):
            for i, j in product(range(L), repeat=2):
                if i != j:
                    expected[f"map.{tau}.{aggregate}.{i}>{j}"] = np.log(signature.maps[row, at, i, j] + 1e-6)
    assert set(features) == set(expected)
    for name, value in expected.items():
        assert features[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_group_can_be_switched_off_and_leaves_the_others_alone() -> None:
    signals = signals_of()
    whole = by_name(signals, FeatureSchema(layers=L))
    for group in GROUPS:
        others = tuple(name for name in GROUPS if name != group)
        rest = by_name(signals, FeatureSchema(layers=L, groups=others))
        assert rest == {name: value for name, value in whole.items() if not name.startswith(f"{group}.")}


def test_columns_are_the_places_of_groups() -> None:
    schema = FeatureSchema(layers=L)
    assert [schema.names[at] for at in schema.columns(["margin", "length"])] == [
        "margin.mean",
        "margin.min",
        "margin.first",
        "length.log_tokens",
    ]
    assert sorted(at for group in GROUPS for at in schema.columns([group])) == list(range(len(schema.names)))
    assert schema.columns(["map"]).dtype == np.intp


def test_a_schema_survives_its_fields() -> None:
    schema = FeatureSchema(layers=L, temperatures=(0.5, 2.0), aggregates=("max",), groups=("map", "length"))
    assert FeatureSchema(**asdict(schema)) == schema
    assert schema.version == SCHEMA_VERSION


def test_another_schema_version_is_refused() -> None:
    with pytest.raises(InputError, match=f"version {SCHEMA_VERSION + 1}.*version {SCHEMA_VERSION}"):
        FeatureSchema(layers=L, version=SCHEMA_VERSION + 1)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (FeatureSchema(layers=L + 1), f"{L} layers, the scorer expects {L + 1}"),
        (FeatureSchema(layers=L + 1, groups=("norms",)), f"{L} layers, the scorer expects {L + 1}"),
        (FeatureSchema(layers=L, temperatures=(2.0,), aggregates=("last",)), "temperature 2"),
        (FeatureSchema(layers=L, aggregates=("first",)), "no aggregate 'first'"),
    ],
)
def test_a_signature_that_lacks_something(schema: FeatureSchema, told: str) -> None:
    with pytest.raises(CaptureError, match=told):
        feature_vector(signals_of(aggregates=("last", "mean")), schema)


def test_signals_that_are_not_finite_are_named() -> None:
    signals = signals_of()
    spoiled = Signals(signals.logprobs, signals.entropies * np.float32(np.nan), signals.margins, signals.signature)
    with pytest.raises(CaptureError, match=r"logprob\.entropy_mean"):
        feature_vector(spoiled, FeatureSchema(layers=L))


def test_no_token_no_features() -> None:
    none = np.empty(0, np.float32)
    with pytest.raises(CaptureError, match="no token"):
        feature_vector(Signals(none, none, none, signals_of().signature), FeatureSchema(layers=L))


def test_a_margin_without_a_second_token_is_capped() -> None:
    signals = signals_of()
    endless = Signals(signals.logprobs, signals.entropies, np.full(6, np.inf, np.float32), signals.signature)
    assert by_name(endless, FeatureSchema(layers=L))["margin.mean"] == 50.0


def test_equal_layers_give_finite_features() -> None:
    observer = SignatureObserver()
    observer.observe(np.ones((L, D), np.float32))
    signature = observer.signature()
    assert isinstance(signature, Signature)
    one: Floats = np.ones(1, np.float32)
    features = by_name(Signals(one, one, one, signature), FeatureSchema(layers=L))
    assert features["map.1.mean.0>1"] == pytest.approx(np.log(1e-6))
    assert features["norms.mean.0"] == 0.0


# -- which maps are computed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregates", "products"), [((), 0), (("last",), 1), (("first", "last"), 2), (("mean",), 5), (AGGREGATES, 5)]
)
def test_only_the_maps_of_tokens_that_are_read_are_computed(
    monkeypatch: pytest.MonkeyPatch, aggregates: tuple[str, ...], products: int
) -> None:
    computed = []
    real = signature_module.pairwise_kl
    monkeypatch.setattr(signature_module, "pairwise_kl", lambda *a, **k: computed.append(1) or real(*a, **k))
    observer, whole = SignatureObserver(aggregates=aggregates), SignatureObserver()
    answer = np.random.default_rng(0).normal(size=(5, L, 16)).astype(np.float32)
    for token in answer:
        observer.observe(token.copy())
    made, counted = observer.signature(), len(computed)
    for token in answer:
        whole.observe(token.copy())
    wanted = whole.signature()
    assert counted == products
    rows = [AGGREGATES.index(name) for name in aggregates]
    np.testing.assert_array_equal(made.maps, wanted.maps[:, rows])
    np.testing.assert_array_equal(made.norms.reshape(-1, L), wanted.norms[rows])
    np.testing.assert_array_equal(made.activations, wanted.activations)


def test_the_last_tokens_map_follows_a_growing_answer() -> None:
    """Live streams ask for the signature while the answer grows."""
    observer = SignatureObserver(aggregates=("last",))
    for token in np.random.default_rng(1).normal(size=(4, L, 16)).astype(np.float32):
        observer.observe(token)
        np.testing.assert_array_equal(observer.signature().maps[0, 0], pairwise_kl(token.copy()))


def test_a_narrowed_schema_has_the_features_that_are_needed_and_no_other_group() -> None:
    schema = FeatureSchema(layers=3, temperatures=(0.25, 1.0), aggregates=("last", "mean"))
    names = schema.names
    wanted = [names.index("map.0.25.last.0>2"), names.index("logprob.min"), names.index("map.0.25.last.2>1")]
    small, positions = schema.narrowed(wanted)
    assert (small.groups, small.aggregates, small.temperatures) == (("logprob", "map"), ("last",), (0.25,))
    assert [small.names[positions[at]] for at in wanted] == [names[at] for at in wanted]
    assert positions[names.index("map.1.last.0>2")] == positions[names.index("length.log_tokens")] == -1
    assert (small.signature_tokens, schema.narrowed([0])[0].signature_tokens) == (("last",), ())
