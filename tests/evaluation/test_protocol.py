"""Who is trained on what, and paired intervals, on made tables whose truth is known."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest

pytest.importorskip("sklearn")

from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import MadeMethod, MadeTable, made_table
from numpy.typing import NDArray

from guard.errors import InputError, ScorerError
from guard.evaluation.bootstrap import bootstrap, resamples
from guard.evaluation.measures import AUROC, BRIER, ECE, MEASURES, Ranked
from guard.evaluation.predictions import Predictions, predictions_from_json, predictions_to_json
from guard.evaluation.protocol import (
    ProtocolStep,
    assign_folds,
    capped,
    held_out_datasets,
    leave_one_dataset_out,
    pairwise_transfer,
    shift,
    within_dataset,
)

SETS = ("arithmetic", "countries", "trivia")


def output() -> MadeMethod:
    return MadeMethod("output", ("output",))


def local() -> MadeMethod:
    return MadeMethod("local", ("local",))


@dataclass(frozen=True)
class Careless:
    """Gives fixed probabilities, whatever the table."""

    p: NDArray[np.float64]
    name: str = "careless"
    kind: str = "baseline"
    passes: float = 1.0

    def fit(self, table: MadeTable, *, seed: int) -> Careless:
        return self

    def p_wrong(self, table: MadeTable) -> NDArray[np.float64]:
        return self.p


# -- folds -------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_folds_never_part_a_question(rows: list[tuple[int, bool]], folds: int, seed: int) -> None:
    group = np.array([f"q{number}" for number, _ in rows])
    wrong = np.array([label for _, label in rows])
    if len(set(group)) < folds:
        with pytest.raises(InputError, match="cannot be split into"):
            assign_folds(group, wrong, folds=folds, seed=seed)
        return
    fold = assign_folds(group, wrong, folds=folds, seed=seed)
    for name in set(group):
        assert len(set(fold[group == name])) == 1
    sizes = [len(set(group[fold == number])) for number in range(folds)]
    assert max(sizes) - min(sizes) <= 1


def test_folds_hold_wrong_answers_alike() -> None:
    wrong = np.arange(100) < 13
    fold = assign_folds(np.arange(100).astype(str), wrong, folds=5, seed=0)
    assert sorted(np.bincount(fold, wrong).tolist()) == [2, 2, 3, 3, 3]


# -- protocols ---------------------------------------------------------------------------------


def test_within_never_scores_a_question_that_was_fitted() -> None:
    method = output()
    table = made_table(SETS, n=40, answers=2)
    found = within_dataset(table, [method], folds=4)
    assert [each.test for each in found] == list(SETS)
    assert [each.train for each in found] == list(SETS)
    for number, part in enumerate(found):
        own = {f"{SETS[number]}/{question}" for question in range(40)}
        trained = method.seen[4 * number : 4 * number + 4]
        assert all(seen < own and len(seen) == 30 for seen in trained)
        assert frozenset.intersection(*trained) == set(), "each question is left out once"
        assert np.isfinite(part.p_wrong["output"]).all()


def test_others_to_one_leaves_the_set_and_its_questions_out() -> None:
    method = output()
    table = made_table(SETS, n=30)
    shared = np.where(table.group == "countries/3", "trivia/5", table.group)
    leave_one_dataset_out(MadeTable(table.dataset, table.wrong, shared, table.signals), [method])
    tested_on_trivia = method.seen[2]
    assert len(tested_on_trivia) == 59
    assert "trivia/5" not in tested_on_trivia
    assert not any(name.startswith("trivia") for name in tested_on_trivia)


def test_one_to_one_is_every_ordered_pair_fitted_once_a_set() -> None:
    method = output()
    found = pairwise_transfer(made_table(SETS, n=30), [method])
    assert [(each.train, each.test) for each in found] == [(a, b) for a in SETS for b in SETS if a != b]
    assert len(method.seen) == 3


def test_one_to_one_does_not_test_on_questions_of_the_training_set() -> None:
    table = made_table(SETS, n=30)
    shared = np.where(table.group == "countries/3", "trivia/5", table.group)
    found = pairwise_transfer(MadeTable(table.dataset, table.wrong, shared, table.signals), [output()])
    sizes = {(each.train, each.test): len(each.wrong) for each in found}
    assert sizes["countries", "trivia"] == sizes["trivia", "countries"] == 29
    assert sizes["arithmetic", "trivia"] == 30


def test_all_to_new_is_fitted_once_on_all_and_tested_on_new_questions_of_new_sets() -> None:
    method = output()
    table, new = made_table(SETS[:2], n=30), made_table(("law", "trivia"), n=20, seed=1)
    asked_before = np.where(new.group == "law/3", "countries/3", new.group)
    found = held_out_datasets(table, MadeTable(new.dataset, new.wrong, asked_before, new.signals), [method])
    assert [(each.setting, each.train, each.test, len(each.wrong)) for each in found] == [
        ("held-out datasets", "all sets", "law", 19),
        ("held-out datasets", "all sets", "trivia", 20),
    ]
    assert method.seen == [frozenset(table.group)]
    told = method.fit(table, seed=0).p_wrong(new)[new.dataset == "trivia"]
    assert found[1].p_wrong["output"] == pytest.approx(told, abs=1e-7)


def test_all_to_new_refuses_a_set_that_was_fitted_on_and_says_which_method_cannot_be_tested() -> None:
    table = made_table(SETS, n=30)
    with pytest.raises(InputError, match=r"'trivia' is in the records and in the new ones: .* used for fitting"):
        held_out_datasets(table, made_table(("law", "trivia"), n=9), [output()])
    new = made_table(("law",), n=30, seed=1)
    bare = MadeTable(new.dataset, new.wrong, new.group, {"output": new.signals["output"]})
    (found,) = held_out_datasets(table, bare, [output(), MadeMethod("layers", ("layers",))])
    assert list(found.p_wrong) == ["output"]
    assert "hold no signal 'layers'" in found.missing["layers"]


def test_a_signal_that_means_something_within_a_set_only_does_not_transfer() -> None:
    table = made_table(SETS, n=400)
    inside = bootstrap(within_dataset(table, [output(), local()]), [AUROC], draws=50)
    across = bootstrap(pairwise_transfer(table, [output(), local()]), [AUROC], draws=50)
    assert (inside.mean("local", "AUROC")[0].value or 0) > 0.75
    assert (across.mean("local", "AUROC")[0].value or 0) < 0.6
    assert (across.mean("output", "AUROC")[0].value or 0) > 0.7


def test_shift_leaves_a_question_out_under_both_precisions() -> None:
    method = output()
    table, lower = made_table(SETS[:1], n=40), made_table(SETS[:1], n=40, seed=1, noise=2.0)
    (found,) = shift(table, {"Q8_0 to Q2_K": lower}, [method], folds=4)
    assert found.setting == "shift: Q8_0 to Q2_K"
    assert [len(seen) for seen in method.seen] == [30] * 4
    assert frozenset.intersection(*method.seen) == set()
    assert found.wrong.tolist() == lower.wrong.tolist()


def test_one_fit_serves_all_shifts_and_questions_of_no_fit() -> None:
    method = output()
    table, more = made_table(SETS[:2], n=40), made_table(SETS[:1], n=60, seed=1)
    found = shift(table, {"a": more, "b": table}, [method], folds=4)
    assert [(each.setting, each.test) for each in found] == [
        ("shift: a", SETS[0]),
        ("shift: b", SETS[0]),
        ("shift: b", SETS[1]),
    ]
    assert len(method.seen) == 8
    assert len(found[0].p_wrong["output"]) == 60
    assert (found[1].p_wrong["output"] == within_dataset(table, [output()], folds=4)[0].p_wrong["output"]).all()


def test_shift_needs_a_set_in_common() -> None:
    with pytest.raises(InputError, match="'f32 to int4' have no data set in common: trained on: arithmetic"):
        shift(made_table(SETS[:1], n=9), {"f32 to int4": made_table(SETS[1:], n=9)}, [output()])


def test_the_same_seed_gives_the_same_and_another_seed_other_folds() -> None:
    table = made_table(SETS[:1], n=60)
    runs = [within_dataset(table, [output()], seed=seed)[0].p_wrong["output"] for seed in (0, 0, 1)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


# -- what cannot be done is said ---------------------------------------------------------------


def test_a_method_without_its_signals_is_shown_as_missing() -> None:
    absent = MadeMethod("samples", ("absent",))
    table = made_table(SETS, n=30)
    for found in (*within_dataset(table, [output(), absent]), *pairwise_transfer(table, [output(), absent])):
        assert set(found.p_wrong) == {"output"}
        assert "no signal 'absent'" in found.missing["samples"]


def test_a_training_set_of_one_kind_is_a_reason_too() -> None:
    table = made_table(SETS[:2], n=30)
    right = MadeTable(table.dataset, table.wrong & (table.dataset != "countries"), table.group, table.signals)
    found = {(each.train, each.test): each for each in pairwise_transfer(right, [output()])}
    assert "all of its 30 answers are right" in found["countries", "arithmetic"].missing["output"]
    assert "output" in found["arithmetic", "countries"].p_wrong


@pytest.mark.parametrize("p", [np.full(30, 1.2), np.full(30, np.nan), np.full(29, 0.5)])
def test_what_is_no_probability_is_refused(p: NDArray[np.float64]) -> None:
    with pytest.raises(ScorerError, match="'careless' must give one probability"):
        leave_one_dataset_out(made_table(SETS[:2], n=30), [Careless(p)])  # type: ignore[list-item]


def test_bad_runs_are_refused() -> None:
    table = made_table(SETS, n=9)
    with pytest.raises(InputError, match="Two methods are called 'output'"):
        within_dataset(table, [output(), output()])
    with pytest.raises(InputError, match="no method"):
        within_dataset(table, [])
    with pytest.raises(InputError, match="9 different questions cannot be split into 10 folds"):
        within_dataset(table, [output()], folds=10)
    with pytest.raises(InputError, match="got only 'trivia'"):
        leave_one_dataset_out(table.take(np.flatnonzero(table.dataset == "trivia")), [output()])
    with pytest.raises(InputError, match="no labelled answers"):
        within_dataset(table.take(np.array([], np.intp)), [output()])


def test_progress_tells_each_step() -> None:
    steps: list[ProtocolStep] = []
    leave_one_dataset_out(made_table(SETS, n=20), [output(), local()], progress=steps.append)
    assert [(step.test, step.method) for step in steps] == [(name, m) for name in SETS for m in ("output", "local")]
    assert [step.done for step in steps] == list(range(6))
    assert {step.total for step in steps} == {6}


# -- caps and files ----------------------------------------------------------------------------


def test_a_cap_keeps_whole_questions_of_every_set() -> None:
    table = made_table(SETS, n=20, answers=3)
    fewer = capped(table, per_set=16)
    for name in SETS:
        kept, times = np.unique(fewer.group[fewer.dataset == name], return_counts=True)
        assert len(kept) == 5
        assert (times == 3).all()
    assert len(capped(table, per_set=1000)) == len(table)
    with pytest.raises(InputError, match="at least 1, got 0"):
        capped(table, per_set=0)


def test_predictions_come_back_from_json_exactly_and_hold_no_text() -> None:
    table = made_table(SETS, n=30)
    found = within_dataset(table, [output(), MadeMethod("samples", ("absent",))])
    text = predictions_to_json(found)
    assert "arithmetic/3" not in text, "a question's identity may be its text"
    for before, after in zip(found, predictions_from_json(text), strict=True):
        assert after.to_json() == before.to_json()
        assert (after.p_wrong["output"] == before.p_wrong["output"]).all()


@pytest.mark.parametrize("text", ["{", "{}", "[3]", '[{"setting": "within-dataset cross-validation"}]', "[null]"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        predictions_from_json(text)


def test_columns_of_different_lengths_are_refused() -> None:
    value = within_dataset(made_table(SETS[:1], n=9), [output()])[0].to_json()
    value["p_wrong"]["output"].pop()
    with pytest.raises(InputError, match="'arithmetic' have columns of different lengths"):
        predictions_from_json(json.dumps([value]))


# -- paired bootstrap --------------------------------------------------------------------------


def predicted(
    test: str, wrong: NDArray[np.bool_], group: NDArray[np.intp] | None = None, **p: NDArray[np.float64]
) -> Predictions:
    group = np.arange(len(wrong)) if group is None else group
    return Predictions("within-dataset cross-validation", test, test, wrong=wrong, group=group, p_wrong=p, missing={})


def two_methods(seed: int, *, n: int = 150) -> Predictions:
    """Two scores that share most of their noise; ``b`` is exactly as good as ``a``."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.4
    shared = wrong + rng.normal(size=n)
    a, b = (shared + 0.4 * rng.normal(size=n) for _ in range(2))
    return predicted("made", wrong, a=1 / (1 + np.exp(-a)), b=1 / (1 + np.exp(-b)))


