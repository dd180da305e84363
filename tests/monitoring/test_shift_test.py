"""The label-free alarm: quiet while inputs stay of one kind, whatever that kind is, and soon once they do not."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest

from guard.monitoring.shift_test import EXPONENTS, FALSE_ALARMS, ShiftTest


def watched(scores: Iterable[float], seed: int = 0) -> ShiftTest:
    ties, test = np.random.default_rng(seed + 1000), ShiftTest()
    for score in scores:
        test.observe(float(score), tie=float(ties.random()))
    return test


@pytest.mark.parametrize("kind", ["uniform", "narrow", "few values"])
def test_traffic_of_one_kind_gives_no_alarm(kind: str) -> None:
    given = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = {
            "uniform": rng.random(600),
            "narrow": 0.9 + 0.1 * rng.random(600),
            "few values": rng.choice([0.2, 0.995], 600),
        }[kind]
        given += watched(scores, seed).alarm_at is not None
    assert given <= 2, f"at most {FALSE_ALARMS:.0%} of runs"


def test_less_usual_inputs_give_the_alarm() -> None:
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = 0.95 * rng.random(800)
        after = np.where(rng.random(400) < 0.2, 0.95 + 0.05 * rng.random(400), 0.95 * rng.random(400))
        delays.append((watched([*before, *after], seed).alarm_at or 1201) - 800)
    assert min(delays) > 0
    assert float(np.median(delays)) < 100


def test_more_usual_inputs_give_none() -> None:
    rng = np.random.default_rng(0)
    assert watched([*rng.random(400), *(0.3 * rng.random(400))]).alarm_at is None


def test_the_ranks_are_uniform_however_many_are_equal() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(3000):
        test = ShiftTest()
        for score in rng.choice([0.1, 0.5, 0.9], 3):
            last = test.p_value(float(score), tie=(tie := float(rng.random())))
            test.observe(float(score), tie=tie)
        found.append(last)
    assert np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.03)


def test_the_state_survives_json_and_continues() -> None:
    rng = np.random.default_rng(0)
    scores, ties = rng.random(100), rng.random(100)
    whole, half = ShiftTest(), ShiftTest()
    for score, tie in zip(scores, ties, strict=True):
        whole.observe(score, tie=tie)
        half.observe(score, tie=tie)
        half = ShiftTest.from_plain(json.loads(json.dumps(half.to_plain())))
    assert half == whole


def test_the_alarm_stays_and_scores_are_still_counted() -> None:
    test = watched([*np.linspace(0.0, 0.5, 50), *[0.99] * 200])
    alarm_at, evidence = test.alarm_at, test.e_value
    assert alarm_at is not None
    test.observe(0.1, tie=0.5)
    assert (test.alarm_at, test.e_value, test.observations) == (alarm_at, evidence, 251)


def test_scores_at_the_ends_count() -> None:
    test = watched([0.0, 1.0])
    assert (test.counts[0], test.counts[-1]) == (1, 1)


def test_mapies_martingale_ranks_the_same_p_values() -> None:
    """MAPIE's jumper bets for and against high ranks; fed with the same p-values it finds the same change."""
    testing = pytest.importorskip("mapie.exchangeability_testing")
    rng = np.random.default_rng(3)
    scores = [*(0.95 * rng.random(500)), *(0.9 + 0.1 * rng.random(200))]
    ours, theirs = ShiftTest(), testing.OnlineMartingaleTest(test_method="jumper_martingale", warn=False)
    found: list[int | None] = [None, None]
    seen: list[int] = []
    for number, score in enumerate(scores, start=1):
        tie, step = rng.random(), int(score * 100)
        above, equal = sum(each > step for each in seen), seen.count(step)
        seen.append(step)
        ours.observe(score, tie=tie)
        wealth = theirs.update_simple_jumper_martingale((above + tie * (equal + 1)) / number)
        if found[1] is None and wealth >= 1 / FALSE_ALARMS:
            found[1] = number
    found[0] = ours.alarm_at
    assert all(each is not None and 500 < each < 620 for each in found), found


def test_every_bet_is_fair() -> None:
    for exponent in EXPONENTS:
        edges = np.linspace(0, 1, 1001)
        assert float(np.diff(edges**exponent).sum()) == pytest.approx(1.0), "the integral of what it pays"
        p = np.linspace(0.2, 1, 801)
        pays = exponent * p ** (exponent - 1)
        assert float(((pays[1:] + pays[:-1]) / 2 * np.diff(p)).sum()) == pytest.approx(1 - 0.2**exponent, abs=1e-4)
