"""The artefact evaluated as LightGBM and scikit-learn do, bound to its model, and read from hostile files."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scripted import LAYERS, WIDTH, confidence_scorer, scripted_model, tiny_artefact

from guard.errors import CaptureError, InputError, ScorerError, ScorerMismatchError
from guard.files.checked_json import digest
from guard.records import ModelInfo, Signals
from guard.scores import ScoreName
from guard.scoring import scorer as scorer_module
from guard.scoring.provenance import Binding
from guard.scoring.scorer import Evaluator, Scorer, load_scorer, logistic, parse_scorer, to_log_odds
from guard.scoring.scorer_file import Artefact, Calibration, Linear, LinearProbe, Model, Trees, make_linear
from guard.scoring.signature import SignatureObserver


def signals(seed: int = 0, *, tokens: int = 5, layers: int = LAYERS) -> Signals:
    rng = np.random.default_rng(seed)
    observer = SignatureObserver()
    for _ in range(tokens):
        observer.observe(rng.normal(size=(layers, WIDTH)).astype(np.float32))
    parts = [-rng.exponential(1, tokens), rng.exponential(1, tokens), rng.exponential(1, tokens)]
    return Signals(*(np.float32(part) for part in parts), observer.signature())


STUMPS = Trees(
    roots=[0, 3],
    feature=[12, -1, -1, 30, -1, -1],
    threshold=[0.0, 0.0, 0.0, -1.0, 0.0, 0.0],
    left=[1, 0, 0, 4, 0, 0],
    right=[2, 0, 0, 5, 0, 0],
    value=[0.0, -0.5, 0.5, 0.0, 0.25, -0.25],
)


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_artefact(scripted_model(), trees=STUMPS))


@pytest.fixture
def saved(scorer: Scorer, tmp_path: Path) -> Path:
    scorer.save(tmp_path / "scorer.json")
    return tmp_path / "scorer.json"


# -- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "features", "settings"),
    [
        (0, 3, {"num_leaves": 2, "learning_rate": 0.1}),
        (1, 40, {"num_leaves": 6, "learning_rate": 0.03, "lambda_l2": 20.0, "feature_fraction": 0.1}),
        (2, 900, {"num_leaves": 31, "learning_rate": 0.3, "min_data_in_leaf": 2}),
        (3, 12, {"num_leaves": 64, "learning_rate": 0.5, "min_data_in_leaf": 1, "max_depth": 20}),
    ],
)
@pytest.mark.parametrize("shrinkage", [1.0, 0.25])
def test_trees_are_lightgbms(seed: int, features: int, settings: dict[str, Any], shrinkage: float) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    from guard.calibration.tree_table import trees_from

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, features)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0.0  # zeros and repeated values are where implementations differ
    x = np.round(x, 2)
    y = (x[:, 0] * x[:, 1] + rng.normal(size=400) > 0).astype(int)
    start = rng.normal(size=400)
    # Only some columns are learnt from, as the log-probabilities are left to the start.
    columns = np.sort(rng.permutation(features)[: max(2, features // 2)])
    booster = lightgbm.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 0, **settings},
        lightgbm.Dataset(x[:, columns], y, init_score=start),
        num_boost_round=30,
    )
    evaluator = Evaluator(None, trees_from(booster, columns, shrinkage))
    fresh = np.vstack([x, np.round(rng.normal(size=(200, features)), 2).astype(np.float32)])
    ours = [evaluator.log_odds(row) for row in fresh.astype(np.float64)]
    theirs = booster.predict(fresh[:, columns], raw_score=True) * shrinkage
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert np.ptp(ours) > 0


def test_a_value_on_the_threshold_goes_left() -> None:
    stump = Trees(
        roots=[0], feature=[0, -1, -1], threshold=[1.5, 0, 0], left=[1, 0, 0], right=[2, 0, 0], value=[0, 7, 9]
    )
    evaluator = Evaluator(None, stump)
    values = [evaluator.log_odds(np.array([value])) for value in (1.0, 1.5, np.nextafter(1.5, 2))]
    assert values == [7, 7, 9]


def test_the_linear_start_is_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 7)) * np.geomspace(0.01, 100, 7) + 5
    y = x[:, 2] + rng.normal(size=300) > 5
    scaler = preprocessing.StandardScaler().fit(x)
    model = linear_model.LogisticRegression().fit(scaler.transform(x), y)
    columns = np.array([9, 1, 4, 0, 6, 2, 3])
    wide = rng.normal(size=(300, 11))
    wide[:, columns] = x
    start = make_linear(columns, scaler.mean_, scaler.scale_, model.coef_[0], model.intercept_[0])
    ours = [Evaluator(start, None).log_odds(row) for row in wide]
    np.testing.assert_allclose(ours, model.decision_function(scaler.transform(x)), rtol=0, atol=1e-9)


def test_start_and_trees_add_up_and_calibration_comes_last() -> None:
    artefact = tiny_artefact(scripted_model(), trees=STUMPS)
    model = Model(
        base=artefact.scores["guard"].base, probe=None, trees=STUMPS, calibration=Calibration(slope=0.5, intercept=-1.0)
    )
    scored = Scorer(artefact.model_copy(update={"scores": {**artefact.scores, "guard": model}})).score(signals())
    vector = scorer_module.feature_vector(signals(), artefact.feature_schema).astype(np.float64)
    start, trees = Evaluator(artefact.scores["guard"].base, None), Evaluator(None, STUMPS)
    assert trees.log_odds(vector) in {-0.75, -0.25, 0.25, 0.75}
    log_odds = start.log_odds(vector) + trees.log_odds(vector)
    assert scored.p_wrong == pytest.approx(1 / (1 + math.exp(1.0 - 0.5 * log_odds)), abs=1e-12)
    assert scored.scores["log-probabilities"].p_wrong == pytest.approx(logistic(start.log_odds(vector)), abs=1e-12)
    assert scored.calibrated
    assert 0 < scored.seconds < 1


def test_a_model_without_parts_says_its_intercept() -> None:
    artefact = tiny_artefact(scripted_model())
    model = Model(base=None, probe=None, trees=None, calibration=Calibration(slope=1.0, intercept=to_log_odds(0.3)))
    scored = Scorer(artefact.model_copy(update={"scores": {"guard": model}})).score(signals())
    assert scored.p_wrong == pytest.approx(0.3)
    assert list(scored.scores) == ["guard"]


def test_a_scorer_that_gives_one_score_reads_no_more_than_that() -> None:
    whole = confidence_scorer()
    plain = whole.giving("log-probabilities")
    assert (whole.giving("guard"), plain.gives) == (whole, ("log-probabilities",))
    assert (plain.sha256, plain.artefact) == (whole.sha256, whole.artefact)
    assert not plain.observer().reads_layers
    observer = plain.observer()
    observer.observe(np.full((2, 4), np.nan, np.float32))  # an engine of another package reads them all the same
    unread = replace(signals(), signature=observer.signature())
    scored = plain.score(unread)
    assert (scored.decides, list(scored.scores)) == ("log-probabilities", ["log-probabilities"])
    assert scored.p_wrong == whole.score(signals()).scores["log-probabilities"].p_wrong
    with pytest.raises(ScorerError, match="no score 'guard'"):
        scored.deciding("guard")
    with pytest.raises(CaptureError, match="needs activations"):
        whole.score(unread)


@pytest.mark.parametrize(
    ("token", "given"), [("last", ("guard", "ilis", "log-probabilities")), ("mean", ("guard", "log-probabilities"))]
)
def test_the_map_of_one_token_costs_no_score_and_those_of_all_tokens_do(token: str, given: tuple[str, ...]) -> None:
    artefact = tiny_artefact(scripted_model())
    at = artefact.feature_names.index(f"map.1.{token}.0>1")
    stump = STUMPS.model_copy(update={"feature": [at if each >= 0 else each for each in STUMPS.feature]})
    ilis = Model(base=None, probe=None, trees=stump, calibration=Calibration(slope=1.0, intercept=0.0))
    probe = LinearProbe.from_array(np.zeros((3, artefact.binding.layers, artefact.binding.width), np.float32))
    own = artefact.scores["guard"].model_copy(update={"probe": probe})
    scorer = Scorer(
        artefact.model_copy(update={"scores": {"guard": own, "ilis": ilis, **_log_probabilities(artefact)}})
    )
    assert scorer.giving("guard").gives == given
    assert scorer.giving("ilis").gives == ("guard", "ilis", "log-probabilities")


def _log_probabilities(artefact: Artefact) -> dict[ScoreName, Model]:
    return {"log-probabilities": artefact.scores["log-probabilities"]}


@pytest.mark.parametrize("log_odds", [-1e6, -745.0, -30.0, 0.0, 30.0, 745.0, 1e6])
def test_logistic_does_not_overflow(log_odds: float) -> None:
    special = pytest.importorskip("scipy.special")
    assert logistic(log_odds) == pytest.approx(special.expit(log_odds), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("p_wrong", [1e-9, 0.2, 0.5, 1 - 1e-9])
def test_log_odds_are_the_inverse(p_wrong: float) -> None:
    assert logistic(to_log_odds(p_wrong)) == pytest.approx(p_wrong)


def test_signals_of_another_shape_cannot_be_scored(scorer: Scorer) -> None:
    with pytest.raises(CaptureError, match="4 layers, the scorer expects 3"):
        scorer.score(signals(layers=4))


def test_threads_agree() -> None:
    scorer = Scorer(tiny_artefact(scripted_model(), trees=STUMPS))
    cases = [signals(seed) for seed in range(40)]
    alone = [scorer.score(case).p_wrong for case in cases]
    assert len(set(alone)) == 40
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda case: scorer.score(case).p_wrong, cases * 10))
    assert together == alone * 10


# -- files -------------------------------------------------------------------------------------


def test_a_saved_scorer_is_the_same_one(scorer: Scorer, saved: Path) -> None:
    loaded = load_scorer(saved)
    assert loaded.artefact == scorer.artefact
    assert loaded.sha256 == scorer.sha256 == json.loads(saved.read_bytes())["sha256"]
    for seed in range(20):
        ours, theirs = scorer.score(signals(seed)), loaded.score(signals(seed))
        assert (ours.p_wrong, ours.scores) == (theirs.p_wrong, theirs.scores)
    before = saved.read_bytes()
    loaded.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_layout_of_the_file_does_not_matter(scorer: Scorer, saved: Path) -> None:
    content = json.loads(saved.read_bytes())
    saved.write_text(json.dumps(dict(reversed(content.items())), indent=2))
    assert load_scorer(saved).artefact == scorer.artefact


def test_a_changed_number_is_damage(saved: Path) -> None:
    content = json.loads(saved.read_bytes())
    content["scores"]["guard"]["trees"]["value"][1] = -0.4
    saved.write_text(json.dumps(content))
    with pytest.raises(ScorerError, match="checksum"):
        load_scorer(saved)


def test_files_that_are_no_scorers(tmp_path: Path, saved: Path) -> None:
    def told(path: str | Path) -> str:
        with pytest.raises(ScorerError) as caught:
            load_scorer(path)
        assert caught.value.exit_code == 3
        return str(caught.value)

    (tmp_path / "empty").touch()
    (tmp_path / "other").write_text('{"format": "onnx"}')
    (tmp_path / "later").write_text('{"format": "guard-scorer", "format_version": 99}')
    (tmp_path / "list").write_text("[]")
    assert "No such file" in told(tmp_path / "missing.json")
    assert "is not a file" in told(tmp_path)
    assert "is not a file" in told("/dev/null")
    assert "null byte" in told("scorer\0.json")
    assert "no valid JSON" in told(tmp_path / "empty")
    assert "guard-scorer" in told(tmp_path / "other")
    assert "guard-scorer" in told(tmp_path / "list")
    assert "Upgrade guard" in told(tmp_path / "later")
    saved.write_bytes(saved.read_bytes()[:-20])
    assert "no valid JSON" in told(saved)


@pytest.mark.timeout(60)
def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(10 * 2**30)  # of holes: no disk is used
    with pytest.raises(ScorerError, match="too large"):
        load_scorer(tmp_path / "huge.json")


def test_saving_where_it_cannot_be(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot write"):
        scorer.save(tmp_path / "missing" / "scorer.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        scorer.save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


# -- binding -----------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "engine": "transformers",
    "architecture": "qwen2",
    "quantization": "Q8_0",
    "weights_sha256": "0" * 64,
    "tokenizer_sha256": "0" * 64,
    "chat_template_sha256": "0" * 64,
    "layers": LAYERS + 1,
    "width": WIDTH + 1,
    "template_date": "2026-11-25",
    "served": "x on vLLM",
}


def test_the_binding_is_all_that_identifies_a_model() -> None:
    assert set(CHANGES) == {field.name for field in fields(ModelInfo)} - {"name", "context_tokens", "deterministic"}
    assert set(CHANGES) == set(Binding.model_fields) - {"capture_point"}


def test_the_model_it_was_fitted_on(scorer: Scorer) -> None:
    renamed = replace(scripted_model(), name="other", context_tokens=9)
    assert scorer.for_model(renamed, "mlp") is scorer
    assert scorer.for_model(renamed, "mlp", force=True).calibrated


@pytest.mark.parametrize("field", CHANGES)
def test_another_model_is_refused_by_the_field_that_differs(scorer: Scorer, field: str) -> None:
    other = replace(scripted_model(), **{field: CHANGES[field]})
    with pytest.raises(ScorerMismatchError) as caught:
        scorer.for_model(other, "mlp")
    given, fitted = (str(getattr(model, field)) for model in (other, scripted_model()))
    shown = [text if len(text) < 64 else f"{text[:12]}..." for text in (fitted, given)]
    assert caught.value.why == f"{field}: fitted on {shown[0]}, got {shown[1]}"
    if field == "layers":
        with pytest.raises(
            ScorerMismatchError, match=f"forcing the scorer cannot help, since it reads {LAYERS} layers"
        ):
            scorer.for_model(other, "mlp", force=True)
        assert "or force" not in str(caught.value)
    else:
        forced = scorer.for_model(other, "mlp", force=True)
        assert not forced.calibrated
        assert not forced.score(signals()).calibrated
        assert forced.score(signals()).p_wrong == scorer.score(signals()).p_wrong
        assert scorer.score(signals()).calibrated, "the original is not touched"
        assert not forced.for_model(scripted_model(), "mlp").calibrated, "forced once, marked for good"


def test_a_probe_is_not_forced_onto_layers_of_another_width() -> None:
    """It could score nothing: each answer would fail where a probe of one width meets layers of another."""
    wider = scripted_model(width=WIDTH + 1)
    with pytest.raises(ScorerMismatchError, match=f"cannot help, since it reads {LAYERS} layers of width {WIDTH}"):
        confidence_scorer().for_model(wider, "mlp", force=True)


def test_another_capture_point_is_refused(scorer: Scorer) -> None:
    with pytest.raises(ScorerMismatchError, match="capture_point: fitted on mlp, got block"):
        scorer.for_model(scripted_model(), "block")


def test_every_difference_is_named(scorer: Scorer) -> None:
    other = replace(scripted_model(), engine="transformers", width=9)
    with pytest.raises(ScorerMismatchError, match=r"engine: .*; width: .*; capture_point: "):
        scorer.for_model(other, "block")


# -- hostile files -----------------------------------------------------------------------------


def sealed(content: dict[str, Any]) -> bytes:
    """As a stranger would write it: with a checksum that matches."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    try:
        body["sha256"] = digest(scorer_module._content(Artefact.model_validate(copy.deepcopy(body))))
    except Exception:  # noqa: BLE001 - refused before its checksum is looked at
        body["sha256"] = "0" * 64
    return json.dumps(body).encode()


