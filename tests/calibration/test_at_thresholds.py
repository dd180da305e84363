"""What calibration says of thresholds: counts, and intervals that hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")
pytest.importorskip("scipy")

from scipy.stats import binomtest

from guard.calibration.at_thresholds import AtThreshold, at_thresholds


def test_thresholds_count_what_they_would_have_accepted() -> None:
    found = at_thresholds(np.array([0.04, 0.05, 0.15, 0.4, 0.9]), np.array([False, True, True, False, True]))
    assert [(each.below, each.accepted, each.wrong, each.n) for each in found] == [
        (0.05, 1, 0, 5),
        (0.1, 2, 1, 5),
        (0.2, 3, 2, 5),
        (0.3, 3, 2, 5),
        (0.5, 4, 2, 5),
    ]


@pytest.mark.parametrize(("accepted", "wrong"), [(1, 0), (1, 1), (20, 1), (50, 0), (50, 50), (37, 12)])
def test_both_shares_have_scipys_exact_interval(accepted: int, wrong: int) -> None:
    found = AtThreshold(0.2, accepted, wrong, 50)
    for interval, successes, trials in ((found.coverage, accepted, 50), (found.error_rate, wrong, accepted)):
        exact = binomtest(successes, trials).proportion_ci(0.95, "exact")
        assert interval == pytest.approx((successes / trials, exact.low, exact.high), abs=1e-9)


def test_nothing_accepted_has_no_share_of_wrong_answers() -> None:
    found = AtThreshold(0.05, 0, 0, 50)
    assert found.error_rate is None
    assert found.coverage == pytest.approx((0.0, 0.0, 0.0711), abs=1e-4)


def test_graded_labels_widen_the_interval_to_whole_answers() -> None:
    graded = AtThreshold(0.2, 20, 3.25, 50).error_rate
    lower, upper = AtThreshold(0.2, 20, 3, 50).error_rate, AtThreshold(0.2, 20, 4, 50).error_rate
    assert lower is not None
    assert upper is not None
    assert graded == (3.25 / 20, lower[1], upper[2])


@pytest.mark.parametrize("graded", [False, True])
def test_the_interval_holds_the_error_rate_at_least_as_often_as_it_says(*, graded: bool) -> None:
    """Right and wrong by chance as p_wrong says, so the expected share of wrong answers below 0.5 is 0.25."""
    rng, held = np.random.default_rng(3), []
    for _ in range(400):
        p_wrong = rng.random(120)
        wrong = rng.beta(p_wrong + 1e-9, 1 - p_wrong) if graded else rng.random(120) < p_wrong
        below_half = at_thresholds(p_wrong, wrong)[-1]
        assert below_half.error_rate is not None
        held.append(below_half.error_rate[1] <= 0.25 <= below_half.error_rate[2])
    assert np.mean(held) >= 0.93
