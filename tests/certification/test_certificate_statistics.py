"""The risk guarantee holds: simulations with known truth, a second library, and invariants."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from guard.certification.fixed_sequence import (
    GRID_SHARE,
    MIN_ROWS,
    Certified,
    NotCertifiable,
    Trials,
    find_threshold,
    grid,
)
from guard.errors import InputError
from guard.policy.bounds import binomial_cdf, least_accepted, lower_bound, passes, upper_bound

RISKS = st.floats(0.01, 0.9)
CONFIDENCES = st.floats(0.5, 0.99)


def trials(seed: int, n: int, *, sharpness: float = 1.0) -> Trials:
    """Calibrated scores: an answer is wrong with the probability that its score says."""
    rng = np.random.default_rng(seed)
    p_wrong = rng.beta(0.45 * sharpness, 1.0 * sharpness, n)
    return Trials.from_scores(p_wrong, rng.random(n) < p_wrong)


def true_risk(threshold: float, *, sharpness: float = 1.0) -> float:
    """Share of wrong answers below a threshold: E[p | p < t] of the same beta distribution."""
    a, b = 0.45 * sharpness, 1.0 * sharpness
    return float(a / (a + b) * beta.cdf(threshold, a + 1, b) / beta.cdf(threshold, a, b))


# -- the binomial distribution -----------------------------------------------------------------


@given(st.integers(1, 20_000), st.floats(0, 1), st.floats(1e-6, 1 - 1e-6))
def test_the_binomial_distribution_is_scipys(count: int, share: float, rate: float) -> None:
    successes = round(share * count)
    wanted = binom.cdf(successes, count, rate)
    assert binomial_cdf(successes, count, rate) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@given(st.integers(1, 5000), st.floats(0, 1), CONFIDENCES)
def test_the_bound_is_clopper_pearsons(accepted: int, share: float, confidence: float) -> None:
    errors = round(share * accepted)
    wanted = 1.0 if errors == accepted else beta.ppf(confidence, errors + 1, accepted - errors)
    assert upper_bound(errors, accepted, confidence) == pytest.approx(wanted, abs=1e-7)


def test_the_least_accepted_answers_are_the_published_ones() -> None:
    assert [least_accepted(errors, 0.05, 0.9) for errors in range(6)] == [45, 77, 105, 132, 158, 184]


@given(st.integers(0, 30), RISKS, CONFIDENCES)
def test_the_least_accepted_is_the_least(errors: int, risk: float, confidence: float) -> None:
    least = least_accepted(errors, risk, confidence)
    assert passes(errors, least, risk, confidence)
    assert not passes(errors, least - 1, risk, confidence)


# -- thresholds --------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1), min_size=10, max_size=60),
    st.integers(MIN_ROWS, 5000),
    RISKS,
    CONFIDENCES,
    st.one_of(st.just(math.inf), st.floats(0.01, 1)),
)
def test_a_grid_rises_strictly_and_stays_below_its_ceiling(
    scores: list[float], n: int, risk: float, confidence: float, ceiling: float
) -> None:
    thresholds = grid(np.array(scores), n, risk, confidence, ceiling)
    assert (np.diff(thresholds) > 0).all()
    assert ((thresholds > 0) & (thresholds <= 1) & (thresholds < ceiling)).all()


def test_the_grid_begins_where_enough_is_accepted() -> None:
    scores = np.random.default_rng(0).random(200)
    thresholds = grid(scores, 1800, 0.05, 0.9)
    expected = thresholds * 1800  # uniform scores
    assert 0.8 * 1.1 * least_accepted(4, 0.05, 0.9) < expected[0] < 1.3 * 1.1 * least_accepted(4, 0.05, 0.9)
    assert expected[-1] > 0.9 * 1800
    assert 0.0 < grid(scores, 90, 0.05, 0.9)[0] * 90 < 90, "few labels: as early as one error allows"


def test_labels_do_not_move_the_grid_rows() -> None:
    """The rows that give the thresholds are chosen before any label is looked at, and not counted."""
    first = trials(1, 1000)
    flipped = Trials(first.p_wrong, ~first.wrong, first.released)
    for result in (find_threshold(first, risk=0.1, confidence=0.9), find_threshold(flipped, risk=0.1, confidence=0.9)):
        assert (result.n, result.grid_rows) == (900, round(GRID_SHARE * 1000))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(MIN_ROWS, 400), RISKS, CONFIDENCES)
def test_what_is_certified_is_supported_by_its_own_counts(seed: int, n: int, risk: float, confidence: float) -> None:
    given_trials = trials(seed, n)
    result = find_threshold(given_trials, risk=risk, confidence=confidence, seed=seed)
    assert result == find_threshold(given_trials, risk=risk, confidence=confidence, seed=seed), "repeatable"
    if isinstance(result, Certified):
        assert passes(result.errors, result.accepted, risk, confidence)
        assert result.errors / result.accepted <= result.bound <= risk + 1e-9
        assert 0 < result.threshold <= 1
        assert result.coverage == result.accepted / result.n
    else:
        assert result.possible_risk is None or risk < result.possible_risk < 1
        assert result.labels_needed is None or result.labels_needed >= n
        assert 0 <= result.best_error_rate <= 1


@given(st.floats(0.05, 0.95))
def test_no_threshold_reaches_the_ceiling(ceiling: float) -> None:
    result = find_threshold(trials(3, 400), risk=0.4, confidence=0.9, ceiling=ceiling)
    assert isinstance(result, NotCertifiable) or result.threshold < ceiling


# -- the guarantee -------------------------------------------------------------------------------


@pytest.mark.parametrize(("risk", "confidence", "sharpness"), [(0.05, 0.9, 1.0), (0.1, 0.8, 1.0), (0.3, 0.9, 4.0)])
def test_the_guarantee_is_violated_as_rarely_as_stated(risk: float, confidence: float, sharpness: float) -> None:
    draws, broken = 250, 0
    for seed in range(draws):
        drawn = trials(seed, 600, sharpness=sharpness)
        result = find_threshold(drawn, risk=risk, confidence=confidence, seed=seed, estimate=False)
        if isinstance(result, Certified):
            broken += true_risk(result.threshold, sharpness=sharpness) > risk
    # With a true rate of 1 - confidence, more would be seen in one of a thousand runs of this test.
    assert broken <= binom.ppf(0.999, draws, 1 - confidence)


def test_worthless_scores_certify_nothing_more_often_than_stated() -> None:
    """The guarantee needs no good score: here scores and labels have nothing to do with one another."""
    certified = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        worthless = Trials.from_scores(rng.random(300), rng.random(300) < 0.11)
        certified += isinstance(
            find_threshold(worthless, risk=0.1, confidence=0.9, seed=seed, estimate=False), Certified
        )
    assert certified <= binom.ppf(0.999, 150, 0.1)


def test_the_naive_threshold_violates_the_same_guarantee_half_of_the_time() -> None:
    """Why all this is needed: the laxest threshold whose observed error rate is low enough."""
    broken = 0
    for seed in range(200):
        drawn = trials(seed, 600)
        order = np.argsort(drawn.p_wrong[:, 0])
        rates = np.cumsum(drawn.wrong[order, 0]) / np.arange(1, 601)
        last = np.flatnonzero(rates <= 0.05)
        broken += bool(len(last)) and true_risk(float(drawn.p_wrong[order[last[-1]], 0])) > 0.05
    assert broken / 200 > 0.35


def test_coverage_comes_near_the_oracles() -> None:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if true_risk(middle) <= 0.05 else (low, middle)
    oracle = beta.cdf(low, 0.45, 1.0)
    reached = []
    for seed in range(60):
        result = find_threshold(trials(seed, 2000), risk=0.05, confidence=0.9, seed=seed, estimate=False)
        reached.append(beta.cdf(result.threshold, 0.45, 1.0) if isinstance(result, Certified) else 0.0)
    assert np.mean(reached) > 0.8 * oracle


# -- a second library --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Fixed sequence testing requires")
@pytest.mark.parametrize("seed", range(6))
def test_mapie_takes_the_same_walk(seed: int) -> None:
    """MAPIE's fixed-sequence controller on the same rows and thresholds: same p-values, same deployed one."""
    risk_control = pytest.importorskip("mapie.risk_control")
    drawn, risk, confidence = trials(seed, 1500), 0.1, 0.9
    ours = find_threshold(drawn, risk=risk, confidence=confidence, seed=seed)
    order = np.random.default_rng(seed).permutation(1500)
    fresh = drawn.take(order[150:])
    thresholds = grid(drawn.take(order[:150]).scores, len(fresh), risk, confidence)
    controller = risk_control.BinaryClassificationController(
        # Accepting is the positive class: MAPIE predicts it where its probability reaches a parameter.
        predict_function=lambda p_wrong: np.column_stack([p_wrong, -p_wrong]),
        risk="precision",
        target_level=1 - risk,
        confidence_level=confidence,
        best_predict_param_choice="recall",
        list_predict_params=np.nextafter(-thresholds, 1.0),
        fwer_method="fixed_sequence",
    )
    controller.calibrate(fresh.p_wrong[:, 0], (~fresh.wrong[:, 0]).astype(int))
    accepted, errors = np.array([fresh.at(threshold) for threshold in thresholds]).T
    wanted = np.array([binomial_cdf(k, m, risk) for k, m in zip(errors.tolist(), accepted.tolist(), strict=True)])
    theirs = controller.p_values[:, 0]
    # MAPIE computes 1 - precision in floating point and rounds the errors up: now and then one too many.
    one_more = [binomial_cdf(k + 1, m, risk) for k, m in zip(errors.tolist(), accepted.tolist(), strict=True)]
    assert (theirs >= wanted * (1 - 1e-6)).all()
    assert (theirs <= np.array(one_more) * (1 + 1e-6)).all()
    assert np.isclose(theirs, wanted, rtol=1e-6).mean() > 0.5
    valid = risk_control.fwer_control.control_fwer(wanted, 1 - confidence, "fixed_sequence")
    assert isinstance(ours, Certified) == bool(len(valid))
    if isinstance(ours, Certified):
        assert thresholds[valid[-1]] == ours.threshold
        assert ours.tested == min(len(valid) + 1, len(thresholds))


