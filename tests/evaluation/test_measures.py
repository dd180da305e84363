"""Measures against scikit-learn, brute force over orders, and hand arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("sklearn")

from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from guard.errors import InputError
from guard.evaluation.measures import (
    AUGRC,
    AUPRC_RIGHT,
    AUPRC_WRONG,
    AURC,
    AUROC,
    BRIER,
    E_AURC,
    ECE,
    EQUAL_WIDTH_ECE,
    HALF_PRR,
    MEASURES,
    PRR,
    Measure,
    coverage_at,
    measure_named,
    reliability,
    risk_at,
    risk_curve,
)
from guard.scoring.metrics import Labels, Probabilities, Ranked, compute_metrics

#: Scores from a few values, so that most draws of them have ties, with labels of both kinds.
SCORED = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=7).filter(
    lambda rows: len({wrong for _, wrong in rows}) == 2
)


def arrays(rows: list[tuple[int, bool]]) -> tuple[Probabilities, Labels]:
    return np.array([score / 5 for score, _ in rows]), np.array([wrong for _, wrong in rows])


def scores(seed: int, *, digits: int = 3, count: int = 211) -> tuple[Probabilities, Labels]:
    rng = np.random.default_rng(seed)
    wrong = rng.random(count) < 0.35
    return np.round(1 / (1 + np.exp(-rng.normal(1.2 * wrong - 0.8, 1.0))), digits), wrong


def risks(wrong: list[bool]) -> list[float]:
    """Share wrong among the first k answers, for every k."""
    return [sum(wrong[:k]) / k for k in range(1, len(wrong) + 1)]


def over_orders(p_wrong: Probabilities, wrong: Labels, value: Callable[[list[bool]], float]) -> float:
    """Mean of a value over all orders of the answers that sort their scores."""
    found = []
    for order in itertools.permutations(range(len(wrong))):
        ranked = [float(p_wrong[index]) for index in order]
        if ranked == sorted(ranked):
            found.append(value([bool(wrong[index]) for index in order]))
    return math.fsum(found) / len(found)


# -- a second route ----------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 2, 9])
@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_agrees(seed: int, digits: int) -> None:
    p_wrong, wrong = scores(seed, digits=digits)
    assert AUROC.value(p_wrong, wrong) == pytest.approx(roc_auc_score(wrong, p_wrong))
    assert AUPRC_WRONG.value(p_wrong, wrong) == pytest.approx(average_precision_score(wrong, p_wrong))
    assert AUPRC_RIGHT.value(p_wrong, wrong) == pytest.approx(average_precision_score(~wrong, -p_wrong))
    assert BRIER.value(p_wrong, wrong) == pytest.approx(brier_score_loss(wrong, p_wrong))


def test_scikit_learns_calibration_curve_agrees() -> None:
    """With equally many answers in each bin, which its quantiles give where bins divide the answers."""
    p_wrong, wrong = scores(0, digits=12, count=200)
    share, mean = calibration_curve(wrong, p_wrong, n_bins=10, strategy="quantile")
    assert ECE.value(p_wrong, wrong) == pytest.approx(np.abs(share - mean).mean())
    assert [each.wrong for each in reliability(p_wrong, wrong)] == pytest.approx(share.tolist())


def test_calibrations_table_agrees() -> None:
    p_wrong, wrong = scores(1, digits=2)
    table = compute_metrics(p_wrong, wrong)
    assert table.auroc == pytest.approx(AUROC.value(p_wrong, wrong))
    assert table.auprc == pytest.approx(AUPRC_WRONG.value(p_wrong, wrong))
    assert table.brier == pytest.approx(BRIER.value(p_wrong, wrong))
    assert table.ece == ECE.value(p_wrong, wrong)


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_aurc_is_the_mean_over_the_orders_of_ties(rows: list[tuple[int, bool]]) -> None:
    p_wrong, wrong = arrays(rows)
    mean = over_orders(p_wrong, wrong, lambda ordered: math.fsum(risks(ordered)) / len(ordered))
    assert AURC.value(p_wrong, wrong) == pytest.approx(mean)


@settings(max_examples=60, deadline=None)
@given(SCORED, st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]))
def test_risk_at_coverage_is_the_mean_over_the_orders_of_ties(rows: list[tuple[int, bool]], coverage: float) -> None:
    p_wrong, wrong = arrays(rows)
    k = math.ceil(round(coverage * len(rows), 9))
    mean = over_orders(p_wrong, wrong, lambda ordered: risks(ordered)[k - 1])
    assert risk_at(coverage).value(p_wrong, wrong) == pytest.approx(mean)
    assert risk_curve(p_wrong, wrong, np.array([coverage])) == pytest.approx([mean])


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_excess_and_ratio_come_from_the_best_and_the_mean_order(rows: list[tuple[int, bool]]) -> None:
    """The oracle is the best of all orders; random rejection is their mean, whatever their scores."""
    p_wrong, wrong = arrays(rows)
    every = [math.fsum(risks(list(order))) / len(rows) for order in itertools.permutations(wrong.tolist())]
    oracle, random = min(every), math.fsum(every) / len(every)
    own = AURC.value(p_wrong, wrong)
    assert E_AURC.value(p_wrong, wrong) == pytest.approx(own - oracle)
    assert PRR.value(p_wrong, wrong) == pytest.approx((random - own) / (random - oracle))


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_the_generalised_risk_is_the_mean_over_the_orders_of_ties(rows: list[tuple[int, bool]]) -> None:
    p_wrong, wrong = arrays(rows)
    n = len(rows)
    mean = over_orders(p_wrong, wrong, lambda ordered: math.fsum(sum(ordered[:k]) / n for k in range(1, n + 1)) / n)
    assert AUGRC.value(p_wrong, wrong) == pytest.approx(mean)


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_rejection_to_one_half_looks_at_the_curve_from_half_of_the_answers_on(rows: list[tuple[int, bool]]) -> None:
    p_wrong, wrong = arrays(rows)
    begin = math.ceil(len(rows) / 2)

    def half(ordered: list[bool]) -> float:
        return math.fsum(risks(ordered)[begin - 1 :]) / (len(rows) - begin + 1)

    every = [half(list(order)) for order in itertools.permutations(wrong.tolist())]
    oracle, random = min(every), math.fsum(every) / len(every)
    own = over_orders(p_wrong, wrong, half)
    assert HALF_PRR.value(p_wrong, wrong) == pytest.approx((random - own) / (random - oracle))


@pytest.mark.parametrize("digits", [1, 12])
def test_scikit_learns_calibration_curve_agrees_on_bins_of_equal_width(digits: int) -> None:
    p_wrong, wrong = scores(0, digits=digits, count=200)
    p_wrong = np.clip(p_wrong + 0.003, 0, 1)  # no score on an edge, where the two round differently
    share, mean = calibration_curve(wrong, p_wrong, n_bins=10, strategy="uniform")
    counts = np.histogram(p_wrong, bins=np.linspace(0, 1, 11))[0]
    expected = (np.abs(share - mean) * counts[counts > 0]).sum() / len(wrong)
    assert EQUAL_WIDTH_ECE.value(p_wrong, wrong) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(SCORED, st.sampled_from([0.05, 0.2, 0.5]))
def test_coverage_at_risk_is_the_best_threshold(rows: list[tuple[int, bool]], risk: float) -> None:
    p_wrong, wrong = arrays(rows)
    accepted = [wrong[p_wrong <= threshold] for threshold in p_wrong]
    best = max((len(each) / len(rows) for each in accepted if each.mean() <= risk), default=0.0)
    assert coverage_at(risk).value(p_wrong, wrong) == best


def test_small_cases_by_hand() -> None:
    p_wrong, wrong = np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, True, False, True])
    assert AUROC.value(p_wrong, wrong) == 0.75
    assert AURC.value(p_wrong, wrong) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert E_AURC.value(p_wrong, wrong) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 - 1 / 3 - 1 / 2) / 4)
    assert AUPRC_WRONG.value(p_wrong, wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert AUPRC_RIGHT.value(p_wrong, wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert coverage_at(0.05).value(p_wrong, wrong) == 0.25
    assert coverage_at(0.4).value(p_wrong, wrong) == 0.75
    assert risk_at(0.5).value(p_wrong, wrong) == 0.5
    assert BRIER.value(p_wrong, wrong) == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)


def test_a_threshold_does_not_part_equal_scores() -> None:
    assert coverage_at(0.5).value(np.full(4, 0.3), np.array([True, True, True, False])) == 0.0
    assert coverage_at(0.29).value(np.full(100, 0.3), np.arange(100) < 29) == 1.0, "29 of 100 are 0.29"


# -- invariants of all -------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_counts_are_repetitions(measure: Measure) -> None:
    """A row of counts gives what the answers would give, each repeated by its count."""
    p_wrong, wrong = scores(2, digits=2, count=60)
    counts = np.random.default_rng(0).integers(0, 4, size=(5, 60)).astype(np.int32)
    together = measure.function(Ranked.from_scores(p_wrong, wrong, counts=counts))
    apart = [measure.value(np.repeat(p_wrong, row), np.repeat(wrong, row)) for row in counts]
    assert together == pytest.approx(apart)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_order_of_answers_does_not_matter(measure: Measure) -> None:
    p_wrong, wrong = scores(3, digits=1)
    shuffled = np.random.default_rng(0).permutation(len(wrong))
    assert measure.value(p_wrong[shuffled], wrong[shuffled]) == pytest.approx(measure.value(p_wrong, wrong))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_knowing_the_labels_is_better_than_a_constant_in_the_named_direction(measure: Measure) -> None:
    wrong = scores(4)[1]
    knowing = measure.value(wrong.astype(float), wrong)
    constant = measure.value(np.full(len(wrong), 0.6), wrong)
    assert measure.sign * (knowing - constant) > 0


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_measure_says_what_it_is(measure: Measure) -> None:
    assert measure.meaning.endswith(".")
    assert measure.unit
    assert measure.source
    assert measure_named(measure.name) is measure


@pytest.mark.parametrize("measure", [AUROC, PRR], ids=lambda measure: measure.name)
def test_guessing_is_worth_nothing(measure: Measure) -> None:
    constant = measure.value(np.full(40, 0.2), np.arange(40) % 3 == 0)
    assert constant == pytest.approx(0.5 if measure is AUROC else 0.0)


@pytest.mark.parametrize("kind", [True, False])
def test_ranking_measures_are_undefined_where_one_kind_is_missing(kind: bool) -> None:
    p_wrong, wrong = np.array([0.1, 0.5, 0.5]), np.full(3, kind)
    for measure in (AUROC, AUPRC_WRONG, AUPRC_RIGHT, PRR):
        assert math.isnan(measure.value(p_wrong, wrong))
    for measure in (BRIER, ECE, AURC, E_AURC, coverage_at(0.05), risk_at(0.8)):
        assert math.isfinite(measure.value(p_wrong, wrong))


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_the_reliability_diagrams_gaps_add_up_to_the_calibration_error(bins: int) -> None:
    p_wrong, wrong = scores(5, digits=2)
    found = reliability(p_wrong, wrong, bins=bins)
    assert sum(each.n for each in found) == len(wrong)
    if bins == 10:
        gaps = sum(each.n * abs(each.p_wrong - each.wrong) for each in found) / len(wrong)
        assert gaps == pytest.approx(ECE.value(p_wrong, wrong))
    assert [each.p_wrong for each in found] == sorted(each.p_wrong for each in found)


def test_the_risk_curve_ends_at_the_share_wrong() -> None:
    p_wrong, wrong = scores(6)
    curve = risk_curve(p_wrong, wrong, np.array([0.2, 0.6, 1.0]))
    assert curve[-1] == pytest.approx(wrong.mean())
    assert curve[0] < curve[1] < curve[2]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_wrong", "wrong", "says"),
    [
        (np.array([]), np.array([], bool), "at least one answer"),
        (np.array([0.1, 0.2]), np.array([True]), r"\(2,\).*\(1,\)"),
        (np.array([0.1, np.nan]), np.array([True, False]), "got nan"),
    ],
)
def test_bad_arrays_are_refused(p_wrong: Probabilities, wrong: Labels, says: str) -> None:
    with pytest.raises(InputError, match=says):
        AUROC.value(p_wrong, wrong)


def test_bad_names_and_shares_are_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'AUROC'"):
        measure_named("AUROK")
    with pytest.raises(InputError, match="risk must be above 0"):
        coverage_at(0.0)
    with pytest.raises(InputError, match="coverage must be above 0"):
        risk_at(1.5)


@pytest.mark.parametrize("outside", [-0.1, 1.1, 5.0])
def test_brier_and_calibration_error_are_for_probabilities(outside: float) -> None:
    from guard.errors import InputError
    from guard.scoring.metrics import Ranked, brier, calibration_error, compute_metrics, expected_calibration_error

    scores, wrong = np.array([0.2, outside, 0.4]), np.array([False, True, False])
    for measure in (brier, calibration_error):
        with pytest.raises(InputError, match=r"probabilities from 0 to 1: got"):
            measure(Ranked.from_scores(scores, wrong))
    for function in (compute_metrics, expected_calibration_error):
        with pytest.raises(InputError, match=r"probabilities from 0 to 1"):
            function(scores, wrong)


def test_a_brier_score_that_differs_by_chance_is_called_neither_better_nor_worse() -> None:
    from guard.scoring.metrics import brier_gain

    rng = np.random.default_rng(0)
    truth = rng.random(46)
    wrong = rng.random(46) < truth
    noise = np.clip(truth + rng.normal(size=46) * 0.1, 0, 1)
    assert brier_gain(truth, noise, wrong).verdict == "no significant difference"
    sure = brier_gain(truth, np.full(46, 0.9), wrong)
    assert sure.verdict == "better"
    assert brier_gain(np.full(46, 0.9), truth, wrong).verdict == "worse"
    gains = (0.9 - wrong) ** 2 - (truth - wrong) ** 2
    drawn = np.quantile([rng.choice(gains, 46).mean() for _ in range(4000)], [0.025, 0.975])
    np.testing.assert_allclose([sure.low, sure.high], drawn, atol=0.02)


def test_the_interval_of_a_brier_gain_holds_nothing_about_as_often_as_it_says() -> None:
    from guard.scoring.metrics import brier_gain

    rng = np.random.default_rng(1)
    held = []
    for _ in range(500):
        one, other = rng.random((2, 60))
        held.append(brier_gain(one, other, rng.random(60) < 0.5).verdict == "no significant difference")
    assert 0.92 < np.mean(held) < 0.98
