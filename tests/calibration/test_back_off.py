"""guard's own score backs off from the layers where an input is out of distribution, if held-out sets say so."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "support"))
pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from scripted import scripted_model, tiny_artefact

from guard.calibration.back_off import CANDIDATE, choose_back_off, held_out_ood_scores
from guard.calibration.fitting import Examples, FittedModel, fit_model, schema_for
from guard.errors import ScorerError
from guard.records import Signals, Signature
from guard.scores import ScoreName
from guard.scoring.ood import fit_ood_to_activations
from guard.scoring.scorer import Scorer, load_scorer, parse_scorer, to_log_odds
from guard.scoring.scorer_file import BackOff, Calibration, LinearProbe, Model

FAR_ONLY = BackOff(start=0.9, most=0.5)
LAYERS, WIDTH, PER_SET = 10, 48, 100
SETS = ("a", "b", "c", "d", "e", "far")
NEAR = SETS[:-1]


def examples(*, reversed_far_out: bool, per_set: int = PER_SET, sets: tuple[str, ...] = SETS) -> Examples:
    """Answers of which the layers know much, and the log-probabilities a little; one set lies far off.

    Args:
        reversed_far_out: whether the layers mean the opposite in the far set.
    """
    rng = np.random.default_rng(3)
    dataset = np.repeat(np.array(sets), per_set)
    wrong = rng.random(len(dataset)) < 0.5
    sign = np.where(wrong, 1.0, -1.0)
    schema = schema_for(layers=LAYERS, temperatures=(1.0,))
    x = np.zeros((len(wrong), schema.size), np.float32)
    x[:, 0] = sign + 1.5 * rng.normal(size=len(wrong))
    activations = rng.normal(size=(len(wrong), 3, LAYERS, WIDTH)) * 0.3
    activations[..., 0] += 1.0
    far = dataset == "far"
    activations[far, :, :, 1] += 4.0
    meaning = np.where(far & reversed_far_out, -sign, sign)
    activations[..., 2] += 0.4 * meaning[:, None, None]
    return Examples(x, wrong, dataset, activations.astype(np.float16))


def fitted_scores(answers: Examples) -> dict[ScoreName, FittedModel]:
    schema, without = schema_for(layers=LAYERS, temperatures=(1.0,)), ("map", "norms")
    return {
        "guard": fit_model(answers, schema, without=without),
        "log-probabilities": fit_model(answers, schema, score="log-probabilities"),
    }


@pytest.fixture(scope="module")
def misled() -> Examples:
    return examples(reversed_far_out=True)


@pytest.fixture(scope="module")
def scores(misled: Examples) -> dict[ScoreName, FittedModel]:
    return fitted_scores(misled)


# -- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_the_far_set", "chosen"), [(-4.0, CANDIDATE), (2.0, None)], ids=["misled", "right"])
def test_the_score_backs_off_where_its_loss_falls_on_held_out_answers(
    misled: Examples, scores: dict[ScoreName, FittedModel], on_the_far_set: float, chosen: BackOff | None
) -> None:
    sign, far = np.where(misled.wrong, 1.0, -1.0), misled.dataset == "far"
    own = replace(scores["guard"], held_out=sign * np.where(far, on_the_far_set, 2.0))
    other = replace(scores["log-probabilities"], held_out=sign)
    both: dict[ScoreName, FittedModel] = {"guard": own, "log-probabilities": other}
    assert choose_back_off(misled, both, seed=0) == chosen
    assert choose_back_off(misled, both, without=["logprob"], seed=0) is None


def test_layers_that_know_much_everywhere_are_trusted_everywhere() -> None:
    answers = examples(reversed_far_out=False)
    assert choose_back_off(answers, fitted_scores(answers), seed=0) is None


def test_a_set_that_is_held_out_is_far_from_the_others(misled: Examples) -> None:
    found = held_out_ood_scores(misled, 0)
    far = misled.dataset == "far"
    assert np.median(found[far]) > 0.9
    assert 0.3 < np.median(found[~far]) < 0.8


def test_without_probe_log_probabilities_or_sets_there_is_none(
    misled: Examples, scores: dict[ScoreName, FittedModel]
) -> None:
    without_probe = replace(scores["guard"], model=scores["guard"].model.model_copy(update={"probe": None}))
    assert choose_back_off(misled, {**scores, "guard": without_probe}, seed=0) is None
    assert choose_back_off(misled, {"guard": scores["guard"]}, seed=0) is None
    assert choose_back_off(misled, {"log-probabilities": scores["log-probabilities"]}, seed=0) is None
    one_set = replace(misled, dataset=np.full(len(misled), "a"))
    assert choose_back_off(one_set, scores, seed=0) is None


def test_too_few_answers_for_a_detector_are_enough_for_a_scorer() -> None:
    answers = examples(reversed_far_out=True, per_set=12)
    assert choose_back_off(answers, fitted_scores(answers), seed=0) is None


def test_held_out_log_odds_are_of_models_that_have_not_seen_the_answers(
    misled: Examples, scores: dict[ScoreName, FittedModel]
) -> None:
    """On the far set the score of other sets is misled; one that had seen it would not be."""
    far = misled.dataset == "far"
    sure_and_wrong = (scores["guard"].held_out[far] > 0) != misled.wrong[far]
    assert sure_and_wrong.mean() > 0.5
    assert ((scores["guard"].held_out[~far] > 0) == misled.wrong[~far]).mean() > 0.8


# -- the score ---------------------------------------------------------------------------------


def signals_at(place: float) -> Signals:
    one = np.full(1, -1.0, np.float32)
    activations = np.ones((3, LAYERS, WIDTH), np.float32)
    activations[..., 1] += place + np.linspace(0, 0.1, LAYERS)
    maps = np.zeros((1, 4, LAYERS, LAYERS), np.float32)
    norms = np.zeros((4, LAYERS), np.float32)
    return Signals(one, one, one, Signature(maps, norms, activations, (1.0,), ("first", "last", "mean", "max"), 1))


def backing_off(**changes: Any) -> Scorer:
    """A scorer whose probe adds to the log-odds, and that knows answers near a place of the layers only."""
    rng = np.random.default_rng(0)
    usual = signals_at(0.0).signature.activations
    noisy = [usual + 0.2 * rng.normal(size=usual.shape).astype(np.float32) for _ in range(200)]
    artefact = tiny_artefact(replace(scripted_model(), layers=LAYERS, width=WIDTH))
    probe = LinearProbe.from_array(np.full((3, LAYERS, WIDTH), 0.01, np.float32))
    base = artefact.scores["guard"].base
    own = Model(base=base, probe=probe, trees=None, calibration=Calibration(slope=1.0, intercept=0.0))
    update = {
        "scores": {**artefact.scores, "guard": own},
        "ood_detector": fit_ood_to_activations(noisy[:80], noisy[80:]).stored(),
        "back_off": FAR_ONLY,
    }
    return Scorer(artefact.model_copy(update={**update, **changes}))


def test_far_out_the_log_odds_are_mixed_and_near_they_are_not() -> None:
    plain, mixed = backing_off(back_off=None), backing_off()
    near, far = signals_at(0.0), signals_at(9.0)
    assert mixed.score(near).ood_score < FAR_ONLY.start  # type: ignore[operator]
    assert mixed.score(near).p_wrong == plain.score(near).p_wrong
    before, after = plain.score(far), mixed.score(far)
    assert after.ood_score is not None
    assert after.ood_score > 0.98
    own, other = (to_log_odds(before.scores[name].p_wrong) for name in ("guard", "log-probabilities"))
    assert own - other > 0.5
    share = 0.5 * (after.ood_score - 0.9) / 0.1
    assert to_log_odds(after.p_wrong) == pytest.approx((1 - share) * own + share * other)
    assert after.scores["log-probabilities"] == before.scores["log-probabilities"]
    assert "out-of-distribution score" in after.scores["guard"].reads
    assert "out-of-distribution score" not in before.scores["guard"].reads


def test_a_scorer_that_gives_one_score_only_still_backs_off() -> None:
    scorer, far = backing_off(), signals_at(9.0)
    assert scorer.giving("guard").score(far).p_wrong == scorer.score(far).p_wrong
    assert scorer.giving("log-probabilities").score(far).scores.keys() == {"log-probabilities"}


def test_the_file_keeps_it_and_older_files_have_none(tmp_path: Path) -> None:
    backing_off().save(tmp_path / "scorer.json")
    assert load_scorer(tmp_path / "scorer.json").artefact.back_off == FAR_ONLY
    backing_off(back_off=None).save(tmp_path / "plain.json")
    assert "back_off" not in json.loads((tmp_path / "plain.json").read_text("utf-8"))


@pytest.mark.parametrize("missing", ["ood_detector", "log-probabilities"])
def test_a_file_with_a_back_off_that_cannot_work_is_refused(missing: str, tmp_path: Path) -> None:
    scorer = backing_off()
    scores = {name: each for name, each in scorer.artefact.scores.items() if name != missing}
    changes = {"scores": scores} | ({"ood_detector": None} if missing == "ood_detector" else {})
    Scorer(scorer.artefact.model_copy(update=changes), calibrated=False).save(tmp_path / "scorer.json")
    with pytest.raises(ScorerError, match="back-off lacks"):
        parse_scorer((tmp_path / "scorer.json").read_bytes())


@pytest.mark.parametrize("changes", [{"start": 1.0}, {"most": 0.0}, {"most": 1.1}, {"start": -0.1}])
def test_numbers_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"less|greater"):
        BackOff(**{"start": 0.9, "most": 0.5, **changes})