# -- when nothing can be certified -------------------------------------------------------------


def test_a_hopeless_model_is_not_certifiable() -> None:
    rng = np.random.default_rng(0)
    result = find_threshold(Trials.from_scores(rng.random(500), rng.random(500) < 0.4), risk=0.05, confidence=0.9)
    assert isinstance(result, NotCertifiable)
    assert result.labels_needed is None
    assert result.hopeless
    assert result.possible_risk is not None
    assert 0.3 < result.possible_risk < 0.8
    assert "No number of labels would suffice" in result.explain()
    assert "a risk of 5 %" in result.explain()


def test_too_few_labels_are_refused_with_how_many_would_do_and_these_do() -> None:
    few = find_threshold(trials(0, 60), risk=0.05, confidence=0.9)
    assert isinstance(few, NotCertifiable)
    assert few.labels_needed is not None
    assert f"A fresh set of about {few.labels_needed:,} would likely pass at 5 %" in few.explain()
    enough = [
        isinstance(find_threshold(trials(seed, few.labels_needed), risk=0.05, confidence=0.9), Certified)
        for seed in range(1, 31)
    ]
    assert np.mean(enough) > 0.5


def flat(seed: int, n: int) -> Trials:
    """Scores that say little: 5 to 15 % of the answers are wrong at any score."""
    rng = np.random.default_rng(seed)
    p_wrong = rng.random(n)
    return Trials.from_scores(p_wrong, rng.random(n) < 0.05 + 0.1 * p_wrong)


