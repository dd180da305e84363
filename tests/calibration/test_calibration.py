"""Fitting on made records whose truth is known, and metrics against scikit-learn and by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from scripted import LAYERS, WIDTH, AnsweringEngine, scripted_model
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from guard.calibration import fitting
from guard.calibration import scorer_fit as calibration
from guard.calibration.platt import platt_scaling
from guard.calibration.scorer_fit import SPLIT_SHARES, FittedScorer, Labelled, fit_scorer, split_labelled
from guard.data.questions import LabelledResponse, Question, Row
from guard.data.recording import Journal, Record, Run, record_rows
from guard.errors import CalibrationError, InputError, ScorerError
from guard.records import Prompt, Signals, Signature
from guard.scores import SCORE_NAMES, ScoreName
from guard.scoring import probe
from guard.scoring.metrics import compute_metrics, expected_calibration_error
from guard.scoring.scorer import Evaluator, load_scorer, parse_scorer
from guard.scoring.scorer_file import BackOff
from guard.scoring.signature import AGGREGATES, feature_vector

RUN = Run(model=scripted_model(), capture_point="mlp", system="Be brief.", max_tokens=8)


def made(
    count: int, *, seed: int, by_logprob: float, by_map: float, by_activations: float = 0.0, dataset: str = "made"
) -> list[Labelled]:
    """Records whose log-odds of being wrong depend on the mean log-probability, on one pair of layers
    and on one coordinate of one layer's activations."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        tokens = int(rng.integers(2, 9))
        doubt, disagreement, knowledge = rng.normal(size=3)
        logprobs = -np.exp(0.5 * doubt + 0.1 * rng.normal(size=tokens))
        maps = np.exp(rng.normal(size=(1, 4, LAYERS, LAYERS)) * 0.3)
        maps[0, :, 0, 2] = np.exp(disagreement)
        maps[..., range(LAYERS), range(LAYERS)] = 0
        norms = rng.normal(size=(4, LAYERS)) * 0.1
        activations = np.float32(rng.normal(size=(3, LAYERS, WIDTH)))
        activations[:, 1, 0] += np.float32(3 * knowledge)
        signature = Signature(np.float32(maps), np.float32(norms), activations, (1.0,), AGGREGATES, tokens)
        arrays = (np.float32(values) for values in (logprobs, -logprobs, -logprobs / 2))
        wrong = rng.random() < 1 / (
            1 + math.exp(-by_logprob * doubt - by_map * disagreement - by_activations * knowledge)
        )
        record = Record(f"{dataset}/{number}", dataset, f"q{number}", "a", Signals(*arrays, signature), 0.1)
        records.append(Labelled(record, bool(wrong)))
    return records


