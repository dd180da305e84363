"""What the programs behind the evidence compute from answers, by hand."""

from __future__ import annotations

import gzip
import json
import math
import random
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from scripted import AnsweringEngine, confidence_scorer, scripted_model

from guard.calibration.splits import SPLIT_SHARES
from guard.data.graders import grade
from guard.data.labelling import is_wrong
from guard.data.questions import Question, split_questions
from guard.data.sets import DataSource
from guard.evaluation.predictions import Predictions
from guard.records import Generation, Prompt, Sampling
from guard.scoring.metrics import Ranked, auroc
from guard.scoring.probe import InnerProducts, inner_products
from guard.scoring.provenance import DataSet
from guard.scoring.scorer import Scorer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = (
    *("early", "early_policies", "back_off", "attacks", "spans", "span_answers", "situations", "rebound", "text_only"),
)


@pytest.fixture(scope="module")
def programs() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: runpy.run_path(str(BENCHMARKS / f"{name}.py")) for name in PROGRAMS}
    sys.path.remove(str(BENCHMARKS))


def test_an_answer_is_stopped_at_the_first_stage_above_the_threshold(programs: dict[str, dict[str, Any]]) -> None:
    early = programs["early"]
    tokens, wrong = np.array([10, 10, 20, 3]), np.array([True, False, True, False])
    kept = early["StagedAnswers"]({}, wrong, tokens, tokens, tokens, [], [])
    scores = {1: np.array([0.99, 0.1, 0.5, 0.2]), 4: np.array([0.2, 0.1, 0.98, np.nan])}
    whole = np.array([0.9, 0.1, 0.9, 0.2])
    found = early["saved_by"](kept, scores, whole, above=0.97, accept=0.25, stages="all")
    assert (found.saved, found.of_wrong, found.of_right) == (25 / 43, 25 / 30, 0.0)
    assert (found.stopped, found.right_stopped, found.accepted, found.accepted_lost) == (0.5, 0.0, 2, 0.0)
    lost = early["saved_by"](kept, {1: np.array([0, 0.99, 0, 0])}, whole, above=0.97, accept=0.25, stages="first")
    assert (lost.of_right, lost.accepted_lost) == (9 / 13, 0.5)


def test_policies_are_compared_on_the_same_questions(programs: dict[str, dict[str, Any]]) -> None:
    decided, figures = programs["early_policies"]["Decided"], programs["early_policies"]["figures"]
    complete = [decided(not each, each == 2, False, 10) for each in (0, 0, 1, 2)]
    stopped = [decided(True, False, False, 10), decided(False, False, True, 1), *complete[2:]]
    row = figures("early", stopped, complete)
    assert (row["accepted"], row["wrong_accepted"], row["stopped"], row["tokens"]) == (1, 0, 1, 31)
    assert (row["tokens_saved"], row["accepted_right"], row["accepted_right_lost"]) == (0.225, 2, 1)
    assert figures("complete", complete, complete)["tokens_saved"] == 0


def test_the_back_off_is_judged_on_what_nothing_was_fitted_on(programs: dict[str, dict[str, Any]]) -> None:
    program = programs["back_off"]
    rng = np.random.default_rng(1)
    wrong = np.arange(240) % 2 == 0
    schema = program["schema_for"](layers=6, temperatures=(1.0,))
    x = np.zeros((240, schema.size), np.float32)
    x[:, 0] = np.where(wrong, 1, -1) + rng.normal(size=240)
    layers = 0.05 * rng.normal(size=(240, 3, 6, 32))
    layers[..., 0] += 1
    layers[:20, ..., 1] += 4  # half of the set that is judged lies far off
    layers = layers.astype(np.float16)
    products = InnerProducts(inner_products(layers))
    examples = program["Examples"](x, wrong, np.repeat(np.array(list("abcdef")), 40), layers, products)
    found = program["BackedOff"]({}, np.full(240, np.nan), {})
    found.judge("a", examples, np.arange(40, 240), np.arange(40))
    assert set(found.chosen) == {"a"}
    assert all(np.isfinite(each[:40]).all() and np.isnan(each[40:]).all() for each in found.log_odds.values())
    far = program["label"](program["ALWAYS"][3])
    at_end = found.ood[:40] > 0.97
    own, other = (found.log_odds[name][:40] for name in (program["WITHOUT"], program["OTHER"]))
    assert (abs(found.log_odds[far][:40] - other) <= abs(own - other) + 1e-9)[at_end].all()
    near = found.ood[:40] < 0.9
    assert (found.log_odds[far][:40] == own)[near].all()
    assert near.any()
    assert at_end.any()