@pytest.mark.parametrize("make", [trials, flat])
@pytest.mark.parametrize(("n", "risk"), [(45, 0.1), (113, 0.1), (113, 0.2), (300, 0.1)])
def test_the_estimated_number_of_labels_suffices_for_answers_like_these(make: Any, n: int, risk: float) -> None:
    """Before, it looked at one threshold alone, which the sequence often does not reach: 39 of 100 draws passed."""
    passed, drawn = 0, 0
    for seed in range(8):
        given = make(seed, n)
        result = find_threshold(given, risk=risk, confidence=0.9, seed=seed)
        if isinstance(result, Certified) or result.labels_needed is None or result.labels_needed > 3000:
            continue
        rng = np.random.default_rng(100 + seed)
        for _ in range(15):
            again = given.take(rng.integers(0, n, result.labels_needed))
            found = find_threshold(again, risk=risk, confidence=0.9, seed=seed, estimate=False)
            passed, drawn = passed + isinstance(found, Certified), drawn + 1
    assert drawn >= 15
    assert passed / drawn >= 0.7, "four in five, less what chance may do"


def test_the_refusal_says_of_each_figure_what_it_holds_for() -> None:
    """Before, labels could "certify 32 %" while "about 120 labels would likely suffice" for 10 %, with 113."""
    refused = find_threshold(trials(5, 60), risk=0.05, confidence=0.9)
    assert isinstance(refused, NotCertifiable)
    labels, bound = refused.labels_needed, refused.needed_bound
    assert labels is not None
    assert bound > 0.05 > refused.needed_errors / refused.needed_accepted
    said = refused.explain()
    assert "smallest risk that these same labels pass is" in said
    assert f"A fresh set of about {labels:,} would likely pass at 5 % if all answers are like these" in said
    assert f"wrong in {refused.needed_errors} of {refused.needed_accepted} cases" in said
    assert "That is uncertain: up to 10.97 % of the best may be wrong." in said


