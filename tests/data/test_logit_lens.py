"""The residual stream: the lens against the model's own output, geometry by hand, the two streams kept apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.data.logit_lens import LENS_SIGNALS, Lens, Residual, ResidualObserver, path_geometry
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import CaptureError, InputError
from guard.records import Generation, Limits, Prompt, Sampling
from guard.scoring.signature import SignatureObserver

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

from tiny_gguf import LAYERS, WIDTH, write_tiny_gguf

RNG = np.random.default_rng(0)


def made_lens(**options: Any) -> Lens:
    norm, unembedding = RNG.normal(size=4).astype(np.float32), RNG.normal(size=(7, 4)).astype(np.float32)
    return Lens(norm, unembedding, epsilon=1e-5, **options)


# -- the lens ----------------------------------------------------------------------------------


def by_hand(lens: Lens, state: Any, token: int) -> tuple[float, float, float]:
    """Entropy, log-probability and first choice, number by number."""
    rms = math.sqrt(sum(float(x) ** 2 for x in state) / len(state) + lens._epsilon)
    normed = [float(x) / rms * float(w) for x, w in zip(state, lens._norm, strict=True)]
    logits = [sum(a * float(b) for a, b in zip(normed, row, strict=True)) / lens._scale for row in lens._unembedding]
    if lens._softcap:
        logits = [lens._softcap * math.tanh(x / lens._softcap) for x in logits]
    total = math.fsum(math.exp(x) for x in logits)
    logprobs = [x - math.log(total) for x in logits]
    entropy = -math.fsum(math.exp(x) * x for x in logprobs)
    return entropy, logprobs[token], float(logprobs[token] == max(logprobs))


@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"scale": 3.0}, {"softcap": 0.7, "scale": 0.5}])
def test_signals_of_each_layer_are_those_counted_by_hand(options: dict[str, float]) -> None:
    lens, states = made_lens(**options), RNG.normal(size=(6, 4)).astype(np.float32) * 5
    for token in range(7):
        signals = lens.signals(states, token)
        assert signals.shape == (len(LENS_SIGNALS), 6)
        for layer, state in enumerate(states):
            np.testing.assert_allclose(signals[:, layer], by_hand(lens, state, token), atol=2e-5)


def test_large_logits_stay_finite() -> None:
    lens = Lens(np.full(4, 1e4, np.float32), np.eye(4, dtype=np.float32), epsilon=1e-6)
    entropy, logprob, agrees = lens.signals(np.float32([[1, 2, 3, 4]]), 3)[:, 0]
    assert (entropy, logprob, agrees) == (0.0, 0.0, 1.0)


# -- the path ----------------------------------------------------------------------------------


def test_steps_and_angles_of_a_path_drawn_on_paper() -> None:
    lengths, angles = path_geometry(np.float32([[1, 0], [1, 1], [0, 2]]))
    np.testing.assert_allclose(lengths, [1, 1, math.sqrt(5)], rtol=1e-6)
    np.testing.assert_allclose(angles, [math.pi / 4, math.pi / 4, math.pi / 2], rtol=1e-6)


def test_the_path_has_no_scale_and_no_direction() -> None:
    states = RNG.normal(size=(5, 8)).astype(np.float32)
    rotation = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    for changed in (states * np.float32(1e4), states * np.float32(1e-4), states @ rotation):
        np.testing.assert_allclose(path_geometry(np.float32(changed)), path_geometry(states), atol=1e-5)
    same = np.ones((3, 8), np.float32)
    np.testing.assert_allclose(path_geometry(same), 0, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_states_without_a_direction_are_refused(value: float) -> None:
    states = RNG.normal(size=(5, 8)).astype(np.float32)
    states[2] = value
    with pytest.raises(CaptureError, match="residual stream"):
        path_geometry(states)


# -- the observer ------------------------------------------------------------------------------


def test_the_observer_keeps_the_ends_and_the_mean_and_passes_the_mlps_on() -> None:
    tokens = RNG.normal(size=(4, 6, 4)).astype(np.float32)
    lens, mlp, alone = made_lens(), SignatureObserver(), SignatureObserver()
    observer = ResidualObserver(mlp, layers=3)
    reused = np.empty((6, 4), np.float32)
    for token in tokens:
        reused[:] = token  # engines may use the same memory again
        observer.observe(reused)
        alone.observe(token[:3].copy())
    found = observer.residual(lens, tokens=(1, 5))
    np.testing.assert_array_equal(found.lens[0], lens.signals(tokens[0, 3:], 1))
    np.testing.assert_array_equal(found.lens[1], lens.signals(tokens[3, 3:], 5))
    np.testing.assert_array_equal(found.path[0], path_geometry(tokens[3, 3:]))
    np.testing.assert_allclose(found.path[1], path_geometry(tokens[:, 3:].mean(axis=0)), atol=1e-5)
    for name in ("maps", "norms", "activations"):
        np.testing.assert_array_equal(getattr(mlp.signature(), name), getattr(alone.signature(), name))


# -- models with random weights ----------------------------------------------------------------


def answered(
    engine: LlamaCppEngine, text: str, **limits: Any
) -> tuple[Generation, ResidualObserver, SignatureObserver]:
    mlp = SignatureObserver()
    observer = ResidualObserver(mlp, layers=engine.model.layers)
    given = engine.generate(Prompt.raw(text), limits=Limits(**limits), sampling=Sampling(), observer=observer)
    return given, observer, mlp


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def load(path: Path) -> LlamaCppEngine:
    return LlamaCppEngine.load(path, threads=1, capture_point="mlp+block")


def test_the_lens_at_the_last_layer_says_what_the_model_says(tiny: Path) -> None:
    with load(tiny) as engine:
        lens = Lens.load(engine, tiny)
        for text in ("The", "the cat", "0123"):
            given, observer, _ = answered(engine, text, max_tokens=5)
            found = observer.residual(lens, tokens=(given.token_ids[0], given.token_ids[-1]))
            assert found.lens.shape == (2, 3, LAYERS)
            assert found.path.shape == (2, 2, LAYERS)
            for at, end in ((0, 0), (1, -1)):
                entropy, logprob, agrees = found.lens[at, :, -1]
                assert entropy == pytest.approx(given.entropies[end], abs=1e-3)
                assert logprob == pytest.approx(given.logprobs[end], abs=1e-3)
                assert agrees == 1.0


def test_tied_embeddings_are_the_unembedding(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tied.gguf", leave_out="output")
    with load(path) as engine:
        given, observer, _ = answered(engine, "the", max_tokens=1)
        found = observer.residual(Lens.load(engine, path), tokens=(given.token_ids[0],) * 2)
        assert found.lens[0, 0, -1] == pytest.approx(given.entropies[0], abs=1e-3)


def other_unembedding(lens: Lens) -> Lens:
    return Lens(lens._norm, lens._unembedding[::-1].copy(), epsilon=lens._epsilon)


def other_norm(lens: Lens) -> Lens:
    return Lens(lens._norm / np.linspace(1, 40, WIDTH, dtype=np.float32), lens._unembedding, epsilon=lens._epsilon)


def squashed(lens: Lens) -> Lens:
    return Lens(lens._norm, lens._unembedding, epsilon=lens._epsilon, softcap=1.0)


@pytest.mark.parametrize("wrong", [other_unembedding, other_norm, squashed])
def test_a_lens_that_differs_from_the_model_is_refused(tiny: Path, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has all of the entropy right and only the tokens wrong."""
    right = Lens._from_reader
    monkeypatch.setattr(Lens, "_from_reader", lambda reader: wrong(right(reader)))
    with load(tiny) as engine, pytest.raises(InputError, match=r"does not match the model.*Record without it"):
        Lens.load(engine, tiny)


