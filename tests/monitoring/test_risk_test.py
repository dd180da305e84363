"""The test of a guarantee: false alarms within the stated rate, a broken one found in time, and MAPIE's beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import InputError
from guard.monitoring.risk_test import STAKES, RiskEvidence, risk_evidence
from guard.monitoring.wagers import AT_ONCE, BETWEEN_STARTS, Wagers


def alarms(rates: list[float], *, runs: int, false_alarms: float = 0.05) -> list[int | None]:
    """When the guarantee of 5 % is found broken in each run, for the true share of wrong answers at each label."""
    rng = np.random.default_rng(0)
    labels = rng.random((runs, len(rates))) < np.array(rates)
    return [risk_evidence(each.tolist(), risk=0.05, false_alarms=false_alarms).broken_at for each in labels]


def test_a_guarantee_that_just_holds_is_seldom_found_broken() -> None:
    found = alarms([0.05] * 600, runs=300)
    assert sum(each is not None for each in found) <= 0.05 * 300


def test_a_guarantee_that_holds_well_is_not_found_broken() -> None:
    assert alarms([0.02] * 600, runs=100) == [None] * 100


def test_twice_the_guaranteed_rate_is_found_within_a_median_of_about_150_labels() -> None:
    found = alarms([0.1] * 700, runs=150)
    assert float(np.median([each or 701 for each in found])) < 200


def test_a_change_after_a_long_quiet_time_is_found_too() -> None:
    found = alarms([0.02] * 500 + [0.2] * 300, runs=60)
    delays = [(each or 801) - 500 for each in found]
    assert float(np.median(delays)) < 100


def brute_force(wrong: list[bool], risk: float) -> float:
    """The largest wealth, with every bet and every start followed by itself."""
    starts = {0: AT_ONCE}
    number = 1
    for label in range(BETWEEN_STARTS, len(wrong), BETWEEN_STARTS):
        starts[label] = (1 - AT_ONCE) / (number * (number + 1))
        number += 1
    largest = 1.0
    for seen in range(1, len(wrong) + 1):
        total = 1 - sum(share for start, share in starts.items() if start < seen)
        for start, share in starts.items():
            if start < seen:
                bets = [1 + stake * (np.array(wrong[start:seen]) / risk - 1) for stake in STAKES]
                total += share * float(np.mean([bet.prod() for bet in bets]))
        largest = max(largest, total)
    return largest


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=90), st.sampled_from([0.05, 0.3]))
def test_the_wealth_is_that_of_all_bets_and_starts(wrong: list[bool], risk: float) -> None:
    evidence = risk_evidence(wrong, risk=risk, false_alarms=1e-300)
    assert evidence.largest == pytest.approx(brute_force(wrong, risk))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=80), st.data())
def test_a_label_that_is_not_known_yet_never_adds_evidence(wrong: list[bool], data: st.DataObject) -> None:
    unknown = data.draw(st.lists(st.booleans(), min_size=len(wrong), max_size=len(wrong)))
    so_far = [is_wrong and not hidden for is_wrong, hidden in zip(wrong, unknown, strict=True)]
    now, later = (risk_evidence(each, risk=0.05, false_alarms=1e-300) for each in (so_far, wrong))
    assert now.e_value <= later.e_value * (1 + 1e-9)
    assert now.largest <= later.largest * (1 + 1e-9)


@pytest.mark.parametrize("risk", [0.01, 0.05, 0.3, 0.9])
def test_no_bet_wins_on_average_where_the_guarantee_just_holds(risk: float) -> None:
    """Whatever the state, the expected wealth after a label is the wealth before it."""
    rng = np.random.default_rng(1)
    wagers = Wagers.begin(len(STAKES))
    for _ in range(100):
        before, after = wagers.total, []
        for is_wrong in (True, False):
            tried = Wagers(list(wagers.wealth), wagers.observations, wagers.starts)
            tried.observe([1 + stake * (is_wrong / risk - 1) for stake in STAKES])
            after.append(tried)
        assert risk * after[0].total + (1 - risk) * after[1].total == pytest.approx(before)
        wagers = after[int(rng.random() > risk)]


def test_what_is_broken_stays_broken_whatever_follows() -> None:
    evidence = risk_evidence([True] * 400 + [False] * 400, risk=0.05, false_alarms=0.05)
    assert evidence.broken
    assert (evidence.labels, evidence.wrong, evidence.broken_at) == (800, 400, 2)


def test_without_labels_there_is_no_evidence() -> None:
    assert risk_evidence([], risk=0.05, false_alarms=0.05) == RiskEvidence(0, 0, 1.0, 1.0, None)


@pytest.mark.parametrize(("risk", "false_alarms"), [(0.0, 0.05), (1.0, 0.05), (0.05, 0.0), (0.05, float("nan"))])
def test_a_share_out_of_range_is_refused(risk: float, false_alarms: float) -> None:
    with pytest.raises(InputError, match="is a share above 0 and below 1"):
        risk_evidence([True], risk=risk, false_alarms=false_alarms)


def test_mapies_risk_monitoring_agrees_and_is_not_faster() -> None:
    """It tests the same hypothesis by an empirical-Bernstein bound (Podkopaev and Ramdas, 2022)."""
    testing = pytest.importorskip("mapie.exchangeability_testing")
    control = pytest.importorskip("mapie.risk_control")
    rng = np.random.default_rng(2)

    def noticed(rate: float) -> tuple[int | None, int | None]:
        wrong = rng.random(1500) < rate
        # MAPIE spends half of its level on the reference, which a stated threshold does not need.
        monitor = testing.RiskMonitoring(control.risks.false_positive_rate, test_level=0.1, threshold=0.05, warn=False)
        monitor.update(np.zeros(1500, int), wrong.astype(int))
        above = monitor.online_risk_lower_bound_sequence_history > 0.05
        ours = risk_evidence(wrong.tolist(), risk=0.05, false_alarms=0.05).broken_at
        return ours, int(above.argmax()) + 1 if above.any() else None

    quiet, broken = [noticed(0.02) for _ in range(10)], [noticed(0.15) for _ in range(15)]
    assert quiet == [(None, None)] * 10
    ours, mapies = ([each or 1501 for each in column] for column in zip(*broken, strict=True))
    assert float(np.median(ours)) <= float(np.median(mapies)) < 1501