def test_the_documented_refusal_is_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "certificates.md"
    refused = find_threshold(trials(5, 220), risk=0.05, confidence=0.9)
    assert isinstance(refused, NotCertifiable)
    assert refused.explain() in " ".join(page.read_text("utf-8").split())


@pytest.mark.parametrize("n", [20, 46, 47, 99, 100, 450])
@pytest.mark.parametrize("seed", range(3))
def test_more_labels_are_named_than_there_were(n: int, seed: int) -> None:
    """46 labels that did not suffice are no hint to take about 46."""
    result = find_threshold(trials(seed, n), risk=0.02, confidence=0.95)
    assert isinstance(result, NotCertifiable)
    if result.labels_needed is not None:
        assert result.labels_needed > n


def test_few_labels_do_not_show_that_no_number_would_do() -> None:
    """One wrong answer of 20 is no more than 5 % and as little a proof of more."""
    wrong = np.zeros(20, np.bool_)
    wrong[3] = True
    result = find_threshold(Trials.from_scores(np.full(20, 0.5), wrong), risk=0.05, confidence=0.9)
    assert isinstance(result, NotCertifiable)
    assert (result.labels_needed, result.hopeless) == (None, False)
    assert "More labels may or may not suffice" in result.explain()
    assert "No number" not in result.explain()


def test_a_low_confidence_does_not_show_either_that_no_number_would_do() -> None:
    """8 wrong of 20 are more than 35 % with a confidence of one half, and with little more."""
    result = find_threshold(Trials.from_scores(np.full(20, 0.5), np.arange(20) < 8), risk=0.35, confidence=0.5)
    assert isinstance(result, NotCertifiable)
    assert lower_bound(8, 20, 0.5) > 0.35
    assert not result.hopeless


