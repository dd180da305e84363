"""A scorer moves to another precision of its model, and to no other model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

from scripted import (
    LAYERS,
    WIDTH,
    AnsweringEngine,
    confidence_scorer,
    layers_of,
    scripted_model,
    with_early,
    with_spans,
)
from sums import sum_rows
from typer.testing import CliRunner

import guard
from guard import engines
from guard.calibration import rebinding
from guard.calibration.alignment import align, aligned_model
from guard.calibration.same_weights import check_same_weights, measure_structure
from guard.cli import app
from guard.errors import CalibrationError, GuardError, InputError, ScorerMismatchError
from guard.records import Floats, Prompt, Signals
from guard.scoring.scorer import Evaluator, Scorer, load_scorer
from guard.scoring.scorer_file import BackOff, Calibration, Linear, LinearProbe, Model, Trees
from guard.scoring.signature import FeatureSchema, SignatureObserver, feature_vector

SCHEMA = FeatureSchema(layers=LAYERS)
RNG = np.random.default_rng(0)


# -- alignment ---------------------------------------------------------------------------------


def signals_of(tokens: list[Floats]) -> Signals:
    observer = SignatureObserver()
    for each in tokens:
        observer.observe(each.astype(np.float32))
    count = len(tokens)
    return Signals(
        np.full(count, -0.5, np.float32), np.ones(count, np.float32), np.ones(count, np.float32), observer.signature()
    )


def moved(activations: Floats, strength: float = 0.3) -> Floats:
    """The same layers as another precision has them: each coordinate shifted, a little scaled."""
    rng = np.random.default_rng(7)
    offset, scale = rng.normal(size=(LAYERS, WIDTH)), rng.normal(size=(LAYERS, WIDTH))
    return np.asarray(activations * (1 + 0.2 * strength * scale) + strength * offset, np.float32)


@pytest.fixture(scope="module")
def both() -> tuple[list[Signals], list[Signals]]:
    tokens = [[RNG.normal(size=(LAYERS, WIDTH)) for _ in range(3)] for _ in range(300)]
    return [signals_of(each) for each in tokens], [signals_of([moved(one) for one in each]) for each in tokens]


def log_odds(model: Model, signals: list[Signals]) -> np.ndarray[Any, Any]:
    evaluator = Evaluator(model.base, model.trees, model.probe)
    return np.array(
        [evaluator.log_odds(feature_vector(each, SCHEMA).astype(float), each.signature.activations) for each in signals]
    )


CALIBRATION = Calibration(slope=1.0, intercept=0.0)
PROBE = LinearProbe.from_array(RNG.normal(size=(3, LAYERS, WIDTH)).astype(np.float32))


def test_a_probe_reads_the_new_layers_as_it_read_the_old_ones(both: tuple[list[Signals], list[Signals]]) -> None:
    old, new = both
    model = Model(base=None, probe=PROBE, trees=None, calibration=CALIBRATION)
    aligned = aligned_model(model, align(old[:150], new[:150], SCHEMA))
    wanted = log_odds(model, old[150:])
    before, after = (np.abs(log_odds(each, new[150:]) - wanted).mean() for each in (model, aligned))
    assert after < before / 2


def test_trees_split_the_new_maps_where_they_split_the_old_ones(both: tuple[list[Signals], list[Signals]]) -> None:
    old, new = both
    at = SCHEMA.names.index("map.1.last.0>1")
    median = float(np.median([feature_vector(each, SCHEMA)[at] for each in old]))
    table = {"feature": [at, -1, -1], "threshold": [median, 0.0, 0.0], "left": [1, 0, 0], "right": [2, 0, 0]}
    trees = Trees(roots=[0], value=[0.0, -1.0, 1.0], **table)
    model = Model(base=None, probe=None, trees=trees, calibration=CALIBRATION)
    aligned = aligned_model(model, align(old, new, SCHEMA))
    assert aligned.trees is not None
    shift = aligned.trees.threshold[0] - median
    means = [np.mean([feature_vector(each, SCHEMA)[at] for each in side]) for side in (old, new)]
    assert shift == pytest.approx(means[1] - means[0], abs=1e-4)
    assert aligned.trees.threshold[1:] == [0.0, 0.0]


def test_output_features_stay_as_they_are(both: tuple[list[Signals], list[Signals]]) -> None:
    base = Linear(features=[0, 1], mean=[-0.5, -1.0], scale=[1.0, 2.0], coefficients=[-1.0, 2.0], intercept=0.3)
    model = Model(base=base, probe=None, trees=None, calibration=CALIBRATION)
    assert aligned_model(model, align(*both, SCHEMA)) == model


def test_the_same_layers_leave_a_scorer_as_it_is(both: tuple[list[Signals], list[Signals]]) -> None:
    old, _ = both
    model = Model(base=None, probe=PROBE, trees=None, calibration=CALIBRATION)
    aligned = aligned_model(model, align(old, old, SCHEMA))
    assert np.abs(log_odds(aligned, old) - log_odds(model, old)).max() < 1e-3


def test_few_answers_are_refused(both: tuple[list[Signals], list[Signals]]) -> None:
    with pytest.raises(CalibrationError, match="10 answers are too few"):
        align(both[0][:10], both[1][:10], SCHEMA)


# -- weights -----------------------------------------------------------------------------------


MATRICES = {f"blk.{layer}.{kind}.weight": (96, 128) for layer in range(4) for kind in ("attn_v", "ffn_up")}


def weights(change: Callable[[str, Floats], Floats]) -> dict[str, Floats]:
    rng = np.random.default_rng(1)
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in MATRICES.items()}
    made["output_norm.weight"] = np.ones(128, np.float32)
    return {name: change(name, values).astype(np.float32) for name, values in made.items()}


def write(path: Path, tensors: dict[str, Floats]) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(name: str, values: Floats) -> Floats:
    return values if values.ndim == 1 else np.round(values * 4) / 4


def trained(name: str, values: Floats) -> Floats:
    """A low-rank change of one kind of matrix, smaller than the rounding."""
    if "attn_v" not in name:
        return values
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=(96, 4)), rng.normal(size=(4, 128))
    return np.asarray(values + 0.06 * left @ right, np.float32)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write(tmp_path / "original.gguf", weights(lambda name, values: values))


def test_rounded_weights_are_the_same_weights(original: Path, tmp_path: Path) -> None:
    assert check_same_weights(original, write(tmp_path / "rounded.gguf", weights(rounded))) < 0.05


@pytest.mark.parametrize("then", [lambda name, values: values, rounded], ids=["as it is", "rounded"])
def test_fine_tuned_weights_are_not(then: Callable[[str, Floats], Floats], original: Path, tmp_path: Path) -> None:
    tuned = write(tmp_path / "tuned.gguf", weights(lambda name, values: then(name, trained(name, values))))
    with pytest.raises(ScorerMismatchError, match=r"'attn_v.weight' differs in a few directions, as after fine-tuning"):
        check_same_weights(original, tuned)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, values: values * 1.1 if values.ndim == 1 else values, "'output_norm.weight' differs by 10%"),
        (lambda name, values: -values if "ffn_up" in name else values, "differs by 200%"),
        (lambda name, values: values[:64] if values.ndim == 2 else values, "has the shapes"),
    ],
)
def test_other_weights_are_refused(
    change: Callable[[str, Floats], Floats], said: str, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ScorerMismatchError, match=said):
        check_same_weights(original, write(tmp_path / "other.gguf", weights(change)))


def test_a_file_with_other_tensors_is_refused(original: Path, tmp_path: Path) -> None:
    tensors = weights(lambda name, values: values)
    del tensors["output_norm.weight"]
    with pytest.raises(ScorerMismatchError, match=r"only one of them has the tensor 'output_norm.weight'"):
        check_same_weights(original, write(tmp_path / "less.gguf", tensors))


def test_rounding_noise_has_no_structure_and_equal_weights_have_none() -> None:
    assert measure_structure(np.zeros((64, 64), np.float32)) == 0
    assert measure_structure(RNG.normal(size=(256, 300)).astype(np.float32)) < 0.01


# -- the procedure -----------------------------------------------------------------------------


def half_right(prompt: Prompt, number: int) -> tuple[str, float]:
    n = int(prompt.question.split()[2])
    p_wrong = float(np.random.default_rng(n).uniform(0.05, 0.95))
    return (str(n + 1 + (np.random.default_rng(n + 10_000).random() < p_wrong)), p_wrong)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[AnsweringEngine]:
    """Both models are one file on two engines; the second one's layers are moved."""
    made: list[AnsweringEngine] = []

    def load(model: str | Path, *, engine: str | None = None, **_: Any) -> AnsweringEngine:
        assert engine is not None, "the file's own engine need not be the scorer's"
        made.append(AnsweringEngine(half_right, model=scripted_model(engine=engine)))
        if engine == "other":
            made[-1].activations_at = lambda prompt, number: moved(layers_of(prompt, number))
        return made[-1]

    monkeypatch.setattr(engines, "load_engine", load)
    return made


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text(sum_rows(range(200)))
    return file


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """A scorer that reads log-probabilities and, a little, the layers."""
    artefact = confidence_scorer().artefact
    probe = LinearProbe.from_array(0.3 * PROBE.array)
    scores = {**artefact.scores, "guard": artefact.scores["guard"].model_copy(update={"probe": probe})}
    path = tmp_path / "fitted.json"
    Scorer(artefact.model_copy(update={"scores": scores})).save(path)
    return path