def check(data: bytes) -> Scorer | None:
    """A scorer that works and can be written again, or a ScorerError; nothing else."""
    try:
        scorer = parse_scorer(data)
    except ScorerError as error:
        told = str(error)
    else:
        return works(scorer)
    assert "scorer" in told
    assert len(told) < 1000
    return None


def works(scorer: Scorer) -> Scorer:
    assert parse_scorer(sealed(scorer_module._content(scorer.artefact))).artefact == scorer.artefact
    try:
        score = scorer.score(signals())
    except (ScorerError, CaptureError):
        return scorer
    assert 0.0 <= score.p_wrong <= 1.0
    return scorer


def test_flipped_bytes(saved: Path, scorer: Scorer) -> None:
    data, rng = saved.read_bytes(), random.Random(0)
    for _ in range(2500):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        parsed = check(bytes(damaged))
        assert parsed is None or parsed.artefact == scorer.artefact


def test_cut_and_repeated_bytes(saved: Path, scorer: Scorer) -> None:
    data, rng = saved.read_bytes(), random.Random(1)
    for _ in range(800):
        start, end = sorted(rng.randrange(len(data)) for _ in range(2))
        parsed = check(rng.choice((data[:start], data[start:], data[:start] + data[end:], data[:end] + data[start:])))
        assert parsed is None or parsed.artefact == scorer.artefact


JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e308, 5e-324, 10**30, -(10**30), 2**63, 1023, 1024),
    *("", "x", "map", "\ud800", "a" * 100_000, "__class__", "1", "NaN"),
    *([], {}, [None], [[]], {"a": 1}, [1, 2, 3], [-1], ["\ud800"], {"\ud800": 0}, [10**30], [1e999]),
    *(float("nan"), float("inf"), -float("inf")),
    json.loads("[" * 400 + "]" * 400),
    json.loads('{"a":' * 100 + "1" + "}" * 100),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def test_replaced_deleted_and_added_values(saved: Path) -> None:
    content, rng, survived = json.loads(saved.read_bytes()), random.Random(2), 0
    for _ in range(4000):
        changed = copy.deepcopy(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            # Most places are feature names; choose what kind of place first.
            top = rng.choice(list(changed)) if changed else ""
            inner = [place for place in places(changed.get(top)) if rng.random() < 0.9]
            container, key = rng.choice(inner) if inner and rng.random() < 0.8 else (changed, top)
            try:
                what = rng.randrange(4)
                if what == 0:
                    del container[key]
                elif what == 1 and isinstance(container, dict):
                    container[rng.choice(("extra", "sha256", "", "schema_", "\ud800"))] = copy.deepcopy(
                        rng.choice(JUNK)
                    )
                elif what == 1:
                    container.insert(key, container[key])
                else:
                    container[key] = copy.deepcopy(rng.choice(JUNK))
            except (KeyError, IndexError):
                continue
        survived += check(sealed(changed)) is not None
        check(json.dumps(changed).encode())
    assert survived > 100, "some changes leave a valid artefact; those must work"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: b'{"format":"guard-scorer","format_version":2,"feature_names":[' + b"1," * (n // 2) + b"1]}",
        lambda n: b'{"format":"guard-scorer","format_version":2,"data":[' + b"{}," * (n // 3) + b"{}]}",
        lambda n: b"{" + b",".join(b'"%08d":0' % number for number in range(n // 13)) + b"}",
        lambda n: b"[" * n,
        lambda n: b'{"a":' * (n // 5),
        lambda n: b'{"format":"guard-scorer","format_version":' + b"9" * n + b"}",
    ],
    ids=["bad items", "bad records", "many keys", "deep lists", "deep objects", "long number"],
)
def test_large_files_cost_no_more_than_their_size(make: Callable[[int], bytes]) -> None:
    data = make(2 * 2**20)
    tracemalloc.start()
    with pytest.raises(ScorerError):
        parse_scorer(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * len(data)


@pytest.mark.timeout(60)
def test_a_small_file_cannot_ask_for_millions_of_names(saved: Path) -> None:
    content = json.loads(saved.read_bytes())
    content["schema"].update(layers=1024, temperatures=[float(tau) for tau in range(1, 17)])
    content["binding"]["layers"] = 1024
    with pytest.raises(ScorerError, match="as many as"):
        parse_scorer(sealed(content))


def chain(depth: int, roots: int) -> dict[str, list[Any]]:
    """One path of inner nodes, entered from many roots: little to store, long to walk."""
    inner = range(depth)
    return {
        "roots": [0] * roots,
        "feature": [*(0 for _ in inner), -1],
        "threshold": [*(-1e300 for _ in inner), 0.0],
        "left": [*(depth for _ in inner), 0],
        "right": [*(node + 1 for node in inner), 0],
        "value": [0.0] * (depth + 1),
    }


@pytest.mark.parametrize(("depth", "roots", "told"), [(50_000, 10, "deeper"), (10, 50_000, "more than")])
def test_trees_that_never_end_are_refused(saved: Path, depth: int, roots: int, told: str) -> None:
    content = json.loads(saved.read_bytes())
    content["scores"]["guard"]["trees"] = chain(depth, roots)
    with pytest.raises(ScorerError, match=told):
        parse_scorer(sealed(content))


@pytest.mark.parametrize(
    ("column", "at", "value"),
    [
        *(("left", 0, 0), ("right", 3, 2), ("left", 0, 6), ("right", 1, 10**30), ("roots", 0, 6), ("roots", 0, -1)),
        *(("feature", 0, 10**9), ("feature", 0, -2), ("value", 1, "x"), ("threshold", 0, None)),
    ],
)
def test_trees_that_are_no_trees(saved: Path, column: str, at: int, value: Any) -> None:
    content = json.loads(saved.read_bytes())
    content["scores"]["guard"]["trees"][column][at] = value
    assert check(sealed(content)) is None


def test_a_negative_feature_of_the_start_is_refused(saved: Path) -> None:
    content = json.loads(saved.read_bytes())
    content["scores"]["guard"]["base"]["features"] = [-1]
    assert check(sealed(content)) is None


def test_another_schema_version_is_refused(saved: Path) -> None:
    content = json.loads(saved.read_bytes())
    content["schema"]["version"] = 2
    with pytest.raises(ScorerError, match="schema version 2"):
        parse_scorer(sealed(content))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["intercept", "note"])
def test_numbers_that_are_none(saved: Path, text: str, key: str) -> None:
    content = json.loads(saved.read_bytes())
    place = content["scores"]["guard"]["base"] if key == "intercept" else content["settings"]
    place[key] = 987654.25
    data = sealed(content)
    assert check(data) is not None
    assert check(data.replace(b"987654.25", text.encode())) is None


def test_the_same_key_twice_is_refused(saved: Path) -> None:
    with pytest.raises(ScorerError, match="twice"):
        parse_scorer(saved.read_bytes().replace(b'"seed":0', b'"seed":0,"seed":0'))


def test_numbers_so_large_that_there_is_no_score(saved: Path) -> None:
    content = json.loads(saved.read_bytes())
    content["scores"]["guard"]["base"].update(
        features=[0, 1], mean=[0.0] * 2, scale=[1e-308] * 2, coefficients=[1e308, -1e308]
    )
    scorer = parse_scorer(sealed(content))
    with pytest.raises(ScorerError, match="not finite"):
        scorer.score(signals())


def test_linear_needs_columns_of_one_length() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Linear(features=[0, 1], mean=[0.0], scale=[1.0], coefficients=[1.0], intercept=0.0)


def test_loading_runs_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual ways to run code from a file are not on the way."""
    import builtins
    import pickle

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("code from a file")

    load_scorer(saved)  # what is imported late is imported now
    for module, name in ((builtins, "eval"), (builtins, "exec"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(module, name, forbidden)
    load_scorer(saved).score(signals())


def test_confidence_scorer_reads_back_what_a_script_says() -> None:
    from scripted import AnsweringEngine

    from guard.records import Prompt

    scorer: NDArray[Any] | Scorer = confidence_scorer()
    for p_wrong in (0.05, 0.3, 0.9):
        engine = AnsweringEngine(lambda prompt, number, p=p_wrong: ("yes", p))  # type: ignore[misc]
        observer = SignatureObserver()
        answer = engine.generate(Prompt.raw("?"), observer=observer)
        given = Signals(answer.logprobs, answer.entropies, answer.margins, observer.signature())
        assert scorer.score(given).p_wrong == pytest.approx(p_wrong, abs=1e-5)


# -- the linear probe --------------------------------------------------------------------------


def signals_of_layers(activations: Any) -> Signals:
    """Signals whose first, last and mean token have these activations."""
    made = signals()
    return replace(made, signature=replace(made.signature, activations=activations))


def probe_artefact(weights: Any) -> Artefact:
    artefact = tiny_artefact(scripted_model())
    model = artefact.scores["guard"].model_copy(update={"probe": LinearProbe.from_array(weights)})
    return artefact.model_copy(update={"scores": {"guard": model}})


def test_the_linear_probe_is_the_product_with_normalised_activations(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, LAYERS, WIDTH)).astype(np.float32)
    given = signals_of_layers(rng.normal(size=(3, LAYERS, WIDTH)).astype(np.float32))
    Scorer(probe_artefact(weights)).save(tmp_path / "s.json")
    loaded = load_scorer(tmp_path / "s.json")
    plain = Scorer(tiny_artefact(scripted_model())).score(given).p_wrong
    layers = given.signature.activations.astype(np.float64)
    by_hand = (weights * layers / np.linalg.norm(layers, axis=-1, keepdims=True)).sum()
    assert to_log_odds(loaded.score(given).p_wrong) == pytest.approx(to_log_odds(plain) + by_hand, abs=1e-5)
    larger = signals_of_layers(given.signature.activations * 7)
    assert loaded.score(larger).p_wrong == pytest.approx(loaded.score(given).p_wrong, abs=1e-6)
    zero = signals_of_layers(np.zeros_like(given.signature.activations))
    with pytest.raises(CaptureError, match="all zero"):
        loaded.score(zero)
    with pytest.raises(CaptureError, match="needs activations of shape"):
        loaded.score(signals_of_layers(given.signature.activations[:, :, :-1]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "AAAA"}, "not as long"),
        ({"weights": "!" * 8}, "not as long"),
        ({"tokens": 2}, "not as long"),
        ({"width": 0}, "width"),
    ],
)
def test_damaged_probes_are_refused(changes: dict[str, Any], told: str) -> None:
    content = LinearProbe.from_array(np.ones((1, 2, 1), np.float32)).model_dump()
    with pytest.raises(ValueError, match=told):
        LinearProbe.model_validate({**content, **changes})


def test_probes_must_be_finite_and_fit_the_model() -> None:
    with pytest.raises(ValueError, match="not finite"):
        LinearProbe.from_array(np.full((1, 2, 1), np.nan, np.float32))
    artefact = probe_artefact(np.ones((3, LAYERS, WIDTH + 1), np.float32))
    with pytest.raises(ValueError, match="does not have the shape of the model"):
        Artefact.model_validate(artefact.model_dump(by_alias=True))