@pytest.mark.parametrize("score", [-math.inf, -0.001, 1.001, math.nan])
def test_scores_that_are_no_probabilities_are_refused(score: float) -> None:
    with pytest.raises(InputError, match="not a probability"):
        Trials.from_scores([0.1, score, math.inf], [False, True, True])


@pytest.mark.parametrize("score", [0.0, 1e-13, 0.3, 0.999])
def test_where_all_scores_are_equal_the_estimate_is_true(score: float) -> None:
    """A threshold just above the one score accepts everything: it is certified where the error rate is low enough."""
    wrong = np.arange(100) < 2
    refused = find_threshold(Trials.from_scores(np.full(100, score), wrong), risk=0.05, confidence=0.9)
    assert isinstance(refused, NotCertifiable)
    assert refused.labels_needed is not None
    assert "would likely pass" in refused.explain()
    certified = 0
    for seed in range(40):
        more = np.random.default_rng(seed).random(refused.labels_needed) < 0.02
        found = find_threshold(Trials.from_scores(np.full(len(more), score), more), risk=0.05, confidence=0.9)
        if isinstance(found, Certified):
            certified += 1
            assert (found.accepted, found.coverage) == (found.n, 1.0)
    assert certified >= 28, "80 % of the sets, less what chance takes"


def test_scores_of_1_are_never_accepted_and_no_number_is_guaranteed() -> None:
    result = find_threshold(Trials.from_scores(np.ones(400), np.zeros(400, np.bool_)), risk=0.05, confidence=0.9)
    assert isinstance(result, NotCertifiable)
    assert (result.labels_needed, result.possible_risk) == (None, None)
    assert "would likely" not in result.explain()


def test_a_threshold_accepts_the_answers_that_share_the_score_where_it_is_placed() -> None:
    """Two scores: the guarantee is met at the lower one, which half of the answers have."""
    rng = np.random.default_rng(0)
    scores = rng.choice([0.2, 0.6], 1000)
    wrong = rng.random(1000) < np.where(scores < 0.5, 0.01, 0.4)
    found = find_threshold(Trials.from_scores(scores, wrong), risk=0.05, confidence=0.9)
    assert isinstance(found, Certified)
    assert 0.2 < found.threshold < 0.6
    assert found.accepted > 400


def test_with_tied_scores_the_guarantee_is_violated_as_rarely_as_stated() -> None:
    violated = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        tied = Trials.from_scores(rng.choice([0.1, 0.2, 0.3], 300), rng.random(300) < 0.055)
        violated += isinstance(find_threshold(tied, risk=0.05, confidence=0.9, estimate=False), Certified)
    assert violated <= binom.ppf(0.9999, 400, 0.1)


@pytest.mark.parametrize(("errors", "accepted"), [(0, 10), (1, 19), (5, 50), (10, 10)])
def test_the_lower_bound_is_scipys(errors: int, accepted: int) -> None:
    beta = pytest.importorskip("scipy.stats").beta
    expected = beta.ppf(0.1, errors, accepted - errors + 1) if errors else 0.0
    assert lower_bound(errors, accepted, 0.9) == pytest.approx(expected, abs=1e-9)


def test_the_possible_risk_is_certified_by_the_same_labels() -> None:
    drawn = trials(0, 300, sharpness=4.0)
    result = find_threshold(drawn, risk=0.02, confidence=0.9)
    assert isinstance(result, NotCertifiable)
    assert result.possible_risk is not None
    assert isinstance(find_threshold(drawn, risk=result.possible_risk, confidence=0.9), Certified)


def test_where_every_answer_is_wrong_no_risk_is_possible() -> None:
    rng = np.random.default_rng(0)
    result = find_threshold(Trials.from_scores(rng.random(100), np.ones(100, np.bool_)), risk=0.05, confidence=0.9)
    assert isinstance(result, NotCertifiable)
    assert (result.possible_risk, result.labels_needed, result.best_error_rate) == (None, None, 1.0)