def test_draws_take_whole_questions() -> None:
    group = np.array([0, 0, 1, 2, 2, 2])
    counts = resamples(group, draws=200, seed=0)
    for first, last in ((0, 1), (3, 5)):
        assert (counts[:, first] == counts[:, last]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all(), "as many questions as there are"


def test_a_draw_is_the_measure_of_the_drawn_answers() -> None:
    cell = two_methods(0)
    found = bootstrap([cell], MEASURES, draws=3, seed=5)
    for draw, counts in enumerate(resamples(cell.group, draws=3, seed=zlib.crc32(b"made") ^ 5)):
        rows = np.repeat(np.arange(len(cell.wrong)), counts)
        for column, measure in enumerate(MEASURES):
            expected = measure.value(cell.p_wrong["a"][rows], cell.wrong[rows])
            assert found.draws[0, 0, column, draw] == pytest.approx(expected)


def test_intervals_of_a_difference_hold_the_truth_as_often_as_they_say() -> None:
    """Two equally good methods: the interval has zero outside in about one of twenty samples."""
    held = 0
    for seed in range(200):
        gain = bootstrap([two_methods(seed)], [AUROC], draws=200, seed=seed).gain("a", "b", "AUROC").estimate
        assert gain.low is not None
        assert gain.high is not None
        held += gain.low <= 0 <= gain.high
    assert 0.89 <= held / 200 <= 0.99


def test_pairing_makes_intervals_of_differences_shorter() -> None:
    found = bootstrap([two_methods(3)], [AUROC], draws=400)
    single, gain = found.mean("a", "AUROC")[0], found.gain("a", "b", "AUROC").estimate
    assert (gain.high or 0) - (gain.low or 0) < 0.6 * ((single.high or 0) - (single.low or 0))


def test_a_gain_is_above_zero_where_the_method_is_better_whatever_the_direction() -> None:
    wrong = np.arange(60) % 3 == 0
    good, bad = np.where(wrong, 0.8, 0.2), np.where(wrong, 0.6, 0.5)
    found = bootstrap([predicted(name, wrong, good=good, bad=bad) for name in "xy"], [AUROC, BRIER], draws=50)
    gain = found.gain("good", "bad", "Brier")
    assert (gain.better, gain.cells) == (2, 2)
    assert gain.estimate.value == pytest.approx(np.mean((bad - wrong) ** 2) - 0.04)
    assert found.gain("bad", "good", "Brier").estimate.value == pytest.approx(-gain.estimate.value)
    assert found.gain("good", "bad", "AUROC").estimate.value == 0.0


def test_the_interval_of_a_measure_that_resampling_inflates_holds_its_value() -> None:
    cells = [two_methods(seed, n=400) for seed in range(3)]
    estimate = bootstrap(cells, [ECE], draws=200).mean("a", "ECE")[0]
    assert estimate.low is not None
    assert estimate.value is not None
    assert estimate.low < estimate.value < (estimate.high or 0)


def test_sets_on_which_a_method_is_missing_do_not_count_against_it() -> None:
    wrong = np.arange(40) % 2 == 0
    full = predicted("x", wrong, a=np.where(wrong, 0.9, 0.1), b=np.full(40, 0.5))
    half = predicted("y", wrong, b=np.full(40, 0.5))
    found = bootstrap([full, half], [AUROC, BRIER], draws=20)
    assert found.mean("a", "AUROC")[1] == 1
    assert found.mean("b", "AUROC")[1] == 2
    assert found.gain("a", "b", "AUROC").cells == 1
    assert found.value("a", ("y", "y"), "AUROC") is None


def test_a_set_of_right_answers_has_a_brier_score_only() -> None:
    right = predicted("x", np.zeros(20, bool), a=np.full(20, 0.1))
    found = bootstrap([right], [AUROC, BRIER], draws=20)
    assert found.mean("a", "AUROC")[0].value is None
    assert found.mean("a", "Brier")[0].value == pytest.approx(0.01)


def test_unknown_names_and_empty_bootstraps_are_refused() -> None:
    found = bootstrap([two_methods(0)], [AUROC], draws=5)
    with pytest.raises(InputError, match="no method 'c'"):
        found.mean("c", "AUROC")
    with pytest.raises(InputError, match="'Brier' was not measured"):
        found.gain("a", "b", "Brier")
    with pytest.raises(InputError, match="trained on 'x'"):
        found.value("a", ("x", "y"), "AUROC")
    for draws, level in ((0, 0.95), (5, 1.0)):
        with pytest.raises(InputError, match="at least one draw"):
            bootstrap([two_methods(0)], [AUROC], draws=draws, level=level)


def test_the_draws_of_a_set_are_judged_many_at_a_time() -> None:
    """A thousand draws cost a handful of array operations, so that a report of ten sets takes less than a minute."""
    cell = two_methods(0, n=1000)
    alone = Predictions("within", "x", "x", cell.wrong, cell.group, {"a": cell.p_wrong["a"]}, {})
    calls: list[int] = []

    def counted(ranked: Ranked) -> NDArray[np.float64]:
        values = AUROC.function(ranked)
        calls.append(len(values))
        return values

    bootstrap([alone], [replace(AUROC, function=counted)], draws=1000)
    assert sum(calls) == 1001, "each draw, and the answers as they are"
    assert len(calls) <= 11