@pytest.mark.usefixtures("loaded")
def test_a_rebound_scorer_fits_its_new_model_and_says_how_it_got_there(
    fitted: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "moved.json"
    result = guard.rebind(fitted, questions, model="m.gguf", to="m.gguf", to_engine="other", out=out)
    scorer = load_scorer(out)
    rebound = scorer.artefact.rebound
    assert rebound is not None
    assert scorer.for_model(scripted_model(engine="other"), "mlp").calibrated
    with pytest.raises(ScorerMismatchError):
        scorer.for_model(scripted_model(), "mlp")
    assert (rebound.fitted_on, rebound.answers, rebound.checked) == (load_scorer(fitted).artefact.binding, 200, 200)
    assert rebound.difference_after < rebound.difference_before
    assert rebound.metrics["guard"]["brier"] < result.forced["guard"]["brier"]
    assert scorer.artefact.metrics == rebound.metrics
    assert scorer.artefact.ood_detector is not None


def test_a_scorer_moves_from_the_engine_that_it_was_fitted_on(
    loaded: list[AnsweringEngine], fitted: Path, questions: Path, tmp_path: Path
) -> None:
    """Transformers reads GGUF files too: the file does not say which engine a scorer was fitted on."""
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    guard.rebind(fitted, questions, model="m.gguf", to="m.gguf", to_engine="other", out=there)
    guard.rebind(there, questions, model="m.gguf", to="m.gguf", to_engine="scripted", out=back)
    there_and_back = ["other", "scripted", "other", "scripted", "other", "scripted"]
    assert [each.model.engine for each in loaded] == there_and_back
    assert load_scorer(back).artefact.binding == load_scorer(fitted).artefact.binding
    with pytest.raises(InputError, match="is already bound to this model"):
        guard.rebind(there, questions, model="m.gguf", to="m.gguf", out=back)


@pytest.mark.usefixtures("loaded")
def test_what_was_not_checked_on_the_new_model_does_not_move(fitted: Path, questions: Path, tmp_path: Path) -> None:
    with_early(with_spans(load_scorer(fitted))).save(tmp_path / "more.json")
    out = tmp_path / "moved.json"
    guard.rebind(tmp_path / "more.json", questions, model="m.gguf", to="m.gguf", to_engine="other", out=out)
    artefact = load_scorer(out).artefact
    assert (artefact.spans, artefact.early) == (None, None)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("detects", [True, False])
def test_a_back_off_moves_with_a_detector_only(
    detects: bool, fitted: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    guard.rebind(fitted, questions, model="m.gguf", to="m.gguf", to_engine="other", out=there)
    back_off = BackOff(start=0.5, most=0.5)
    Scorer(load_scorer(there).artefact.model_copy(update={"back_off": back_off})).save(there)
    if not detects:
        monkeypatch.setattr(rebinding, "_ood_detector", lambda *_: None)
    guard.rebind(there, questions, model="m.gguf", to="m.gguf", to_engine="scripted", out=back)
    assert load_scorer(back).artefact.back_off == (back_off if detects else None)


@pytest.mark.usefixtures("loaded")
def test_without_a_check_the_scores_are_marked_as_uncalibrated(fitted: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "moved.json"
    command = ["rebind", str(fitted), "--data", str(questions), "--model", "m.gguf", "--to", "m.gguf"]
    done = CliRunner().invoke(app, [*command, "--to-engine", "other", "--no-check", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "unchecked: the scores are marked as uncalibrated" in done.stdout
    assert load_scorer(out).calibrated is False
    assert load_scorer(out).for_model(scripted_model(engine="other"), "mlp").calibrated is False


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"engine": "scripted", "quantization": "Q8_0", "tokenizer_sha256": "d" * 64},
            ScorerMismatchError,
            "these fields differ, too: tokenizer_sha256",
        ),
        ({"chat_template_sha256": "d" * 64}, ScorerMismatchError, "these fields differ, too: chat_template_sha256"),
        ({"engine": "scripted"}, InputError, "The scorer is already bound to this model"),
    ],
)
def test_another_model_is_refused(
    changes: dict[str, str],
    error: type[GuardError],
    said: str,
    fitted: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = AnsweringEngine(half_right, model=replace(scripted_model(engine="other"), **changes))
    only = iter([new])  # it is refused before the old model is loaded
    monkeypatch.setattr(engines, "load_engine", lambda *_, **__: next(only))
    with pytest.raises(error, match=said):
        guard.rebind(fitted, questions, model="m.gguf", to="m.gguf", out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.usefixtures("loaded")
def test_scores_that_do_not_hold_on_the_new_model_are_refused(
    fitted: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upside_down(prompt: Prompt, number: int) -> tuple[str, float]:
        text, p_wrong = half_right(prompt, number)
        return text, 1 - p_wrong

    other = scripted_model(engine="other")
    scripts = iter([(upside_down, other), (half_right, None), (upside_down, other)])
    monkeypatch.setattr(
        engines, "load_engine", lambda *_, **__: AnsweringEngine((each := next(scripts))[0], model=each[1])
    )
    with pytest.raises(CalibrationError, match="The scorer does not work on the new model"):
        guard.rebind(fitted, questions, model="m.gguf", to="m.gguf", to_engine="other", out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_weights_that_cannot_be_compared_are_refused_before_anything_is_loaded(
    fitted: Path, questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        guard.rebind(fitted, questions, model=tmp_path, to=tmp_path / "other.gguf", out=tmp_path / "out.json")