# -- several attempts --------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0, 1))
def test_at_a_threshold_the_first_attempt_below_it_counts(seed: int, attempts: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    made = rng.integers(1, attempts + 1, 30)[:, None] > np.arange(attempts)
    several = Trials(
        np.where(made, rng.random(made.shape), np.inf), rng.random(made.shape) < 0.5, rng.random(made.shape) < 0.1
    )
    accepted = errors = 0
    for scores, wrong, released in zip(several.p_wrong, several.wrong, several.released, strict=True):
        for score, is_wrong, is_released in zip(scores, wrong, released, strict=True):
            if score < threshold or is_released:
                accepted, errors = accepted + 1, errors + bool(is_wrong)
                break
    assert several.at(threshold) == (accepted, errors)


def test_retrying_selects_lucky_answers_and_the_procedures_certificate_knows() -> None:
    """A score that is right about first answers and blind to retries: only the whole procedure tells."""

    def drawn(seed: int, n: int) -> Trials:
        first, rng = trials(seed, n), np.random.default_rng([seed, 1])
        second = rng.random((n, 1)) * 0.5  # a low score whatever the answer is worth
        scores = np.hstack([first.p_wrong, second])
        wrong = np.hstack([first.wrong, rng.random((n, 1)) < 0.5])
        return Trials(scores, wrong, np.zeros_like(wrong))

    broken_alone = broken_whole = 0
    for seed in range(40):
        labels, truth = drawn(seed, 800), drawn(seed + 1000, 20_000)
        alone = Trials(labels.p_wrong[:, :1], labels.wrong[:, :1], labels.released[:, :1])
        for kind, given_trials in (("alone", alone), ("whole", labels)):
            result = find_threshold(given_trials, risk=0.1, confidence=0.9, seed=seed, estimate=False)
            if isinstance(result, Certified):
                accepted, errors = truth.at(result.threshold)
                broke = errors / accepted > 0.1
                broken_alone += broke and kind == "alone"
                broken_whole += broke and kind == "whole"
    assert broken_alone > 30
    assert broken_whole <= binom.ppf(0.999, 40, 0.1)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("risk", "confidence", "words"),
    [
        (5, 0.9, "0.05 for 5 %"),
        (0, 0.9, "risk"),
        (math.nan, 0.9, "risk"),
        (0.05, 90, "0.9 for 90 %"),
        (0.05, 0.4, "0.5"),
    ],
)
def test_guarantees_that_cannot_be_given(risk: float, confidence: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_threshold(trials(0, 100), risk=risk, confidence=confidence)


def test_trials_that_are_none() -> None:
    with pytest.raises(InputError, match="at least 20"):
        find_threshold(trials(0, 19), risk=0.1, confidence=0.9)
    with pytest.raises(InputError, match="not a probability"):
        Trials.from_scores([0.1, 1.5], [True, False])
    with pytest.raises(InputError, match="not a probability"):
        Trials.from_scores([0.1, math.nan], [True, False])
    with pytest.raises(InputError, match="one shape"):
        Trials.from_scores([0.1, 0.2], [True])


# -- what the documentation says ---------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def test_the_documented_measurement_is_the_recorded_one_and_the_guarantee_held() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "risk-guarantee-smollm2.json").read_text())
    told = (ROOT / "docs" / "how-to" / "certificates.md").read_text(encoding="utf-8")
    assert len(recorded["results"]) > 1
    for row in recorded["results"]:
        low, high = row["broken_interval"]
        cells = [
            f"{row['risk']:.0%}",
            f"{row['broken']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{row['naive_broken']:.0%}",
            f"{row['certified']:.0%}",
            f"{row['coverage']:.3f}",
            f"{row['oracle']:.3f}",
            f"{row['share_of_oracle']:.0%}",
        ]
        assert "| " + " | ".join(cells).replace("%", " %") + " |" in told
        assert row["draws"] == 1000
        assert low <= 1 - row["confidence"]
        assert row["mapie_agrees"] == 1.0
