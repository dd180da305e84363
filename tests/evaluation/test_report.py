"""What is kept of an evaluation, its verdicts, and the page that shows it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import MadeMethod, MadeTable, made_table
from numpy.typing import NDArray

from guard.errors import InputError
from guard.evaluation.bootstrap import bootstrap
from guard.evaluation.figures import spread
from guard.evaluation.measures import MEASURES
from guard.evaluation.pooled import pooled
from guard.evaluation.predictions import Predictions
from guard.evaluation.protocol import leave_one_dataset_out, pairwise_transfer, shift, within_dataset
from guard.evaluation.report import render
from guard.evaluation.result import (
    Ablation,
    Claim,
    EvaluationResult,
    Importance,
    ModelCard,
    ModelResult,
    Note,
    Provenance,
)
from guard.evaluation.summary import summarise
from guard.scoring.metrics import PartOfAnswers

SETS = ("arithmetic", "countries <b>", "trivia & $x^2$")
CARD = ModelCard("SmolLM2 <small>", "llama.cpp", "llama", "Q4_1", "ab12" * 16, 3, 576)
METHODS = (
    MadeMethod("log-probabilities", ("output",)),
    MadeMethod("guard", ("output", "layers"), "guard"),
    MadeMethod("probe <i>", ("local",)),
    MadeMethod("length", ("layers",), "control"),
    MadeMethod("samples", ("absent",), "reference", 6.0),
    MadeMethod("guard without layers", ("output",)),
)
PROVENANCE = Provenance(
    created="2026-11-24T10:00:00+00:00",
    commands=("guard record --data 'a & b.jsonl'", "guard evaluate records.parquet"),
    versions={"Python": "3.11", "numpy": "2.4"},
    seeds={"folds": 0},
    machine="Linux x86_64, 2 processors",
)


def model_result() -> ModelResult:
    """All protocols, and all that a result can hold."""
    table, lower = made_table(SETS, n=60), made_table(SETS, n=60, seed=1, noise=1.5)
    other = made_table(SETS, n=60, seed=2, noise=0.5)
    predictions = [
        *within_dataset(table, METHODS),
        *pairwise_transfer(table, METHODS),
        *leave_one_dataset_out(table, METHODS),
        *shift(table, {"Q8_0 to Q2_K": lower, "llama.cpp Q8_0 to transformers int4": other}, METHODS),
    ]
    return summarise(
        predictions,
        METHODS,
        model=CARD,
        own="guard",
        hidden=["guard without layers"],
        seconds={"guard": 0.0021},
        ablations=[Ablation("the layers' map", "guard", "guard without layers")],
        importance=Importance("gain", ((0.0, 1.0, 2.0), (0.5, 0.0, 0.1), (0.2, 3.0, 0.0))),
        claims=[Claim("beats <log-probabilities>", "leave-one-dataset-out", "AUROC", "log-probabilities")],
        draws=40,
    )


def second_model() -> ModelResult:
    """One protocol and nothing else."""
    card = replace(CARD, name="Gemma 3", quantization="Q8_0")
    predictions = leave_one_dataset_out(made_table(SETS, n=60, seed=5), METHODS[:3])
    return summarise(predictions, METHODS[:3], model=card, own="guard", draws=40)


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    notes = (Note("Maps <divided> by their RMS", "Transfer became worse & worse."),)
    return EvaluationResult("A score & its <worth>", (model_result(), second_model()), notes, PROVENANCE)


@pytest.fixture(scope="module")
def page(result: EvaluationResult) -> str:
    return render(result)


class ReportReader(HTMLParser):
    """Tags with their attributes, ids, links and rows of tables; complains about tags that do not match."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: Mapping[str, str | None] = dict(attrs)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.references += [str(values[key]) for key in ("href", "xlink:href", "src") if key in values]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((values.get("class") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and any(tag in ("td", "th") for tag in self.open[-2:]):
            style, text = self.rows[-1][-1]
            self.rows[-1][-1] = style, text + data if self.open[-1] != "small" else text


# -- the page ----------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(page: str) -> None:
    reader = ReportReader(page)
    assert reader.open == []
    assert reader.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in reader.references)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "@import" not in page


def test_links_and_ids_of_the_page_fit_together(page: str) -> None:
    reader = ReportReader(page)
    assert len(reader.ids) == len(set(reader.ids))
    links = [reference[1:] for reference in reader.references if reference.startswith("#")]
    assert set(links) <= set(reader.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)