def splits_of(labelled: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    ends = itertools.accumulate(round(share * len(labelled)) for share in SPLIT_SHARES.values())
    cuts = [0, *ends]
    return {
        name: list(labelled[start:end])
        for name, (start, end) in zip(SPLIT_SHARES, itertools.pairwise(cuts), strict=True)
    }


def fit(labelled: Sequence[Labelled], *, without: Sequence[str] = (), seed: int = 0) -> FittedScorer:
    return fit_scorer(splits_of(labelled), run=RUN, data=[], without=without, seed=seed)


# -- what is learnt ----------------------------------------------------------------------------


def test_the_layers_add_to_log_probabilities_where_they_know_more() -> None:
    fitted = fit(made(2500, seed=0, by_logprob=1.5, by_map=1.5))
    assert fitted.metrics["guard"].n == fitted.metrics["log-probabilities"].n == 500
    assert fitted.metrics["guard"].auroc > fitted.metrics["log-probabilities"].auroc + 0.03
    assert fitted.metrics["guard"].brier < fitted.metrics["log-probabilities"].brier
    assert fitted.metrics["guard"].auroc > 0.75
    assert fitted.metrics["guard"].ece < 0.08
    settings = fitted.scorer.artefact.settings["guard"]
    assert settings["shrinkage"] > 0
    assert settings["rounds"] > 5


def test_the_file_says_that_signals_are_taken_before_a_mask(tmp_path: Path) -> None:
    fit(made(600, seed=0, by_logprob=1.5, by_map=1.5)).scorer.save(tmp_path / "scorer.json")
    content = json.loads((tmp_path / "scorer.json").read_text("utf-8"))
    assert content["signals"] == "before-mask"
    assert load_scorer(tmp_path / "scorer.json").artefact.signals == "before-mask"
    content["signals"] = "after-mask"
    with pytest.raises(ScorerError, match="signals"):
        parse_scorer(json.dumps(content).encode())


@pytest.mark.parametrize("seed", range(4))
def test_layers_that_know_nothing_do_little_harm(seed: int) -> None:
    fitted = fit(made(1200, seed=seed, by_logprob=2.0, by_map=0.0))
    assert fitted.metrics["guard"].auroc > fitted.metrics["log-probabilities"].auroc - 0.02
    assert fitted.metrics["guard"].brier < fitted.metrics["log-probabilities"].brier + 0.01


def test_nothing_of_a_useless_correction_is_kept() -> None:
    """Noise helps held-out answers by chance now and then, but not always."""
    fits = [fit(made(500, seed=seed, by_logprob=2.0, by_map=0.0)) for seed in range(4)]
    dropped = [
        fitted.scorer.artefact for fitted in fits if fitted.scorer.artefact.settings["guard"]["shrinkage"] == 0.0
    ]
    assert dropped
    for artefact in dropped:
        assert artefact.scores["guard"].trees is None
        assert artefact.settings["guard"]["rounds"] == 0


@pytest.mark.parametrize("landmarks", [probe.LANDMARKS, 300], ids=["all", "some"])
def test_the_read_out_adds_what_the_activations_know(landmarks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its components are made of some of the answers."""
    monkeypatch.setattr(probe, "LANDMARKS", landmarks)
    labelled = made(900, seed=5, by_logprob=1.0, by_map=0.0, by_activations=2.0)
    fitted = fit(labelled)
    assert (
        max(each["probe"] for each in fitted.scorer.artefact.settings["guard"]["regressions"])
        == fitting.LARGEST_PRIOR_SCALE
    )
    assert fitted.metrics["guard"].auroc > fitted.metrics["log-probabilities"].auroc + 0.1
    assert fitted.metrics["guard"].brier < fitted.metrics["log-probabilities"].brier - 0.02
    weights = fitted.scorer.artefact.scores["guard"].probe
    assert weights is not None
    assert np.unravel_index(np.abs(weights.array).sum(axis=0).argmax(), (LAYERS, WIDTH)) == (1, 0)
    without = fit(labelled, without=("activations",))
    assert without.scorer.artefact.scores["guard"].probe is None
    assert without.metrics["guard"].auroc < fitted.metrics["guard"].auroc - 0.1


def test_the_layers_alone_can_be_a_score() -> None:
    labelled = made(900, seed=5, by_logprob=1.0, by_map=0.0, by_activations=2.0)
    fitted = fit(labelled, without=("logprob", "margin", "length"))
    model = fitted.scorer.artefact.scores["guard"]
    assert model.base is not None
    assert model.base.features == []
    assert model.probe is not None
    assert fitted.metrics["guard"].auroc > 0.7


def test_without_activations_their_products_are_not_read() -> None:
    """A linear probe could not be stored."""
    labelled = made(300, seed=5, by_logprob=1.0, by_map=0.0, by_activations=2.0)
    schema = fitting.schema_for(layers=LAYERS, temperatures=(1.0,))
    signals = [each.record.signals for each in labelled]
    activations = np.stack([each.signature.activations for each in signals])
    examples = fitting.Examples(
        np.stack([feature_vector(each, schema) for each in signals]),
        np.array([each.wrong for each in labelled]),
        np.array([each.record.dataset for each in labelled]),
    )
    products = probe.InnerProducts(probe.inner_products(activations))
    both = fitting.fit_model(replace(examples, activations=activations, products=products), schema)
    assert both.model.probe is not None
    silent = fitting.fit_model(replace(examples, products=products), schema)
    assert silent.model == fitting.fit_model(examples, schema).model


def test_where_sets_are_held_out_all_regressions_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is their mean in log-odds, linear probe and the output's features together."""
    labelled = []
    for number in range(5):
        labelled += made(150, seed=number, by_logprob=1.0, by_map=0.0, by_activations=2.0, dataset=f"s{number}")

    def log_odds(*scales: float) -> list[float]:
        monkeypatch.setattr(fitting, "PRIOR_SCALES", scales)
        artefact = fit(labelled, seed=1).scorer.artefact
        assert artefact.settings["guard"]["folds"] == "data sets"
        assert artefact.scores["guard"].base is not None
        evaluator = Evaluator(artefact.scores["guard"].base, None, artefact.scores["guard"].probe)
        schema = fitting.schema_for(layers=LAYERS, temperatures=(1.0,))
        signals = [each.record.signals for each in labelled[:20]]
        return [evaluator.log_odds(feature_vector(each, schema), each.signature.activations) for each in signals]

    silent, low, high, mean = (np.array(log_odds(0.0, *more)) for more in ((), (0.1,), (10.0,), (0.1, 10.0)))
    assert np.abs(low - high).max() > 0.2
    np.testing.assert_allclose(mean, (2 * low + 2 * high - silent) / 3, atol=0.01)


@pytest.mark.parametrize(("by_set", "weights"), [(False, [0.12, 0.1, 0.78]), (True, [1 / 3, 1 / 3, 1 / 3])])
def test_where_answers_are_held_out_worse_regressions_count_less(
    monkeypatch: pytest.MonkeyPatch, *, by_set: bool, weights: list[float]
) -> None:
    monkeypatch.setattr(fitting, "holds_out_sets", lambda _: by_set)
    monkeypatch.setattr(fitting, "_surely_better", lambda *_: False)
    wrong = np.random.default_rng(0).random(400) < 0.5
    examples = fitting.Examples(np.zeros((400, 1), np.float32), wrong, np.full(400, "s"))
    noise = np.random.default_rng(1).normal(size=(3, 400))
    held_out = np.where(wrong, 1.0, -1.0) * np.array([[0.1], [0.05], [0.25]]) + noise
    regressions = [fitting._Regression((), np.arange(1), strength) for strength in (0.0, 0.3, 1.0)]
    found = fitting._weights(held_out, regressions, examples)
    assert found.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found, weights, atol=0.1)


@pytest.mark.parametrize("sets", [1, 5], ids=["answers", "sets"])
def test_a_read_out_that_is_surely_worse_gets_no_weight(sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is not so much worse that its weight alone would leave it out."""
    rng = np.random.default_rng(3)
    wrong = rng.random(400) < 0.5
    dataset = np.array([f"s{number % sets}" for number in range(400)])
    examples = fitting.Examples(np.zeros((400, 1), np.float32), wrong, dataset)
    right = np.where(wrong, 1.0, -1.0)
    worse = 0.97 * right + 0.3 * rng.normal(size=400)
    regressions = [fitting._Regression((), np.arange(1), strength) for strength in (0.0, 1.0)]
    assert list(fitting._weights(np.array([right, worse]), regressions, examples)) == [1.0, 0.0]
    assert fitting._weights(np.array([worse, right]), regressions, examples)[1] >= 0.5
    monkeypatch.setattr(fitting, "_surely_better", lambda *_: False)
    assert fitting._weights(np.array([right, worse]), regressions, examples)[1] > 0.0


@pytest.mark.parametrize(("answers", "slope"), [(12, 0.85), (20_000, 0.5)])
def test_calibration_is_moved_by_as_much_as_answers_tell(answers: int, slope: float) -> None:
    """Log-odds twice as large as they should be."""
    rng = np.random.default_rng(2)
    log_odds = rng.normal(size=answers) * 2
    wrong = rng.random(answers) < 1 / (1 + np.exp(-log_odds / 2))
    found = platt_scaling(log_odds, wrong)
    assert found.slope == pytest.approx(slope, abs=0.2 if answers < 100 else 0.05)
    assert found.intercept == pytest.approx(0.0, abs=0.3 if answers < 100 else 0.05)


@pytest.mark.parametrize("score", ["ilis", "guard"])
def test_trees_alone_start_from_the_share_of_wrong_answers(score: ScoreName) -> None:
    """So that calibration has only a little to move, however few answers there are."""
    labelled = made(120, seed=11, by_logprob=0.0, by_map=3.0)
    without = ("logprob", "margin", "length", "activations")
    model = fit(labelled, without=without).scorer.artefact.scores[score]
    assert model.base is not None
    assert model.base.features == []
    assert model.trees is not None
    share = np.mean([each.wrong for each in labelled])
    assert 1 / (1 + math.exp(-model.base.intercept)) == pytest.approx(share, abs=0.05)


def test_how_much_of_a_held_out_set_is_wrong_does_not_speak_against_trees_alone() -> None:
    """What is left has the larger share of wrong answers, the smaller that of the set that is held out."""
    labelled = []
    for number in range(5):
        answers = made(400, seed=number, by_logprob=0.0, by_map=1.0, dataset=f"set {number}")
        labelled += [each for each in answers if each.wrong][: 20 + 25 * number]
        labelled += [each for each in answers if not each.wrong][: 120 - 25 * number]
    np.random.default_rng(0).shuffle(labelled)
    artefact = fit(labelled, without=("logprob", "margin", "length", "activations")).scorer.artefact
    assert artefact.settings["ilis"]["folds"] == "data sets"
    assert artefact.scores["ilis"].calibration.slope > 0.5


def test_a_score_without_trees_can_do_without_features_for_them() -> None:
    model = fit(made(500, seed=6, by_logprob=2.0, by_map=0.0), without=("map", "norms", "margin", "length"))
    assert model.scorer.artefact.scores["guard"].trees is None


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_a_score_that_ranks_nothing_is_refused(sign: float) -> None:
    wrong = np.tile([True, False], 100)
    with pytest.raises(CalibrationError, match="does not rank wrong answers"):
        platt_scaling(sign * np.where(wrong, 1.0, -1.0), wrong)


def test_what_misleads_from_set_to_set_is_not_kept() -> None:
    """Each set's activations speak for it alone: held-out sets tell, held-out answers would not."""
    labelled = []
    for number in range(6):
        sign = 1 if number % 2 else -1
        labelled += made(150, seed=number, by_logprob=2.0, by_map=0.0, by_activations=sign * 3.0, dataset=f"s{number}")
    labelled = [labelled[at] for at in np.random.default_rng(0).permutation(len(labelled))]
    settings = fit(labelled).scorer.artefact.settings["guard"]
    assert settings["folds"] == "data sets"
    assert {each["probe"] for each in settings["regressions"]} == {0.0}


@pytest.mark.parametrize(("sets", "sure"), [(1, True), (5, False)], ids=["answers", "sets"])
def test_a_gain_on_one_set_of_five_is_not_sure(sets: int, *, sure: bool) -> None:
    """However many answers it has; within a single set answers are the units."""
    wrong = np.tile([True, False], 250)
    dataset = np.repeat([f"s{number}" for number in range(sets)], 500 // sets)
    examples = fitting.Examples(np.zeros((500, 1), np.float32), wrong, dataset)
    before = np.zeros(500)
    after = np.where(np.arange(500) < 100, np.where(wrong, 3.0, -3.0), np.where(wrong, -0.01, 0.01))
    assert fitting._surely_better(after, before, examples) is sure


def test_parts_can_be_left_out() -> None:
    labelled = made(500, seed=6, by_logprob=2.0, by_map=0.0)
    artefact = fit(labelled, without=("map", "norms")).scorer.artefact
    assert artefact.scores["guard"].trees is None or artefact.reads("guard")[:3] == (
        "log-probabilities",
        "margins",
        "length",
    )
    assert not any("signature" in each or "norms" in each for each in artefact.reads("guard"))
    assert [each["reads"] for each in artefact.settings["guard"]["regressions"]][-1] == ["logprob", "margin", "length"]
    kept = fit(labelled, without=("margin", "length")).scorer.artefact.settings["guard"]["regressions"]
    assert {tuple(each["reads"]) for each in kept} == {("logprob",)}
    with pytest.raises(InputError, match=r"no part 'maps'.*Did you mean 'map'"):
        fit(labelled, without=("maps",))
    with pytest.raises(InputError, match="All feature groups are left out"):
        fit(labelled, without=("logprob", "margin", "length", "norms", "map"))


def test_the_published_score_reads_the_last_tokens_map_alone() -> None:
    fitted = fit(made(1500, seed=1, by_logprob=2.0, by_map=2.0), without=("map",))
    artefact = fitted.scorer.artefact
    model = artefact.scores["ilis"]
    assert model.base is not None
    assert model.base.features == []
    assert model.trees is not None
    assert model.probe is None
    assert {artefact.feature_names[at].rsplit(".", 1)[0] for at in model.features_used} == {"map.1.last"}
    assert artefact.reads("ilis") == ("signature (last token)",)
    assert artefact.settings["ilis"]["shrinkage"] == 1.0
    assert fitted.metrics["ilis"].auroc > 0.65


def test_log_probabilities_alone_have_no_trees() -> None:
    artefact = fit(made(1000, seed=2, by_logprob=2.0, by_map=1.0)).scorer.artefact
    model = artefact.scores["log-probabilities"]
    assert (model.trees, model.probe) == (None, None)
    assert artefact.reads("log-probabilities") == ("log-probabilities", "least log-probability and greatest entropy")


def test_log_probabilities_that_say_nothing_are_no_reason_to_refuse() -> None:
    refused = 0
    for seed in range(6):
        fitted = fit(made(1500, seed=seed, by_logprob=0.0, by_map=3.0))
        assert fitted.metrics["guard"].auroc > 0.7
        refused += "does not rank" in fitted.absent.get("log-probabilities", "")
        assert set(fitted.metrics) == set(fitted.scorer.artefact.scores)
    assert refused > 0, "none of these seeds has a baseline without signal: choose others"


@pytest.mark.parametrize("back_off", [None, BackOff(start=0.0, most=0.5)], ids=["plain", "backs off"])
def test_saved_metrics_are_those_of_the_saved_scorer(
    back_off: BackOff | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "choose_back_off", lambda *_, **__: back_off)
    labelled = made(1000, seed=3, by_logprob=2.0, by_map=1.0)
    fitted = fit(labelled)
    fitted.scorer.save(tmp_path / "scorer.json")
    loaded = load_scorer(tmp_path / "scorer.json")
    assert loaded.artefact.back_off == back_off
    test = splits_of(labelled)["test"]
    scores = [loaded.score(each.record.signals) for each in test]
    wrong = np.array([each.wrong for each in test])
    again = compute_metrics(np.array([score.p_wrong for score in scores]), wrong)
    assert again.auroc == pytest.approx(fitted.metrics["guard"].auroc, abs=1e-12)
    assert again.brier == pytest.approx(fitted.metrics["guard"].brier, abs=1e-12)
    for name in SCORE_NAMES:
        alone = compute_metrics(np.array([score.scores[name].p_wrong for score in scores]), wrong)
        assert alone.auroc == pytest.approx(fitted.metrics[name].auroc, abs=1e-12)
        assert loaded.artefact.metrics[name]["brier"] == fitted.metrics[name].brier
    assert loaded.artefact.split_sizes == {"fit": 800, "test": 200}
    assert loaded.artefact.prompting.system == "Be brief."
    assert loaded.artefact.prompting.max_tokens == 8
    assert loaded.artefact.versions["lightgbm"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    labelled = made(800, seed=4, by_logprob=2.0, by_map=2.0)
    files = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        fit(labelled, seed=seed).scorer.save(tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] != files[2]


# -- what is refused ---------------------------------------------------------------------------


def test_too_few_labels_are_refused() -> None:
    splits = splits_of(made(600, seed=0, by_logprob=1.0, by_map=0.0))
    for name, few in (("fit", fitting.MIN_ANSWERS - 1), ("test", calibration.MIN_SPLIT - 1)):
        what = "there are" if name == "fit" else "the test split has"
        with pytest.raises(CalibrationError, match=f"{what} {few} answers"):
            fit_scorer({**splits, name: splits[name][:few]}, run=RUN, data=[])
        one_sided = {**splits, name: [replace(each, wrong=True) for each in splits[name]]}
        with pytest.raises(CalibrationError, match=f"{what} .* of them wrong"):
            fit_scorer(one_sided, run=RUN, data=[])
        with pytest.raises(CalibrationError, match=f"{what} 0 answers"):
            fit_scorer({**splits, name: []}, run=RUN, data=[])


def test_a_score_that_ranks_backwards_is_refused() -> None:
    """What holds in two sets is the other way round in the other two, so held-out sets are ranked backwards."""
    labelled = []
    for number, sign in enumerate((1, 1, -1, -1)):
        labelled += made(100, seed=number, by_logprob=sign * 4.0, by_map=0.0, dataset=f"s{number}")
    labelled = [labelled[at] for at in np.random.default_rng(0).permutation(len(labelled))]
    with pytest.raises(CalibrationError, match="does not rank"):
        fit(labelled, without=("activations", "norms", "map", "margin", "length"))


# -- splits ------------------------------------------------------------------------------------


def test_a_question_of_two_data_sets_stays_in_one_split(tmp_path: Path) -> None:
    """Asked by a scripted model; labels come from the grader, and from the row where it has one."""
    texts = [f"what is {number}" for number in range(120)]
    rows: list[tuple[str, Row]] = [
        ("one", Question(id=f"{n}", question=t, answers=("yes",))) for n, t in enumerate(texts)
    ]
    rows += [("two", Question(id=f"{n}", question=f"  What is {n}?", answers=("no",))) for n in range(120)]
    rows += [
        ("three", LabelledResponse(id=f"{n}", prompt=Prompt.chat(t), response="maybe", wrong=n % 3 == 0))
        for n, t in enumerate(texts)
    ]
    engine = AnsweringEngine(lambda prompt, number: ("yes", 0.3))
    with Journal(tmp_path / "journal", RUN) as journal:
        list(record_rows(engine, rows, journal, run=RUN))
        splits, again, other = (
            split_labelled(rows, journal, grade=lambda row, answer: answer in row.answers, seed=seed)
            for seed in (0, 0, 1)
        )
        partly = split_labelled(rows[:120], journal, grade=lambda row, answer: True, seed=0)
    where: dict[str, set[str]] = {}
    for name, members in splits.items():
        assert len(members) > 3 * 5
        for each in members:
            where.setdefault(each.record.key.split("/")[1], set()).add(name)
            dataset, number = each.record.key.split("/")
            assert each.wrong is {"one": False, "two": True, "three": int(number) % 3 == 0}[dataset]
    assert len(where) == 120
    assert all(len(names) == 1 for names in where.values())
    assert sum(map(len, splits.values())) == 360

    def keys(split: dict[str, list[Labelled]]) -> dict[str, list[str]]:
        return {name: [each.record.key for each in members] for name, members in split.items()}

    assert keys(splits) == keys(again) != keys(other)
    for name, members in partly.items():  # rows that are added move none of the others
        assert {each.record.key for each in members} == {key for key in keys(splits)[name] if key.startswith("one/")}


def test_rows_that_were_not_asked_are_left_out(tmp_path: Path) -> None:
    rows: list[tuple[str, Row]] = [("d", Question(id=f"{n}", question=f"q{n}", answers=("yes",))) for n in range(30)]
    engine = AnsweringEngine(lambda prompt, number: ("yes", 0.3))
    with Journal(tmp_path / "journal", RUN) as journal:
        list(record_rows(engine, rows[:10], journal, run=RUN))
        splits = split_labelled(rows, journal, grade=lambda row, answer: True, seed=0)
    assert sorted(each.record.key for members in splits.values() for each in members) == sorted(
        f"d/{number}" for number in range(10)
    )


# -- metrics -----------------------------------------------------------------------------------


def scores(seed: int, *, digits: int | None = None, count: int = 237) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    p_wrong = rng.beta(1.5, 3, count)
    wrong = rng.random(count) < p_wrong**1.3
    return (p_wrong if digits is None else np.round(p_wrong, digits)), wrong


def ece_by_hand(p_wrong: Sequence[float], wrong: Sequence[bool], bins: int) -> float:
    """Written without arrays: rank, cut into nearly equal parts, never between equal probabilities."""
    ranked = sorted(p_wrong)
    size, larger = divmod(len(ranked), min(bins, len(ranked)))
    cuts, at = [], 0
    for number in range(min(bins, len(ranked))):
        cuts.append(ranked[at])
        at += size + (number < larger)
    members: dict[int, list[int]] = {}
    for index, probability in enumerate(p_wrong):
        members.setdefault(max(n for n, cut in enumerate(cuts) if cut <= probability), []).append(index)
    total = 0.0
    for inside in members.values():
        confidence = sum(p_wrong[index] for index in inside) / len(inside)
        share = sum(wrong[index] for index in inside) / len(inside)
        total += len(inside) / len(p_wrong) * abs(confidence - share)
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [None, 2, 1])
def test_metrics_are_scikit_learns(seed: int, digits: int | None) -> None:
    p_wrong, wrong = scores(seed, digits=digits)
    metrics = compute_metrics(p_wrong, wrong)
    assert metrics.n == 237
    assert metrics.wrong == wrong.mean()
    assert metrics.auroc == roc_auc_score(wrong, p_wrong)
    assert metrics.auprc == average_precision_score(wrong, p_wrong)
    assert metrics.brier == pytest.approx(brier_score_loss(wrong, p_wrong))
    assert metrics.ece == pytest.approx(ece_by_hand(p_wrong.tolist(), wrong.tolist(), 10))


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    p_wrong, wrong = scores(0, digits=1, count=60)
    pairs = [(a > b) + 0.5 * (a == b) for a in p_wrong[wrong] for b in p_wrong[~wrong]]
    assert compute_metrics(p_wrong, wrong).auroc == pytest.approx(np.mean(pairs))


def test_ece_of_simple_cases() -> None:
    ten = np.array([True] * 3 + [False] * 7)
    assert expected_calibration_error(np.full(10, 0.3), ten) == pytest.approx(0.0), "ties are one bin"
    assert expected_calibration_error(np.full(10, 0.5), ten) == pytest.approx(0.2)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1.0
    assert expected_calibration_error(np.array([0.25]), np.array([True])) == 0.75


def test_ece_of_equal_scores_does_not_depend_on_the_order() -> None:
    p_wrong, wrong = scores(3, digits=1)
    order = np.random.default_rng(0).permutation(len(wrong))
    assert expected_calibration_error(p_wrong, wrong) == pytest.approx(
        expected_calibration_error(p_wrong[order], wrong[order]), abs=1e-12
    )


@pytest.mark.parametrize("value", [False, True])
def test_labels_of_one_kind_have_no_ranking(value: bool) -> None:
    wrong = np.full(30, value)
    metrics = compute_metrics(np.full(30, 0.25), wrong)
    assert math.isnan(metrics.auroc)
    assert math.isnan(metrics.auprc)
    assert metrics.brier == pytest.approx(0.75**2 if value else 0.25**2)
    assert metrics.ece == pytest.approx(0.75 if value else 0.25)
    assert metrics.wrong == float(value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "activations"])
def test_what_is_not_finite_is_named_before_anything_is_fitted(where: str, value: float) -> None:
    rng = np.random.default_rng(0)
    schema = fitting.schema_for(layers=LAYERS, temperatures=(1.0,))
    arrays = {
        "x": rng.normal(size=(80, schema.size)).astype(np.float32),
        "activations": rng.normal(size=(80, 3, LAYERS, WIDTH)).astype(np.float32),
    }
    arrays[where][7].flat[0] = value
    examples = fitting.Examples(wrong=rng.random(80) < 0.5, dataset=np.full(80, "d"), **arrays)
    with pytest.raises(CalibrationError, match=r"of 1 of 80 answers are not finite.*first of them is answer 8"):
        fitting.fit_model(examples, schema)


def test_activations_that_are_all_the_same_are_named() -> None:
    rng = np.random.default_rng(0)
    schema = fitting.schema_for(layers=LAYERS, temperatures=(1.0,))
    same = np.broadcast_to(rng.normal(size=(3, LAYERS, WIDTH)).astype(np.float32), (80, 3, LAYERS, WIDTH))
    x = rng.normal(size=(80, schema.size)).astype(np.float32)
    examples = fitting.Examples(x, rng.random(80) < 0.5, np.full(80, "d"), same)
    with pytest.raises(CalibrationError, match=r"activations of all answers are the same.*--without activations"):
        fitting.fit_model(examples, schema)


# -- weights ------------------------------------------------------------------------------------


def test_answers_that_stand_for_next_to_none_do_not_count() -> None:
    """Answers with turned labels spoil a calibration, unless each stands for a millionth of an answer."""
    labelled = made(400, seed=3, by_logprob=2.5, by_map=0.0)
    turned = [replace(each, wrong=not each.wrong) for each in made(150, seed=4, by_logprob=2.5, by_map=0.0)]
    splits = splits_of(labelled)
    spoilt = {**splits, "fit": [*splits["fit"], *turned]}
    weighed = {**splits, "fit": [*splits["fit"], *(replace(each, weight=1e-6) for each in turned)]}
    one, other = (fit_scorer(each, run=RUN, data=[], seed=0).metrics["guard"].brier for each in (spoilt, weighed))
    assert other < one - 0.01


def test_equal_weights_of_any_size_are_as_no_weights() -> None:
    labelled = made(300, seed=3, by_logprob=2.5, by_map=0.0)
    heavy = [replace(each, weight=50.0) for each in labelled]
    assert fit(heavy).scorer.sha256 == fit(labelled).scorer.sha256


def test_platt_scaling_counts_an_answer_of_weight_two_as_two() -> None:
    rng = np.random.default_rng(0)
    held_out = rng.normal(size=200)
    wrong = rng.random(200) < 1 / (1 + np.exp(-held_out))
    weights = np.where(np.arange(200) < 50, 2.0, 1.0)
    twice = np.concatenate([np.arange(200), np.arange(50)])
    one, other = platt_scaling(held_out, wrong, weights), platt_scaling(held_out[twice], wrong[twice])
    assert (one.slope, one.intercept) == pytest.approx((other.slope, other.intercept), abs=1e-4)