def questions(count: int) -> tuple[Question, ...]:
    text = "In which country does the famous town number {} stand?"
    return tuple(Question(f"{at}", text.format(at), (f"Country {at}",)) for at in range(count))


def test_what_the_scorer_was_fitted_on_is_not_attacked(programs: dict[str, dict[str, Any]]) -> None:
    source = DataSource("towns", questions(50), (), "a" * 64)
    fresh, scorer = programs["attacks"]["fresh_questions"], confidence_scorer()
    assert [row.id for row in fresh([source], scorer, limit=60)] == [f"towns/{at}" for at in range(50)]
    fitted = DataSet(name="towns", sha256="a" * 64, rows=50, wrong=40)
    scorer = Scorer(scorer.artefact.model_copy(update={"data": [fitted]}))
    held_out = split_questions(questions(50), seed=scorer.artefact.seed, shares=SPLIT_SHARES)["test"]
    left = [row.id for row in fresh([source], scorer, limit=60)]
    assert left == [f"towns/{row.id}" for row in held_out]
    assert [row.id for row in fresh([source], scorer, limit=60, without=left[:1])] == left[1:]
    assert {row.id for row in fresh([source], scorer, limit=3)} < set(left)


def test_every_attack_changes_the_question_and_planted_answers_are_wrong(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    source = DataSource("towns", questions(9), (), "a" * 64)
    rows = attacks["fresh_questions"]([source], confidence_scorer(), limit=9)
    planted = attacks["wrong_answers"](rows)
    for row in rows:
        assert planted[row.id] not in row.answers
        for name, attack in attacks["ATTACKS"].items():
            changed = attack(row.question, planted[row.id], random.Random(name))
            assert changed != row.question
            assert (planted[row.id] in changed) == (name in ("persuasion", "injection") or name.startswith("planted"))


def test_a_search_keeps_the_wrong_answer_with_the_least_score(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    asked, best_of = attacks["ScoredAnswer"], attacks["best_of"]
    plain = asked("a", True, 0.8, 0.8, 0.1)
    tried = [asked("b", False, 0.1, 0.1, 0.1), asked("c", True, 0.3, 0.3, 0.999), asked("d", True, 0.5, 0.5, 0.2)]
    assert best_of(plain, tried, within=1.0) is tried[1]
    assert best_of(plain, tried, within=0.99) is tried[2]
    assert best_of(plain, tried[:1], within=1.0) is plain


def test_with_the_rule_an_answer_out_of_distribution_is_not_accepted(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    asked = attacks["ScoredAnswer"]
    answers = [
        asked("a", True, 0.05, 0.6, 0.5),
        asked("b", True, 0.05, 0.9, 1.0),
        asked("c", False, 0.2, 0.6, 0.5),
    ]
    policies = attacks["shipped_policies"]()
    assert policies.keys() == {"strict", "balanced", "permissive"}
    result = attacks["result_of"]("none", answers, answers, policies)
    by_policy = {each.policy: each for each in result.accepted}
    strict, balanced = by_policy["strict"], by_policy["balanced"]
    assert (strict.accepted, strict.wrong, strict.accepted_in_distribution, strict.wrong_in_distribution) == (
        2,
        2,
        1,
        1,
    )
    assert (balanced.accepted, balanced.wrong, balanced.accepted_in_distribution) == (3, 2, 2)
    assert result.flagged == pytest.approx(1 / 3)
    assert answers[1].backed_off == pytest.approx(0.9), "so far out the log-probabilities decide"
    assert answers[0].backed_off == pytest.approx(0.05), "and here guard's own score"
    assert (balanced.accepted_backed_off, balanced.wrong_backed_off) == (2, 1)


def test_inputs_that_are_no_questions_come_from_their_whole_kind_and_have_no_right_answer(
    programs: dict[str, dict[str, Any]],
) -> None:
    attacks = programs["attacks"]
    for kind in attacks["UNLIKE"]:
        rows = attacks["unlike_questions"](kind, 20)
        assert len({row.question for row in rows}) == 20
        assert all(row.id.startswith(f"{kind}/") for row in rows)
        assert all(is_wrong(row, text, grade) for row in rows for text in ("Paris", "", "none"))
    languages = attacks["unlike_questions"]("languages", 20)
    assert any("Hauptstadt" in row.question for row in languages)
    assert any("Suç" in row.question or "başkenti" in row.question for row in languages), "the last of them, too"


def test_a_certified_threshold_comes_from_labels_and_accepts_by_them(programs: dict[str, dict[str, Any]]) -> None:
    attacks = programs["attacks"]
    scores = [0.05, 0.9] * 100
    policies = attacks["certified_policies"](scores, [score > 0.5 for score in scores])
    assert policies.keys() == {f"certified at {risk:.0%}" for risk in attacks["RISKS"]}
    asked = attacks["ScoredAnswer"]
    answers = [asked("a", False, 0.04, 0.5, 0.1), asked("b", True, 0.85, 0.5, 0.1)]
    (strictest, *_) = attacks["result_of"](
        "none", [*answers, *answers[1:]], [*answers, *answers[1:]], policies
    ).accepted
    assert (strictest.policy, strictest.accepted, strictest.wrong) == ("certified at 30%", 1, 0)
    assert attacks["certified_policies"](scores, [True] * len(scores)) == {}


# -- spans -------------------------------------------------------------------------------------


def kept_answers(path: Path, *, count: int = 40) -> Path:
    """Answers of two kinds, whose wrong lines the model doubts in the claim alone; and given ones."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        kind = ("lists: towns", "prose: towns")[number % 2]
        wrong = [draw.random() < 0.4 for _ in range(4)]
        lines = [line_of(each, draw, f"Town {number}") for each in wrong]
        rows.append({"key": f"{number}", "set": kind, "question": "?", "text": "", "lines": lines})
        given = line_of(number % 2 == 0, draw, f"Given {number // 2}")
        rows.append({"key": f"given/{number // 2}/{number % 2}", "set": "given: towns", "lines": [given]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def line_of(wrong: bool, draw: random.Random, text: str) -> dict[str, Any]:
    doubt = draw.gauss(1.0 if wrong else -1.0, 1.0)
    scores = {"mean": -draw.random(), "least": -math.exp(doubt), "ccp": -draw.random()}
    return {"text": text, "wrong": wrong, "columns": [doubt, doubt, draw.random()], **scores}


def test_lines_of_given_answers_are_compared_by_question_and_nothing_is_fitted_on_them(
    programs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    spans = programs["spans"]
    lines = spans["read"](kept_answers(tmp_path / "kept.jsonl"))
    assert lines.given.sum() == 40
    assert len(set(lines.examples.answer[lines.given].tolist())) == 20
    fitted_on: list[int] = []

    def fit(learn: Any, out: Any) -> Any:
        fitted_on.extend(learn.tolist())
        assert not set(lines.examples.answer[learn]) & set(lines.examples.answer[out])
        return np.zeros(len(out))

    spans["in_folds"](lines, fit)
    spans["left_out"](lines, fit)
    assert not lines.given[fitted_on].any()


def test_what_finds_the_wrong_lines_is_measured_within_answers_with_intervals(
    programs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    spans = programs["spans"]
    lines = spans["read"](kept_answers(tmp_path / "kept.jsonl"))
    own = lines.take(spans["groups_of"](lines)["all"])
    found = spans["measured"](own, spans["scores_of"](own, lines))
    best, mean = found[spans["OWN"]], found[spans["MEAN"]]
    told = spans["within_answers"](own.unfitted[spans["MEAN"]], own.examples)
    assert mean.within[0] == pytest.approx(told["auroc_within"], abs=5e-4)
    assert best.within[0] > 0.8
    assert best.within[1] < best.within[0] <= best.within[2]
    assert mean.gain[0] == pytest.approx(best.within[0] - mean.within[0], abs=2e-3)
    assert mean.gain[1] > 0, "the interval of a gain that is there is above zero"
    assert best.gain == (0.0, 0.0, 0.0)
    assert found["text only"].brier is not None
    assert mean.brier is None
    assert found["three columns, fitted on the other model"].within[0] > 0.8
    assert set(spans["groups_of"](lines)) == {"all", "lists", "prose", "given: towns"}


def test_the_tables_label_lists_sums_and_prose(programs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    answers = programs["span_answers"]
    write_set(
        tmp_path,
        "countries",
        [
            ("What is the capital of Norway?", ["Oslo"], "capital"),
            ("Oslo is the capital of which country?", ["Norway"], "capital_of"),
            ("On which continent is Norway?", ["Europe"], "continent"),
            ("What currency is used in Norway?", ["krone"], "currency"),
            ("What is an official language of Norway?", ["Norwegian"], "language"),
        ],
    )
    write_set(
        tmp_path,
        "elements",
        [(f"What is the chemical symbol for {name}?", [symbol], "symbol") for name, symbol in ELEMENTS.items()]
        + [(f"What is the atomic number of {name}?", [f"{at}"], "number") for at, name in enumerate(ELEMENTS, 1)],
    )
    write_set(tmp_path, "cities", [(f"In which country is the city of C{at}?", [f"L{at}"], None) for at in range(5)])
    write_set(tmp_path, "arithmetic", [(f"What is {at} + 2?", [f"{at + 2}"], "add") for at in range(5)])
    write_set(tmp_path, "multiarith", [("Ann has 2 apples and gets 3. How many?", ["5"], None)])
    wikidata = [
        ("The religion of Ann is", ["Islam"]),
        ("The native language of Bo is", ["Thai"]),
        ("The eye of Bo is", []),
    ]
    wikidata += [("The country of citizenship of Bo is", ["Laos"])]
    write_set(tmp_path, "qa_wikidata", [(*each, None) for each in wikidata])
    write_set(tmp_path, "halueval_qa", [("Who?", ["Ann"], None)], choices=["Bob did it.", "Ann"])
    found = {each.key: each for each in answers["tasks"](tmp_path, limit=2, only=[])}
    norway = found["countries/Norway"]
    assert norway.row.labels("Capital: Bergen\nCurrency: krone", [(0, 15), (16, 31)]) == (True, False)
    assert found["Countries of cities/0"].row.labels("C1: L1", [(0, 6)]) == (False,)
    assert found["sums/0"].row.labels("3 + 2 = 6", [(0, 9)]) == (True,)
    prose = found["prose/Norway"]
    assert prose.row.labels("Its capital is Oslo.", [(0, 20)]) == (False,)
    assert [each for each in found if each.startswith("people/")] == ["people/Bo", "people/Ann"], "most facts first"
    life = found["people/Bo"].row
    text = "He was a citizen of Laos. His religion was x. His native language was Lao."
    assert life.labels(text, [(0, 25), (26, 45), (46, 74)]) == (False, None, True)
    assert {each.dataset for each in found.values()} == {
        *("lists: countries", "lists: elements", "lists: cities", "sums", "word problems"),
        *("prose: countries", "prose: elements", "biographies"),
        *("given: HaluEval", "given: HaluEval with its passage"),
    }
    given = found["given: HaluEval/halueval_qa-0/True"]
    assert given.row.response == "Bob did it."
    assert given.row.labels("Bob did it.", [(0, 11)]) == (True,)
    assert "P. " not in found["given: HaluEval/halueval_qa-0/False"].chat
    only = answers["tasks"](tmp_path, limit=2, only=["prose"])
    assert {each.dataset for each in only} == {"prose: countries", "prose: elements"}


ELEMENTS = {"hydrogen": "H", "helium": "He", "lithium": "Li", "beryllium": "Be", "boron": "B"}


def write_set(folder: Path, name: str, rows: list[tuple[str, list[str], str | None]], **more: Any) -> None:
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        for at, (question, answers, category) in enumerate(rows):
            row = {"id": f"{name}-{at}", "question": question, "answers": answers, "category": category}
            row |= {"choices": None, "answer_index": 1, "context": "P. ", **more}
            file.write(json.dumps(row) + "\n")


def test_the_claim_conditioned_probability_leaves_out_what_says_the_same_or_nothing(
    programs: dict[str, dict[str, Any]],
) -> None:
    conditioned = programs["span_answers"]["claim_conditioned"]
    texts = {1: " Oslo", 2: " Os", 3: " the", 4: " Bergen", 5: ","}

    class Engine:
        def alternative_text(self, before: Any, token: int) -> str:
            return texts[token]

    shares = {1: 0.4, 2: 0.1, 3: 0.2, 4: 0.25, 5: 0.05}
    top = (tuple((token, math.log(share)) for token, share in shares.items()),)
    one = np.array([math.log(0.4)], np.float32)
    generation = Generation("Oslo", (1,), one, one, one, 1, "stop", Sampling(), 0.0, 0.0, top=top)
    assert math.exp(conditioned(Engine(), generation, 0)) == pytest.approx(0.5 / 0.75)


# -- situations --------------------------------------------------------------------------------


def test_a_question_is_asked_with_its_passage_another_one_and_one_that_contradicts(
    programs: dict[str, dict[str, Any]],
) -> None:
    rows = [
        Question("a", "Who?", ("Anna",), context="It was anna."),
        Question("b", "Where?", ("Bern",), context="In Bern, near Bern."),
        Question("c", "What?", ("Gold",), context="Silver."),
        Question("d", "Which?", ("No",), context="No."),
    ]
    found = {each.key: each.row.context for each in programs["situations"]["with_passages"](rows)}
    assert found == {
        "no passage/a": None,
        "its passage/a": "It was anna.",
        "another passage/a": "In Bern, near Bern.",
        "passage with another answer/a": "It was Bern.",
        "no passage/b": None,
        "its passage/b": "In Bern, near Bern.",
        "another passage/b": "It was anna.",
        "passage with another answer/b": "In Anna, near Anna.",
    }, "questions whose passage does not say the answer, or whose answer is a short word, are left out"


def test_the_argument_of_a_cut_call_is_no_answer(programs: dict[str, dict[str, Any]]) -> None:
    argument = programs["situations"]["_argument"]
    assert argument('{"answer": "Oslo"}') == "Oslo"
    assert [argument(text) for text in ('{"answer": "Os', "{}", "[]", "5")] == [""] * 4


def test_answers_in_each_situation_are_scored_kept_and_judged(
    programs: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    situations = programs["situations"]
    monkeypatch.setitem(situations["answered"].__globals__, "TOOL_FORMAT", None)  # the script writes the object itself

    def script(prompt: Prompt, number: int) -> tuple[str, float]:
        right = int(prompt.question.split()[5]) % 3 == 0
        text = "Oslo" if right else "Bern"
        return (json.dumps({"answer": text}) if "Call the tool" in prompt.question else text), 0.2 if right else 0.6

    rows = [Question(f"{at}", f"What is the capital of {at} ?", ("Oslo",)) for at in range(12)]
    wanted = [
        situations["SituatedQuestion"](situation, row)
        for row in rows
        for situation in ("a few words", situations["AS_TOOL"])
    ]
    artefact = confidence_scorer().artefact
    roomy = artefact.prompting.model_copy(update={"max_tokens": 60})
    scorer = Scorer(artefact.model_copy(update={"prompting": roomy}))
    engine, kept = AnsweringEngine(script), tmp_path / "kept.jsonl"
    answers = situations["ask"](engine, scorer, wanted[:10], kept)
    assert len(engine.asked) == 10
    answers = situations["ask"](engine, scorer, wanted, kept)
    assert len(engine.asked) == 24, "what is kept is not asked again"
    tools = [each for each in answers if each.situation == situations["AS_TOOL"]]
    assert [each.wrong for each in tools] == [at % 3 != 0 for at in range(12)], "the value is graded, not the object"
    found = {"tools": situations["judged"](tools)}
    assert found["tools"]["wrong"] == pytest.approx(8 / 12, abs=1e-3)
    assert found["tools"]["guard AUROC"][0] == 1.0
    situations["show"](found)
    assert "| tools | 12 |" in capsys.readouterr().out


# -- rebound -----------------------------------------------------------------------------------


def test_a_moved_score_is_compared_with_the_forced_one_on_the_same_answers(
    programs: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rebound = programs["rebound"]
    rng, wrong = np.random.default_rng(0), np.arange(80) % 2 == 0
    poor, good = (np.clip(0.5 + side * (wrong - 0.5) + rng.normal(0, 0.1, 80), 0, 1) for side in (0.02, 0.4))
    found = rebound["judged"](wrong, {"forced: guard": poor, "rebound: guard": good, "refitted: guard": good})
    assert "gain in AUROC" not in found["forced: guard"]
    for name in ("rebound: guard", "refitted: guard"):
        value, low, high = found[name]["gain in AUROC"]
        assert value == pytest.approx(found[name]["AUROC"][0] - found["forced: guard"]["AUROC"][0], abs=2e-4)
        assert 0 < low < value < high
        assert found[name]["gain in Brier"][0] > 0, "less is better, and a gain is above 0"
    report = {"to": "Q8_0", "answers": 80, "wrong": [0.5, 0.5], "refused": "", "difference": [0.1, 0.0]}
    rebound["show"]({**report, "scores": found})
    assert "| rebound: guard | " in capsys.readouterr().out


def test_only_recorded_questions_are_asked_of_the_other_model(programs: dict[str, dict[str, Any]]) -> None:
    records = SimpleNamespace(key=np.array(["a/1", "b/1", "a/2", "a/3"], object))
    rows = [Question(f"{name}/{at}", "?", ("x",)) for name in "ab" for at in range(4)]
    found = programs["rebound"]["recorded_questions"](records, rows, limit=2)
    assert {at: row.id for at, row in found.items()} == {0: "a/1", 2: "a/2", 1: "b/1"}


def test_the_other_models_answers_are_its_own_and_it_reads_the_old_ones(programs: dict[str, dict[str, Any]]) -> None:
    rebound, scorer = programs["rebound"], confidence_scorer()
    engine = AnsweringEngine(lambda prompt, number: ("Oslo" if "1" in prompt.question else "Bern", 0.3))
    rows = [Question(f"a/{at}", f"What is the capital of {at}?", ("Oslo",)) for at in range(2)]
    other = rebound["ask"](engine, scorer, rows, ["Rome", "Rome"])
    assert other.wrong.tolist() == [True, False]
    assert [len(each.logprobs) for each in other.read] == [len("Rome") + 1] * 2
    assert other.refused == ""
    tuned = replace(scripted_model(), quantization="Q8_0", weights_sha256="f" * 64)
    moved = AnsweringEngine(lambda prompt, number: ("Oslo", 0.3), model=tuned)
    assert "quantization" in rebound["ask"](moved, scorer, rows, ["Rome", "Rome"]).refused


# -- the texts alone ---------------------------------------------------------------------------


def test_guard_is_compared_with_the_texts_on_the_same_sets(
    programs: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rng, wrong = np.random.default_rng(0), np.arange(60) % 2 == 0
    cells = []
    for name in ("a", "b"):
        guard, text = (np.clip(0.5 + side * (wrong - 0.5) + rng.normal(0, 0.2, 60), 0, 1) for side in (0.5, 0.1))
        known = {"guard": guard, "text only": text} if name == "a" else {"text only": text}
        missing = {} if name == "a" else {"guard": "no signal"}
        cells.append(Predictions("within", name, name, wrong, np.arange(60), known, missing))
    found = programs["text_only"]["measured"](cells)
    assert (found["guard"]["sets"], found["text only"]["sets"]) == (1, 2)
    value, low, high = found["text only"]["gain in AUROC"]
    assert 0 < low < value < high
    own = auroc(Ranked.from_scores(cells[0].p_wrong["guard"], wrong))[0]
    other = auroc(Ranked.from_scores(cells[0].p_wrong["text only"], wrong))[0]
    assert value == pytest.approx(float(own - other), abs=1e-4), "on the set that both have"
    programs["text_only"]["show"]("within", found)
    assert "| text only | 2 | " in capsys.readouterr().out


def test_the_first_answers_of_each_set_are_compared(programs: dict[str, dict[str, Any]]) -> None:
    dataset = np.array(["a", "b", "a", "a", "b"])
    table = SimpleNamespace(dataset=dataset, take=lambda rows: rows.tolist())
    assert programs["text_only"]["first_of_each_set"](table, 2) == [0, 2, 1, 4]