def test_a_model_with_another_end_is_refused(tiny: Path) -> None:
    class LensReader:
        tensors = ()
        fields: dict[str, Any] = {}  # noqa: RUF012

    with pytest.raises(InputError, match="does not end by an RMS norm"):
        Lens._from_reader(LensReader())


# -- the embedded model ------------------------------------------------------------------------


@pytest.mark.model
def test_both_streams_together_change_nothing_of_the_mlps(smollm2: LlamaCppEngine, smollm2_path: Path) -> None:
    limits, prompt = Limits(max_tokens=6), Prompt.chat("Which planet is the largest?")
    mlp = SignatureObserver()
    plain = smollm2.generate(prompt, limits=limits, observer=mlp)
    options = {"context_tokens": 2048, "threads": 1, "deterministic": True}
    with LlamaCppEngine.load(smollm2_path, capture_point="mlp+block", **options) as engine:  # type: ignore[arg-type]
        assert engine.model == smollm2.model
        lens = Lens.load(engine, smollm2_path)
        split = SignatureObserver()
        observer = ResidualObserver(split, layers=engine.model.layers)
        both = engine.generate(prompt, limits=limits, observer=observer)
    assert both.token_ids == plain.token_ids
    np.testing.assert_array_equal(both.logprobs, plain.logprobs)
    for name in ("maps", "norms", "activations"):
        np.testing.assert_array_equal(getattr(split.signature(), name), getattr(mlp.signature(), name))
    found: Residual = observer.residual(lens, tokens=(plain.token_ids[0], plain.token_ids[-1]))
    layers = engine.model.layers
    assert (found.lens.shape, found.path.shape) == ((2, 3, layers), (2, 2, layers))
    for at, end in ((0, 0), (1, -1)):
        entropy, logprob, agrees = found.lens[at, :, -1]
        assert entropy == pytest.approx(plain.entropies[end], abs=0.1)
        assert logprob == pytest.approx(plain.logprobs[end], abs=0.1)
        assert agrees == 1.0
    assert found.lens[:, 2].mean(axis=1).max() < 0.8, "early layers have not made up their mind"
    assert found.path.min() > 0
    assert found.path[:, 1].max() < math.pi