def test_names_from_outside_are_text_and_never_markup(page: str) -> None:
    reader = ReportReader(page)
    for tag in ("<i>", "<small></small>", "<log-probabilities>", "<worth>", "<divided>"):
        assert tag not in page
    assert "i" not in reader.tags
    for shown in (
        "countries &lt;b&gt;",
        "trivia &amp; $x^2$",
        "probe &lt;i&gt;",
        "SmolLM2 &lt;small&gt;",
        "a &amp; b.jsonl",
    ):
        assert shown in page


def test_every_figure_is_a_drawing_with_a_name(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    # Dots, risk and reliability of four protocols; dots and heatmaps of pairwise transfer; shifts side by side; three
    # inside the score. The second model: dots, risk and reliability of one; cost. One opens each model.
    assert len(drawings) == (4 * 3 + 2 + 1 + 3) + (3 + 1) + 2
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
    assert page.count("<figcaption>") == len(drawings), "each has its sentence"


def test_titles_count_answers_since_one_model_may_be_recorded_twice(page: str) -> None:
    assert "Gemma 3 Q8_0, 180 answers</h2>" in page
    assert "Gemma 3 Q8_0, 180 answers: claims" not in page, "it has no claims"


def test_several_shifts_stand_side_by_side_and_their_own_figures_in_folds(page: str) -> None:
    sections = page.split("<summary><h3>")[1:]
    first, second = (part for part in sections if part.startswith("Shift: "))
    assert "Comparison of shifts" in first.split("<details")[0]
    for part in (first, second):
        assert "Comparison of methods" not in part.split("<details")[0]
        assert "Comparison of methods" in part
    assert ">llama.cpp Q8_0 to transformers int4<" in first


def test_all_below_the_opening_is_folded_and_a_link_to_it_leads_inside(page: str) -> None:
    folds = dict(re.findall(r'<details class="fold"><summary><h3>([^<]+)</h3></summary><span id="([^"]+)">', page))
    assert {"Leave-one-dataset-out", "Inside the score", "Negative results", "Measures", "Provenance"} <= folds.keys()
    linked = set(re.findall(r'<a href="#([^"]+)">', page))
    assert set(folds.values()) <= linked
    body = re.sub(r"<details.*</details>", "", page, flags=re.DOTALL)
    assert "<table" not in body
    assert "Made on 24 November 2026, 10:00 UTC" in body


def test_what_was_not_recorded_is_shown_with_its_reason(page: str) -> None:
    rows = [[text for _, text in row] for row in ReportReader(page).rows]
    reasons = [row for row in rows if row[0] == "samples" and "no signal 'absent'" in row[-1]]
    assert len(reasons) == 5, "once in each protocol"
    assert "samples (not recorded)" in page


def test_the_table_shows_the_means_and_marks_the_best(page: str, result: EvaluationResult) -> None:
    means = [row for row in ReportReader(page).rows if row[0][1] == "guard" and len(row) == 1 + len(MEASURES)]
    setting = result.models[0].settings[0]
    shown = dict(zip([measure.name for measure in MEASURES], means[0][1:], strict=True))
    for name in ("AUROC", "Brier"):
        score = setting.score("guard", name)
        assert score is not None
        assert score.estimate.value is not None
        assert shown[name][1].strip() == f"{score.estimate.value:.3f}".removeprefix("0")
        values = {card.name: setting.score(card.name, name) for card in result.models[0].methods}
        known = {name: each.estimate.value for name, each in values.items() if each and each.estimate.value is not None}
        best = (max if name == "AUROC" else min)(known, key=lambda each: known[each])
        assert (shown[name][0] == "best") == (best == "guard")


def test_a_method_that_lacks_a_set_has_a_table_of_its_own_beside_guard() -> None:
    """Its mean over the sets that it could be fitted on stands beside guard's mean over the same ones."""
    predictions = list(leave_one_dataset_out(made_table(SETS, n=60, seed=5), METHODS[:2]))
    first = predictions[0]
    without = {name: values for name, values in first.p_wrong.items() if name != "log-probabilities"}
    predictions[0] = replace(first, p_wrong=without, missing={"log-probabilities": "all right"})
    found = summarise(predictions, METHODS[:2], model=CARD, own="guard", draws=40)
    shown = render(EvaluationResult("Some sets", (found,), (), PROVENANCE))
    whole, some = (shown.index(words) for words in ("Mean over 3 test sets", "Methods that lack some sets: mean over"))
    assert "mean over the 2 of 3 test sets that all of them have" in shown
    every = [[text.strip() for _, text in row] for row in ReportReader(shown).rows if len(row) > len(MEASURES)]
    rows = [row for row in every if row[0] in ("guard", "log-probabilities")]
    assert [row[0] for row in rows] == ["guard", "guard", "log-probabilities"]
    values = {(each.method, each.test): each.value for each in found.settings[0].per_cell if each.measure == "AUROC"}
    for name, row in (("guard", rows[1]), ("log-probabilities", rows[2])):
        mean = np.mean([values[name, each.test] for each in predictions[1:]])  # type: ignore[arg-type]
        assert row[1] == f"{mean:.3f}".removeprefix("0")
    assert whole < some


def test_the_page_opens_with_one_sentence_and_one_picture(page: str, result: EvaluationResult) -> None:
    """From one threshold over the answers of all sets, by the method under test."""
    opening = result.models[0].pooled
    assert opening is not None
    assert (opening.setting, opening.sets) == ("leave-one-dataset-out", len(SETS))
    point = opening.headline
    assert point is not None
    assert point.coverage.value is not None
    headline = f"With this model you can accept <b>{100 * point.coverage.value:.0f}\u00a0%</b> of answers at "
    assert headline + f"<b>{100 * point.risk:.0f}\u00a0%</b> wrong." in page
    before_folds = page[page.index("<main>") : page.index("<details")]
    assert before_folds.count("<svg") == len(result.models)
    assert before_folds.count("<h1") == 1


def test_the_headline_is_one_threshold_and_no_mean_over_sets() -> None:
    """One set is easy and all right, the other is hopeless; scores do not tell them apart within the sets."""
    easy, hard = np.linspace(0.1, 0.2, 50), np.linspace(0.8, 0.9, 150)
    group = np.arange(150)
    cells = [
        Predictions("leave-one-dataset-out", "b", "a", np.zeros(50, bool), group[:50], {"guard": easy}, {}),
        Predictions("leave-one-dataset-out", "a", "b", np.ones(150, bool), group, {"guard": hard}, {}),
    ]
    found = pooled(cells, "guard", seed=0)
    assert found is not None
    assert (found.answers, found.wrong) == (200, 0.75)
    assert [each.coverage.value for each in found.points] == pytest.approx([0.26, 0.275, 0.31, 0.355], abs=0.006)
    assert found.curve.risk[-1] == 0.75
    assert pooled(cells, "other", seed=0) is None
    hopeless = pooled(cells[1:], "guard", seed=0)
    assert hopeless is not None
    assert hopeless.headline is None


def test_truncated_answers_are_distinguished_from_complete_ones() -> None:
    wrong, p_wrong = np.array([True, True, False, True]), np.array([0.9, 0.7, 0.1, 0.5])
    truncated = np.array([True, True, False, False])
    cell = Predictions("leave-one-dataset-out", "b", "a", wrong, np.arange(4), {"guard": p_wrong}, {}, truncated)
    assert Predictions.from_json(cell.to_json()).truncated is not None
    found = pooled([cell], "guard", seed=0)
    assert found is not None
    assert found.by_ending is not None
    assert found.by_ending.truncated == PartOfAnswers(2, 1.0, pytest.approx(0.8), None)
    assert found.by_ending.complete == PartOfAnswers(2, 0.5, pytest.approx(0.3), 1.0)
    model = replace(second_model(), pooled=found)
    shown = render(EvaluationResult("A score", (model,), (), PROVENANCE))
    assert "2 answers are truncated at their token limit: 100\u00a0% of them wrong, mean p(wrong) 80\u00a0%." in shown
    unknown = pooled([replace(cell, truncated=None)], "guard", seed=0)
    assert unknown is not None
    assert unknown.by_ending is None


def test_provenance_and_what_did_not_work_are_on_the_page(page: str) -> None:
    for shown in (
        "2026-11-24T10:00:00+00:00",
        "guard evaluate records.parquet",
        "numpy 2.4",
        "folds 0",
        "2 processors",
    ):
        assert shown in page
    assert "Maps &lt;divided&gt; by their RMS" in page
    assert CARD.weights_sha256 in page
    assert all(measure.meaning.split("'")[0] in page for measure in MEASURES)


def test_the_same_result_gives_the_same_page() -> None:
    table = made_table(SETS[:1], n=40)
    one = summarise(within_dataset(table, METHODS[:2]), METHODS[:2], model=CARD, own="guard", draws=5)
    result = EvaluationResult("x", (one,), (), PROVENANCE)
    assert render(result) == render(result)


def test_a_result_without_anything_recorded_still_makes_a_page() -> None:
    table = made_table(SETS[:2], n=20)
    nothing = [MadeMethod("guard", ("absent",), "guard")]
    predictions = [
        *within_dataset(table, nothing),
        *pairwise_transfer(table, nothing),
        *leave_one_dataset_out(table, nothing),
    ]
    result = summarise(predictions, nothing, model=CARD, own="guard", draws=5)
    page = render(EvaluationResult("Nothing", (result,), (), PROVENANCE))
    assert ReportReader(page).open == []
    assert "no signal &#39;absent&#39;" in page
    assert "<svg" not in page


def test_sets_of_right_answers_only_make_a_page_too() -> None:
    table = made_table(SETS[:2], n=30)
    right = MadeTable(table.dataset, table.wrong & (table.dataset == SETS[0]), table.group, table.signals)
    predictions = [*pairwise_transfer(right, METHODS[:2]), *leave_one_dataset_out(right, METHODS[:2])]
    result = summarise(predictions, METHODS[:2], model=CARD, own="guard", draws=5)
    assert ReportReader(render(EvaluationResult("Right", (result,), (), PROVENANCE))).open == []


# -- the result --------------------------------------------------------------------------------


def test_a_result_comes_back_from_json_equal(result: EvaluationResult) -> None:
    text = result.to_json()
    assert EvaluationResult.from_json(text) == result
    assert "arithmetic/3" not in text, "no question is kept"


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "JSON"), ("{}", "title"), ('{"title": 3, "models": []}', "title"), ("[]", "should be an object")],
)
def test_other_json_is_refused_with_the_field(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        EvaluationResult.from_json(text)


def test_hidden_methods_serve_ablations_only(result: EvaluationResult) -> None:
    model = result.models[0]
    assert [card.name for card in model.methods] == ["guard", "log-probabilities", "probe <i>", "length", "samples"]
    assert all(each.method != "guard without layers" for setting in model.settings for each in setting.scores)
    gain = next(each for each in model.groups if (each.setting, each.measure) == ("leave-one-dataset-out", "AUROC"))
    against = next(
        each.gain
        for each in model.settings[2].comparisons
        if (each.against, each.measure) == ("log-probabilities", "AUROC")
    )
    assert gain.gain == against, "the same two fits under other names"


def test_curves_lie_between_the_oracle_and_end_at_the_share_wrong(result: EvaluationResult) -> None:
    setting = result.models[0].settings[2]
    assert setting.oracle is not None
    assert setting.random is not None
    wrong = np.mean([each.wrong for each in result.models[0].datasets])
    for curve in setting.curves:
        assert curve.risk[-1] == pytest.approx(wrong, abs=1e-6)
        assert all(best <= own + 1e-9 for best, own in zip(setting.oracle.risk, curve.risk, strict=True))
    assert set(setting.random.risk) == {setting.random.risk[-1]}, "the same at every coverage"


def test_data_sets_are_listed_with_their_share_wrong(result: EvaluationResult) -> None:
    table = made_table(SETS, n=60)
    shown = {each.name: (each.n, each.wrong) for each in result.models[0].datasets}
    assert shown == {name: (60, table.wrong[table.dataset == name].mean()) for name in SETS}


def test_names_that_no_method_has_are_refused() -> None:
    predictions = within_dataset(made_table(SETS[:1], n=20), METHODS[:2])
    for change in ({"own": "gaurd"}, {"hidden": ["gaurd"]}, {"ablations": [Ablation("x", "guard", "gaurd")]}):
        arguments = {"own": "guard", "model": CARD, "draws": 5} | change
        with pytest.raises(InputError, match=r"no method 'gaurd'\. Did you mean 'guard'"):
            summarise(predictions, METHODS[:2], **arguments)  # type: ignore[arg-type]


def test_provenance_of_this_process_names_versions_and_no_machine() -> None:
    import platform

    here = Provenance.here(commands=["guard evaluate x"], seeds={"folds": 3})
    assert here.versions["numpy"] == np.__version__
    assert here.commands == ("guard evaluate x",)
    assert platform.node() not in here.machine


# -- verdicts ----------------------------------------------------------------------------------


def judged(claim: Claim, **p: NDArray[np.float64]) -> tuple[str, str]:
    """The outcome of a claim on two sets, on which methods give these probabilities."""
    methods = [MadeMethod(name, (), "guard" if name == "own" else "baseline") for name in p]
    cells = [
        Predictions(
            "within-dataset cross-validation", name, name, wrong=WRONG, group=np.arange(80), p_wrong=p, missing={}
        )
        for name in "xy"
    ]
    (verdict,) = summarise(cells, methods, model=CARD, own="own", claims=[claim], draws=100).verdicts
    return verdict.outcome, verdict.against


WRONG = np.arange(80) % 2 == 0
GOOD, FAIR = np.where(WRONG, 0.9, 0.1), np.where(np.arange(80) % 5 == 0, 0.5, np.where(WRONG, 0.8, 0.2))


def test_a_sure_gain_reaches_its_claim() -> None:
    claim = Claim("own beats other", "within-dataset cross-validation", "AUROC", "other")
    assert judged(claim, own=GOOD, other=FAIR) == ("reached", "other")
    assert judged(claim, own=FAIR, other=GOOD) == ("not reached", "other")
    assert judged(claim, own=GOOD, other=GOOD) == ("not reached", "other")


def test_lower_brier_is_a_gain() -> None:
    assert (
        judged(Claim("own is nearer", "within-dataset cross-validation", "Brier", "other"), own=GOOD, other=FAIR)[0]
        == "reached"
    )


def test_the_rival_is_the_best_baseline_where_none_is_named() -> None:
    claim = Claim("own beats all", "within-dataset cross-validation", "AUROC")
    assert judged(claim, own=GOOD, poor=1 - GOOD, fair=FAIR) == ("reached", "fair")
    assert judged(claim, own=FAIR, poor=1 - GOOD, good=GOOD) == ("not reached", "good")


def test_a_value_above_the_margin_is_not_enough_where_the_interval_is_not() -> None:
    nearly = np.where(np.arange(80) == 0, 0.05, GOOD)
    claim = Claim("own beats other", "within-dataset cross-validation", "AUROC", "other")
    assert judged(claim, own=GOOD, other=nearly)[0] == "not shown"
    assert judged(replace(claim, certain=False), own=GOOD, other=nearly)[0] == "reached"


def test_a_margin_may_allow_a_loss() -> None:
    nearly = np.where(np.arange(80) == 0, 0.05, GOOD)
    claim = Claim(
        "own is hardly worse", "within-dataset cross-validation", "AUROC", margin=-0.05, everywhere=True, certain=False
    )
    assert judged(claim, own=nearly, other=GOOD) == ("reached", "other on x")
    assert judged(replace(claim, margin=-0.001), own=nearly, other=GOOD)[0] == "not reached"
    assert judged(replace(claim, margin=-0.03, certain=True), own=nearly, other=GOOD)[0] == "not shown"


def test_the_worst_cell_has_an_interval_of_its_own() -> None:
    """That of the difference on this cell, not on all."""
    nearly = np.where(np.arange(80) == 0, 0.05, GOOD)
    cells = [
        Predictions(
            "within-dataset cross-validation", name, name, WRONG, np.arange(80), {"own": own, "other": GOOD}, {}
        )
        for name, own in (("x", GOOD), ("y", nearly))
    ]
    found = bootstrap(cells, MEASURES, draws=100)
    everywhere, worst = (found.gain("own", "other", "AUROC", cell=cell) for cell in (None, ("y", "y")))
    assert (everywhere.cells, worst.cells) == (2, 1)
    assert worst.estimate.value == pytest.approx(2 * (everywhere.estimate.value or 0.0))
    assert found.gain("own", "other", "AUROC", cell=("x", "x")).estimate.low == 0.0
    with pytest.raises(InputError, match="Nothing was trained on 'x' and tested on 'y'"):
        found.gain("own", "other", "AUROC", cell=("x", "y"))
    claim = Claim("own is hardly worse", "within-dataset cross-validation", "AUROC", margin=-0.001, everywhere=True)
    methods = [MadeMethod("own", (), "guard"), MadeMethod("other", (), "baseline")]
    (verdict,) = summarise(cells, methods, model=CARD, own="own", claims=[claim], draws=100).verdicts
    assert (verdict.against, verdict.estimate) == ("other on y", worst.estimate)


def test_a_claim_on_what_was_not_run_is_not_recorded() -> None:
    assert judged(Claim("transfers", "leave-one-dataset-out", "AUROC"), own=GOOD, other=FAIR)[0] == "not recorded"


# -- labels ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0.01, 0.1))
def test_labels_stay_in_order_apart_and_inside(values: list[float], gap: float) -> None:
    places = spread(sorted(values), gap=gap, low=0.0, high=1.0)
    steps = np.diff(places)
    assert (steps >= gap - 1e-9).all()
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


def test_labels_that_do_not_touch_stay_where_they_belong() -> None:
    assert spread([0.1, 0.5, 0.9], gap=0.2, low=0.0, high=1.0) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], gap=0.2, low=0.0, high=1.0) == pytest.approx([0.4, 0.6])
